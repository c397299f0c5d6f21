"""How byte-level BPE cuts a text into words before it merges: the rules, by the names that GGUF files give them.

    text -> normalizer (NFC or nothing) -> splits, one after the other -> each word's bytes as 256 printable characters

A tokenizer.json spells its rules out, a GGUF file has but a name under `tokenizer.ggml.pre`. Two spellings are the same
rules where their steps are equal after what cannot matter is taken away: nested sequences, offsets, `ByteLevel`'s own
regex (GPT-2's), and the two ways to write that letters match in both cases.

Names: llama.cpp, llama-vocab.cpp. Rules: the published tokenizer.json of the models named below; openai/tiktoken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Step = tuple[str, ...]

_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
LLAMA3 = rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
LLAMA4 = "|".join((*(f"{word}{_ANY_CASE}?" for word in _WORDS), r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _TAIL))
_TEKKEN = "|".join((*_WORDS, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _TAIL))
_QWEN2 = rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN35 = rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}"
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"


@dataclass(frozen=True)
class Rules:
    """One set of rules. `ignore_merges`: a word that is a token becomes that token, whatever the merges say."""

    splits: tuple[Step, ...]
    normalizer: tuple[str, ...] = ()
    ignore_merges: bool = False


RULES: dict[str, Rules] = {
    "llama-bpe": Rules((("split", LLAMA3),), ignore_merges=True),  # Llama 3
    "smaug-bpe": Rules((("split", LLAMA3),)),  # and DBRX
    "llama4": Rules((("split", LLAMA4),)),
    "qwen2": Rules((("split", _QWEN2),), ("NFC",)),  # Qwen 2, 2.5 and 3
    "qwen35": Rules((("split", _QWEN35),), ("NFC",)),
    "gpt-2": Rules((("split", _GPT2),)),  # and OPT
    "bloom": Rules((("split", _BLOOM),)),
    "starcoder": Rules((("digits",), ("split", _GPT2))),
    "tekken": Rules((("split", _TEKKEN),), ignore_merges=True),  # Mistral NeMo
}
_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "dbrx": "smaug-bpe",
    "gpt-4o": "llama4",
    "deepseek-r1-qwen": "qwen2",
    "phi-2": "gpt-2",
    "smollm": "starcoder",
}
# where the published files of one tokenizer differ in the text of a pattern, and not in what it matches
_SAME_PATTERNS = {_SPELLED_OUT: _ANY_CASE}
_GPT2_SHORTER = _GPT2.removesuffix(r"|\s+")
_BLOOM_FLAT = _BLOOM.replace("[.,", ".,").replace("])]+", ")]+")


def rules_of(name: str) -> Rules | None:
    """The rules by a name that GGUF files use; None for one that smelt does not know."""
    return RULES.get(_ALIASES.get(name, name))


def name_of(normalizer: Any, pre_tokenizer: Any, ignore_merges: bool) -> str | None:
    """The name of the rules that a tokenizer.json spells out; None where they are none of `RULES`.

    Among names that differ in `ignore_merges` alone the one that agrees wins; else the caller must see to it.
    """
    normal, splits = _normalizer_steps(normalizer), _split_steps(pre_tokenizer)
    named = [name for name, rules in RULES.items() if (rules.normalizer, rules.splits) == (normal, splits)]
    agreeing = [name for name in named if RULES[name].ignore_merges == ignore_merges]
    return next(iter(agreeing or named), None)


def normalizer_json(rules: Rules) -> dict[str, Any] | None:
    """tokenizer.json's "normalizer"."""
    steps = [{"type": name} for name in rules.normalizer]
    return steps[0] if steps else None


def pre_tokenizer_json(rules: Rules) -> dict[str, Any]:
    """tokenizer.json's "pre_tokenizer"."""
    steps = [_step_json(step) for step in rules.splits]
    own_regex = steps[-1] == _step_json(("split", _GPT2))
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own_regex}
    steps = [*(steps[:-1] if own_regex else steps), to_bytes]
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _step_json(step: Step) -> dict[str, Any]:
    if step == ("digits",):
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": "Isolated", "invert": False}


def _flat(node: Any, children: str) -> list[Any] | None:
    """A node's steps, sequences unfolded; None where there is something that is no step."""
    if node is None:
        return []
    if not isinstance(node, Mapping):
        return None
    if node.get("type") != "Sequence":
        return [node]
    parts = node.get(children)
    steps = [_flat(part, children) for part in parts] if isinstance(parts, list) else [None]
    return [step for part in steps if part is not None for step in part] if None not in steps else None


def _normalizer_steps(node: Any) -> tuple[str, ...] | None:
    steps = _flat(node, "normalizers")
    return None if steps is None else tuple(str(step.get("type")) for step in steps)


def _split_steps(node: Any) -> tuple[Step, ...] | None:
    """The splits before the bytes; None unless `ByteLevel` is the last step, and puts no space in front."""
    steps = _flat(node, "pretokenizers")
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True) is not False:
        return None
    found = [_split_step(step) for step in steps[:-1]]
    if steps[-1].get("use_regex", True) is True:
        found.append(("split", _GPT2))
    return tuple(step for step in found if step is not None) if None not in found else None


def _split_step(step: Mapping[str, Any]) -> Step | None:
    if step.get("type") == "Digits" and step.get("individual_digits") is True:
        return ("digits",)
    pattern = step.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert") is not False:
        return None
    if not isinstance(text, str):
        return None
    for spelling, same in _SAME_PATTERNS.items():
        text = text.replace(spelling, same)
    return ("split", {_GPT2_SHORTER: _GPT2, _BLOOM_FLAT: _BLOOM}.get(text, text))
