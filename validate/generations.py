"""What the models write: a few fixed prompts continued by the likeliest token, reference and candidate side by side.

    prompt ids (BOS as the protocol has it) -> argmax of the last logits -> append -> again, until EOS or N tokens
    first divergence   the index of the first token that differs; None where all are the same

One model at a time is whole in memory, its weights float32, in transformers' own forward with its own cache: 4 bytes for
each parameter, which must fit into `ValidateOptions.max_ram`. Sampling would need a seed and say less: two models that
part do so at the token where their likeliest successors differ.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..convert.model import Model
from ..convert.progress import Progress, silent
from ..convert.tokenizer import SENTENCEPIECE, Tokenizer
from ..convert.tokenizer_bytes import bytes_of
from ..formats.sentencepiece import BYTE, CONTROL, byte_of
from .modules import as_modules
from .options import ValidateOptions
from .protocols import encode
from .question import Subject
from .replay import empty_network
from .report import Generation, ValidationReport
from .stream import stored_weights

MAX_RAM = 4 << 30  # bytes of float32 weights that are held unless `max_ram` says otherwise

# name: text. None ends in a space, which a tokenizer would cut off from the word that is to come.
PROMPTS = {
    "prose": "The ship left the harbour before dawn, and by noon the crew could see",
    "code": 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n    if n',
    "list": "What to pack for a week in the mountains:\n1. A good map\n2. Warm socks\n3.",
    "question": "Question: Why do leaves turn red in autumn?\nAnswer:",
    "another language": "Au printemps, quand les arbres sont en fleurs, les enfants du village",
}


def with_generations(
    report: ValidationReport,
    reference: Subject,
    candidates: Sequence[Subject],
    options: ValidateOptions,
    progress: Progress = silent,
) -> ValidationReport:
    """The report with what its candidates write; those that could not be run write nothing. Where there is no
    generation at all, though `options.generate` asks for some, a note says why."""
    whole = [index for index, result in enumerate(report.candidates) if result.drifts]
    written = write_on(reference, [candidates[index] for index in whole], options, progress)
    by_index = dict(zip(whole, written.candidates, strict=True))
    results = tuple(
        replace(result, generations=by_index.get(index, ())) for index, result in enumerate(report.candidates)
    )
    evaluation = replace(report.evaluation, notes=(*report.evaluation.notes, *written.notes))
    return replace(report, evaluation=evaluation, candidates=results)


@dataclass(frozen=True)
class Written:
    """Generations of each candidate, in order, a prompt each; empty where there are none, and then `notes` say why."""

    candidates: tuple[tuple[Generation, ...], ...]
    notes: tuple[str, ...] = ()


def write_on(
    reference: Subject, candidates: Sequence[Subject], options: ValidateOptions, progress: Progress = silent
) -> Written:
    """Continue every prompt under the reference and each candidate by up to `options.generate` tokens.

    The prompts' ids and the words made of ids are the reference's tokenizer's. The models must be runnable.
    """
    nothing = Written(tuple(() for _ in candidates))
    if not options.generate or not candidates:
        return nothing
    tokenizer = reference.model.tokenizer
    if tokenizer is None:
        return replace(nothing, notes=(f"no generations: {reference.path} has no tokenizer",))
    largest = max((reference, *candidates), key=lambda subject: subject.model.parameters)
    needed, limit = 4 * largest.model.parameters, MAX_RAM if options.max_ram is None else options.max_ram
    if needed > limit:
        said = f"no generations: {largest.path} takes {_size(needed)} of memory in float32, the limit is {_size(limit)}"
        return replace(nothing, notes=(f"{said}; --max-ram {-(-needed // 10**6)}MB would allow them",))
    prompts = {name: encode(tokenizer, text) for name, text in PROMPTS.items()}
    rooms = {name: _room(reference.model, ids, options.generate) for name, ids in prompts.items()}
    found: list[dict[str, list[int]] | None] = []
    for index, subject in enumerate((reference, *candidates)):
        tick = _ticker(progress, index * len(PROMPTS), (1 + len(candidates)) * len(PROMPTS))
        found.append(_continuations(subject.model, prompts, rooms, tokenizer.eos_id, tick))
    ours, *theirs = found
    if ours is None:
        return replace(nothing, notes=(f"no generations: {reference.path} gives NaN or infinity on a prompt",))
    broken = [subject.path for subject, each in zip(candidates, theirs, strict=True) if each is None]
    return Written(
        tuple(() if each is None else _side_by_side(tokenizer, ours, each) for each in theirs),
        tuple(f"no generations of {path}: it gives NaN or infinity on a prompt" for path in broken),
    )


def _room(model: Model, ids: Sequence[int], n: int) -> int:
    """Tokens that may follow: not beyond what the model was trained on."""
    trained = model.config.get("max_position_embeddings")
    return max(0, min(n, trained - len(ids))) if isinstance(trained, int) else n


def _ticker(progress: Progress, start: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(start + done, total, "generating")


def _continuations(
    model: Model, prompts: dict[str, list[int]], rooms: dict[str, int], eos: int | None, tick: Callable[[int], None]
) -> dict[str, list[int]] | None:
    """The ids that follow each prompt; None where a logit is not finite."""
    network = whole_network(model)
    found = {}
    for done, (name, ids) in enumerate(prompts.items()):
        following = greedy(network, ids, rooms[name], eos)
        if following is None:
            return None
        found[name] = following
        tick(done + 1)
    return found


def whole_network(model: Model) -> Any:
    """transformers' network with every weight in place, float32. One tensor's stored bytes are in memory at a time."""
    network = empty_network(model.config)
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    tied = head.weight is embedding.weight
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    fetch = stored_weights(replace(model, tensors=as_modules(model.tensors, shapes)))
    for name in shapes:
        network.load_state_dict(fetch([name])(), strict=False, assign=True)
    if tied:
        head.weight = embedding.weight
    return network


def greedy(network: Any, ids: Sequence[int], n: int, eos: int | None) -> list[int] | None:
    """Up to `n` ids after `ids`, each the likeliest, EOS being the last; None where a logit is not finite.

    A network without a cache of keys and values is given the whole sequence again.
    """
    found: list[int] = []
    given, past = list(ids), None
    with torch.no_grad():
        while len(found) < n and (not found or found[-1] != eos):
            output = network(input_ids=torch.tensor([given]), past_key_values=past, use_cache=True)
            odds = output.logits[0, -1]
            if not torch.isfinite(odds).all():
                return None
            found.append(int(odds.argmax()))
            past = getattr(output, "past_key_values", None)
            given = [*ids, *found] if past is None else found[-1:]
    return found


def _side_by_side(
    tokenizer: Tokenizer, ours: dict[str, list[int]], theirs: dict[str, list[int]]
) -> tuple[Generation, ...]:
    return tuple(
        Generation(
            name,
            text,
            tuple(token_texts(tokenizer, ours[name])),
            tuple(token_texts(tokenizer, theirs[name])),
            first_divergence(ours[name], theirs[name]),
        )
        for name, text in PROMPTS.items()
        if ours[name]
    )


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The index of the first id that differs, or that only one of them has; None where they are the same."""
    differs = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    return next(differs, None if len(ours) == len(theirs) else min(len(ours), len(theirs)))


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each id adds to the text. A character of several tokens comes with its last; bytes that are none are U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = len(ids) - 1
    return [decoder.decode(_token_bytes(tokenizer, id_), final=index == last) for index, id_ in enumerate(ids)]


def _token_bytes(tokenizer: Tokenizer, id_: int) -> bytes:
    if id_ >= len(tokenizer.pieces):  # a row of the output matrix that pads the vocabulary
        return f"<{id_}>".encode()
    text, _, type_ = tokenizer.pieces[id_]
    byte = byte_of(text) if type_ == BYTE else None
    if byte is not None:
        return bytes([byte])
    if tokenizer.kind == SENTENCEPIECE:
        return text.replace("\u2581", " ").encode()
    own = None if type_ == CONTROL else bytes_of(text)
    return text.encode() if own is None else own


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
