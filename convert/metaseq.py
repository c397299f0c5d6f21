"""OPT as metaseq saved it -> Model: .pt files (`metaseq_parts`), the settings in them, gpt2-vocab.json and gpt2-merges.txt.

    metaseq_parts   the files -> whole tensors               metaseq_write   the way back, in one part

    metaseq                                         canonical
    decoder.layers.{i}. ...                         model.decoder.layers.{i}. ...
    decoder.layer_norm                              model.decoder.final_layer_norm
    decoder.project_in_dim, project_out_dim         model.decoder.project_in, project_out

The shapes tell all but the number of heads and the activation: those are in the files' `cfg` or `args`, else in a config.json
beside them; else the shape is that of a published OPT. What no setting of metaseq says is in smelt.config.json, where smelt
wrote the folder. The head is the embedding, so `output_projection`, of which each
part has a copy, is compared with it where there is one part, and left out where there are several.
dict.txt, where it is there, says which piece of gpt2-vocab.json each row of the embedding is.
Source: facebookresearch/metaseq; transformers, convert_opt_original_pytorch_checkpoint_to_pytorch.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from ..dtypes import F32
from ..errors import FormatError, ModelError, quoted
from .architecture import family_by
from .architectures.opt import POSITION_OFFSET
from .assemble import HEAD, assemble, canonical_config, resolve_head, said_by_hand
from .hugging_face import read_json
from .meta_params import Beside, read_beside
from .metaseq_parts import MetaseqParts, open_parts
from .model import LazyTensor, Model
from .options import OpenOptions
from .side_files import SIDE_FILES, WITHOUT_VOCABULARY
from .tokenizer import Tokenizer
from .tokenizer_folder import read_files
from .tokenizer_open import open_tokenizer

OUTPUT = "decoder.output_projection.weight"
_RENAMED = {"layer_norm": "final_layer_norm", "project_in_dim": "project_in", "project_out_dim": "project_out"}
_BACK = {canonical: name for name, canonical in _RENAMED.items()}
_LAYER = re.compile(r"layers\.(\d{1,5})\.")
_END = re.compile(r"decoder\.(layer_norm|project_in_dim|project_out_dim)\.(weight|bias)")
_CANONICAL_END = re.compile(r"model\.decoder\.(final_layer_norm|project_in|project_out)\.(weight|bias)")
# OPT paper (arXiv 2205.01068), table 1: {(width, layers): heads}
PUBLISHED_HEADS = {
    (768, 12): 12,
    (1024, 24): 16,
    (2048, 24): 32,
    (2560, 32): 32,
    (4096, 32): 32,
    (5120, 40): 40,
    (7168, 48): 56,
    (9216, 64): 72,
    (12288, 96): 96,
}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # metaseq's dictionary begins with these
IDS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}  # OPT begins every text with </s>
VOCAB, MERGES, DICTIONARY = "gpt2-vocab.json", "gpt2-merges.txt", "dict.txt"
ALIASES = {"vocab.json": VOCAB, "merges.txt": MERGES}  # one file under two names


def read_metaseq(path: Path, options: OpenOptions) -> Model:
    """Open a folder of metaseq's .pt files, or one of them. Reads headers only. InputError and its kin say what is wrong."""
    folder = path if path.is_dir() else path.parent
    family = family_by("model_type", "opt", str(path))
    parts = open_parts(path)
    stored = {_canonical(name): tensor for name, tensor in parts.tensors.items() if name != OUTPUT}
    if OUTPUT in parts.tensors and parts.n_parts == 1:
        stored[HEAD] = parts.tensors[OUTPUT]
    own_tokenizer = options.skip_tokenizer or options.tokenizer is not None
    beside = read_beside(folder, WITHOUT_VOCABULARY if own_tokenizer else SIDE_FILES)
    facts = said_by_hand(family, "canonical", _facts(folder, parts, stored, beside.config), stored, options, str(path))
    config = canonical_config(family, facts, str(path))
    tensors, names = assemble(family, "canonical", stored, config, str(path))
    assumptions = resolve_head(family, tensors, config, str(path), absent_means_tied=True)
    files = beside.side_files if own_tokenizer else _side_files(folder, beside)
    spelled = {_canonical(name): name for name in parts.tensors}
    return Model(
        family.name,
        config,
        _tokenizer(folder, files, config, options),
        tensors,
        source="metaseq",
        files=parts.files,
        stored_names={canonical: spelled[name] for canonical, name in names.items()},
        norm_dtype=next((tensor.dtype for tensor in tensors.values() if len(tensor.shape) == 1), F32),
        side_files=files,
        kept=beside.kept or {},
        assumptions=assumptions,
    )


def metaseq_name(canonical: str) -> str:
    """A canonical tensor's name in metaseq's files; q, k and v under names of their own."""
    if canonical == HEAD:
        return OUTPUT
    if (m := _CANONICAL_END.fullmatch(canonical)) is not None:
        return f"decoder.{_BACK[m[1]]}.{m[2]}"
    return canonical.removeprefix("model.")


def _canonical(name: str) -> str:
    if name == OUTPUT:
        return HEAD
    if (m := _END.fullmatch(name)) is not None:
        return f"model.decoder.{_RENAMED[m[1]]}.{m[2]}"
    return f"model.{name}"


def _facts(
    folder: Path, parts: MetaseqParts, stored: Mapping[str, LazyTensor], kept: Mapping[str, Any]
) -> dict[str, Any]:
    """Canonical config values out of what smelt kept, the shapes, the settings and a config.json, which has the last word."""
    tied = parts.settings.get("share_decoder_input_output_embed") is not False
    facts: dict[str, Any] = {**IDS, **kept, **_shape_facts(parts, stored), "tie_word_embeddings": tied}
    facts["activation_function"] = activation = parts.settings.get("activation_fn") or "relu"
    if not isinstance(activation, str):
        raise ModelError(f"{parts.files[0]}: activation_fn is {quoted(activation)}, wanted a name")
    published = PUBLISHED_HEADS.get((facts["hidden_size"], facts["num_hidden_layers"]))
    heads = parts.settings.get("decoder_attention_heads", published)
    if heads is not None:
        facts["num_attention_heads"] = heads
    if (folder / "config.json").is_file():
        beside = read_json(folder / "config.json")
        facts |= {key: value for key, value in beside.items() if key in facts or key == "num_attention_heads"}
    if "num_attention_heads" not in facts:
        raise ModelError(
            f"{folder}: neither the files' cfg nor a published shape tells the number of heads: put the model's config.json "
            "beside them"
        )
    return facts


def _shape_facts(parts: MetaseqParts, stored: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """What the shapes of the whole tensors tell. ModelError where they are of no OPT, or of some of its parts alone."""
    where = parts.files[0]
    shapes = {name.removeprefix("model.decoder."): tensor.shape for name, tensor in stored.items()}
    embedding, positions, query, wide = (
        "embed_tokens.weight",
        "embed_positions.weight",
        "layers.0.self_attn.q_proj.weight",
        "layers.0.fc1.weight",
    )
    missing = [name for name in (embedding, positions, query, wide) if len(shapes.get(name, ())) != 2]
    if missing:
        raise ModelError(f"{where}: has no matrix decoder.{missing[0]}: this is no OPT checkpoint")
    width, rows = shapes[positions][1], shapes[query][0]
    if rows != width:
        each = rows // parts.n_parts
        hint = f": there are {width // each} parts, and {parts.n_parts} here" if each and not width % each else ""
        raise ModelError(f"{where}: {query} has {rows} rows in all, wanted {width}{hint}")
    return {
        "vocab_size": shapes[embedding][0],
        "word_embed_proj_dim": shapes[embedding][1],
        "hidden_size": width,
        "max_position_embeddings": shapes[positions][0] - POSITION_OFFSET,
        "ffn_dim": shapes[wide][0],
        "num_hidden_layers": 1 + max(int(m[1]) for name in shapes if (m := _LAYER.match(name)) is not None),
        "enable_bias": "layers.0.fc1.bias" in shapes,
        **_norm_facts(set(shapes), parts.settings.get("decoder_normalize_before")),
    }


def _norm_facts(names: Set[str], said: object) -> dict[str, bool]:
    """Where the norms are: a final norm with weights tells that they come before; of norms without any only `said` does."""
    affine, has_norm = "layers.0.final_layer_norm.weight" in names, "final_layer_norm.weight" in names
    before = said if isinstance(said, bool) and not has_norm else has_norm
    if not affine:
        return {
            "layer_norm_elementwise_affine": False,
            **({"do_layer_norm_before": said} if type(said) is bool else {}),
        }
    return {
        "layer_norm_elementwise_affine": True,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not has_norm,
    }


def _tokenizer(
    folder: Path, files: Mapping[str, bytes], config: Mapping[str, Any], options: OpenOptions
) -> Tokenizer | None:
    if options.skip_tokenizer:
        return None
    return read_files(files, config, folder) if options.tokenizer is None else open_tokenizer(options.tokenizer)


def _side_files(folder: Path, beside: Beside) -> dict[str, bytes]:
    """metaseq's own files as transformers has them, or, where smelt wrote the folder, those that it had."""
    if beside.kept is None:
        others = {name: content for name, content in beside.side_files.items() if name not in (VOCAB, DICTIONARY)}
        return {**tokenizer_files(folder), **others}
    again = {name: (folder / ALIASES[name]).read_bytes() for name in ALIASES if (folder / ALIASES[name]).is_file()}
    return {name: content for name, content in {**again, **beside.side_files}.items() if name in beside.listed}


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """vocab.json, merges.txt and tokenizer_config.json as transformers has them; empty without metaseq's two files.

    With a dict.txt also that file and, where it gives the pieces other ids, metaseq's own gpt2-vocab.json.

    They are sought in the folder and its parent. FormatError where they are not what they should be.
    """
    place = next((at for at in (folder, folder.parent) if (at / VOCAB).is_file() and (at / MERGES).is_file()), None)
    if place is None:
        return {}
    ids = read_json(place / VOCAB)
    if not all(type(id_) is int for id_ in ids.values()):
        raise FormatError(f"{place / VOCAB}: wanted an object of texts and their ids")
    dictionary = next((at / DICTIONARY for at in (place, folder) if (at / DICTIONARY).is_file()), None)
    vocab = original = (place / VOCAB).read_bytes()
    if [ids.get(text) for text in SPECIAL] != [0, 1, 2, 3]:
        if dictionary is None:
            raise FormatError(f"{place / VOCAB}: does not begin with {' '.join(SPECIAL)}: put dict.txt beside it")
        vocab = json.dumps(_in_order_of(dictionary, ids), ensure_ascii=False).encode()
    settings = {
        "add_bos_token": True,
        "add_prefix_space": False,
        "bos_token": "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "</s>",
        "tokenizer_class": "GPT2Tokenizer",
    }
    return {
        "vocab.json": vocab,
        "merges.txt": (place / MERGES).read_bytes(),
        "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode(),
        **({} if dictionary is None else {DICTIONARY: dictionary.read_bytes()}),
        **({} if vocab is original else {VOCAB: original}),
    }


def _in_order_of(dictionary: Path, ids: Mapping[str, int]) -> dict[str, int]:
    """{text: row}: line n of dict.txt ("<id in gpt2-vocab.json> <count>") is row n + 4; fillers keep their own names."""
    texts = {id_: text for text, id_ in ids.items()}
    found = {text: row for row, text in enumerate(SPECIAL)}
    for number, line in enumerate(dictionary.read_text(encoding="utf-8").splitlines()):
        symbol = line.rpartition(" ")[0]
        text = texts.get(int(symbol)) if symbol.isascii() and symbol.isdigit() else symbol
        if not text or text in found:
            raise FormatError(
                f"{dictionary}: line {number + 1}, {quoted(line)}, is no piece of gpt2-vocab.json, or a second"
            )
        found[text] = len(found)
    return found
