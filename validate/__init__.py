"""Runs a model one layer at a time, whatever its size; measures drift; writes the report.

    protocols  text -> windows of tokens, and which of them are scored
    replay     one layer inside transformers' own forward       stream   all layers, one in memory at a time
    head       final states -> nll, KLD, argmax per token       drift    their statistics, with intervals (bootstrap)
    weights    every tensor against the reference's             gates    how much is too much
    report     what was found, as values and as JSON            terminal the same for the eye
    html       the same as a page (plots, svg)                  markdown the same for a model card
    generations what the models write after fixed prompts       wording  how numbers are said
    run        measure_perplexity, validate                     recorded a reference that is not run: baseline, llama_base

Importing this package is cheap; `run`, `stream`, `replay` and `head` import torch.
"""
