"""Recipes: which type each tensor gets, by its role, its layer and the model's shape. llama-quantize's choices, as data.

    role        a rule is (recipes, condition, type); the first that matches wins, else the recipe's base type

Conditions speak of: i, the tensor's place among those of its role; n, how many there are; gqa, query heads for each KV
head; experts; imatrix, whether importance is given; is_70b, a `llama` of 80 layers that shares KV heads. `more_bits` is
the first eighth, the last eighth and every third layer between. Source: llama.cpp, llama-quant.cpp (facts, re-stated as a
table); the tests compare every recipe, with and without importance, with llama.cpp's own library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A named mixture: llama.cpp's number for it (`general.file_type`) and the type of most tensors."""

    name: str
    file_type: int
    base: str


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("F32", 0, "F32"),
        Recipe("F16", 1, "F16"),
        Recipe("BF16", 32, "BF16"),
        Recipe("Q4_0", 2, "Q4_0"),
        Recipe("Q4_1", 3, "Q4_1"),
        Recipe("Q8_0", 7, "Q8_0"),
        Recipe("Q5_0", 8, "Q5_0"),
        Recipe("Q5_1", 9, "Q5_1"),
        Recipe("Q2_K", 10, "Q2_K"),
        Recipe("Q3_K_S", 11, "Q3_K"),
        Recipe("Q3_K_M", 12, "Q3_K"),
        Recipe("Q3_K_L", 13, "Q3_K"),
        Recipe("Q4_K_S", 14, "Q4_K"),
        Recipe("Q4_K_M", 15, "Q4_K"),
        Recipe("Q5_K_S", 16, "Q5_K"),
        Recipe("Q5_K_M", 17, "Q5_K"),
        Recipe("Q6_K", 18, "Q6_K"),
        Recipe("IQ2_XXS", 19, "IQ2_XXS"),
        Recipe("IQ2_XS", 20, "IQ2_XS"),
        Recipe("Q2_K_S", 21, "Q2_K"),
        Recipe("IQ3_XS", 22, "IQ3_S"),
        Recipe("IQ3_XXS", 23, "IQ3_XXS"),
        Recipe("IQ1_S", 24, "IQ1_S"),
        Recipe("IQ4_NL", 25, "IQ4_NL"),
        Recipe("IQ3_S", 26, "IQ3_S"),
        Recipe("IQ3_M", 27, "IQ3_S"),
        Recipe("IQ2_S", 28, "IQ2_XS"),
        Recipe("IQ2_M", 29, "IQ2_S"),
        Recipe("IQ4_XS", 30, "IQ4_XS"),
        Recipe("IQ1_M", 31, "IQ1_M"),
        Recipe("TQ1_0", 36, "TQ1_0"),
        Recipe("TQ2_0", 37, "TQ2_0"),
        Recipe("MXFP4_MOE", 38, "MXFP4"),
        Recipe("NVFP4", 39, "NVFP4"),
    )
}

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# types that llama.cpp refuses to make without an importance matrix, whatever the recipe that asks for them
NEED_IMPORTANCE = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}


@dataclass(frozen=True)
class Place:
    """What a rule may ask about a tensor: see the module's docstring."""

    i: int
    n: int
    gqa: int
    experts: int
    imatrix: bool
    is_70b: bool = False


def more_bits(place: Place) -> bool:
    """The layers that hurt most: the first and last eighth, and every third between."""
    eighth = place.n // 8
    return place.i < eighth or place.i >= 7 * place.n // 8 or (place.i - eighth) % 3 == 2


def _always(_place: Place) -> bool:
    return True


def _first(divisor: int) -> Callable[[Place], bool]:
    return lambda place: place.i < place.n // divisor


def _middle(place: Place) -> bool:
    return place.n // 8 <= place.i < 7 * place.n // 8


def _gqa4(place: Place) -> bool:
    return place.gqa >= 4


def _gqa_or_experts4(place: Place) -> bool:
    return place.gqa >= 4 or place.experts >= 4


def _experts8(place: Place) -> bool:
    return place.experts == 8


def _not_experts8(place: Place) -> bool:
    return place.experts != 8


def _dense(place: Place) -> bool:
    return place.experts == 0


def _plain(place: Place) -> bool:
    return not place.imatrix


@dataclass(frozen=True)
class Rule:
    """For these recipes, where the condition holds, this type."""

    recipes: tuple[str, ...]
    type: str
    when: Callable[[Place], bool] = _always


_TINY = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_TWO = ("IQ2_S", "IQ2_M")
_LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS")
_FLOAT = ("F32", "F16", "BF16")
_GENERAL = tuple(name for name in RECIPES if name not in (*_TINY, *_FLOAT))
_EIGHT = ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS")

RULES: dict[str, tuple[Rule, ...]] = {
    "attn_v": (
        Rule(_TINY, "Q4_K", _gqa_or_experts4),
        Rule(_TWO, "IQ3_S"),
        Rule(_LOW, "Q2_K"),
        Rule(("MXFP4_MOE",), "Q8_0"),
        Rule(_GENERAL, "Q8_0", _experts8),
        Rule(("Q2_K",), "Q4_K", _gqa4),
        Rule(("Q2_K",), "Q3_K"),
        Rule(("Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), "Q4_K", _gqa4),
        Rule(("IQ3_XXS",), "IQ3_S", _plain),
        Rule(("IQ3_M",), "Q4_K"),
        Rule(("Q3_K_M",), "Q5_K", lambda place: place.i < 2),
        Rule(("Q3_K_M",), "Q4_K"),
        Rule(("Q3_K_L",), "Q5_K"),
        Rule(("IQ4_NL", "IQ4_XS"), "Q5_K", _gqa4),
        Rule(("Q4_K_M", "Q5_K_M"), "Q6_K", more_bits),
        Rule(("Q4_K_S",), "Q5_K", lambda place: place.i < 4),
    ),
    "attn_k": (
        Rule(_TINY, "Q4_K", _experts8),
        Rule(("MXFP4_MOE",), "Q8_0"),
        Rule(_GENERAL, "Q8_0", _experts8),
        Rule(("IQ3_XS",), "IQ3_XXS"),
        Rule(("IQ3_XXS",), "IQ2_S"),
    ),
    "attn_qkv": (
        Rule(("Q3_K_M", "Q3_K_L", "IQ3_M"), "Q4_K"),
        Rule(("Q4_K_M",), "Q5_K"),
        Rule(("Q5_K_M",), "Q6_K"),
        Rule(("MXFP4_MOE",), "Q8_0"),
    ),
    "attn_q": (Rule(("IQ3_XS",), "IQ3_XXS"), Rule(("IQ3_XXS",), "IQ2_S"), Rule(("MXFP4_MOE",), "Q8_0")),
    "ffn_down": (
        Rule(_TWO, "IQ3_S", _first(8)),
        Rule(_LOW, "Q2_K", _first(8)),
        Rule(("Q2_K",), "Q3_K"),
        Rule(("Q2_K_S",), "Q4_K", _first(8)),
        Rule(("IQ3_XXS",), "Q4_K", lambda place: _plain(place) and _first(8)(place)),
        Rule(("IQ3_XXS",), "Q3_K", _plain),
        Rule(("Q3_K_M",), "Q5_K", _first(16)),
        Rule(("Q3_K_M",), "Q4_K"),
        Rule(("IQ3_M",), "Q4_K", lambda place: _first(8)(place) or (_experts8(place) and more_bits(place))),
        Rule(("Q3_K_L",), "Q5_K"),
        Rule(("Q4_K_M", "Q5_K_M"), "Q6_K", more_bits),
        Rule(("IQ4_NL", "IQ4_XS"), "Q5_K", lambda place: _plain(place) and _first(8)(place)),
        Rule(("Q4_K_S",), "Q5_K", _first(8)),
        Rule(("Q4_0",), "Q4_1", lambda place: place.imatrix and _first(8)(place)),
        Rule(("Q5_0",), "Q5_1", lambda place: place.imatrix and _first(8)(place)),
        Rule(("MXFP4_MOE",), "Q8_0", _dense),
    ),
    "attn_output": (
        Rule((*_TINY, *_EIGHT), "Q5_K", _experts8),
        Rule(("IQ1_S", "IQ1_M"), "IQ2_XXS"),
        Rule(_TWO, "IQ3_S"),
        Rule(("Q2_K",), "Q3_K"),
        Rule(("IQ3_XXS",), "IQ3_S"),
        Rule(("Q3_K_M", "IQ3_M"), "Q4_K"),
        Rule(("Q3_K_L",), "Q5_K", _not_experts8),
        Rule(("MXFP4_MOE",), "Q8_0"),
    ),
    "ffn_gate": (Rule(("IQ3_XS",), "IQ3_XXS", _middle), Rule(("MXFP4_MOE",), "Q8_0", _dense)),
    "ffn_up": (Rule(("IQ3_XS",), "IQ3_XXS", _middle), Rule(("MXFP4_MOE",), "Q8_0", _dense)),
    "token_embd": (
        Rule(("MXFP4_MOE",), "Q8_0"),
        Rule(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
        Rule(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
        Rule(("TQ1_0", "TQ2_0"), "Q4_K"),
    ),
    "output": (
        Rule((*_TINY, "IQ3_XXS"), "Q5_K"),
        Rule(("Q8_0", "MXFP4_MOE"), "Q8_0"),
        Rule(tuple(RECIPES), "Q6_K"),
    ),
}

# the type that takes over where a row does not divide by 256; a row that does not divide by 32 either becomes F16
FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def by_rule(recipe: Recipe, role: str, place: Place) -> str:
    """The type that `recipe` gives a tensor of `role`, before any fallback. A float recipe gives every matrix its type."""
    if recipe.base in _FLOAT:
        return recipe.base
    rules = RULES.get(role, ())
    chosen = next((rule.type for rule in rules if recipe.name in rule.recipes and rule.when(place)), recipe.base)
    if role == "attn_v" and place.is_70b and recipe.name in _GENERAL and chosen in ("Q3_K", "Q4_K"):
        return "Q5_K"  # eight times smaller under grouped-query attention: bits are cheap there
    return chosen


def needs_importance(recipe: Recipe, role: str, type_name: str) -> bool:
    """True where llama.cpp refuses to make `type_name` for a tensor of `role` without importance."""
    if role in ("token_embd", "output"):
        return False
    return type_name in NEED_IMPORTANCE or (recipe.name == "Q2_K_S" and type_name == "Q2_K")
