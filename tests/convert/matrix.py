"""The round-trip matrix: every path A -> B -> C -> A through the dialects of a model, and what is equal at its end.

    released   the folder as its makers wrote it: by torch.save, by transformers
    Meta       one shard, and two                       GGUF    one file, and in parts
    safetensors   one file, and in shards               .bin    one file, and in shards: a source alone

`measure(name, folder)` walks every path of three conversions that begins and ends in the same dialect, neighbours being
different forms, and says what its two ends share, the most that holds first:

    files       every file, byte for byte, but the manifest, which names another source
    contents    tensors (shape, dtype, bytes), facts (each value of params.json or config.json), the tokenizer's files
                byte for byte, token ids of the hard texts: for ends that two programs wrote

and, of every start converted to safetensors, whether transformers computes the logits of the released model, bit for bit
in the stored dtype; of Meta's files, Meta's forward in float64 is what its first logits are held to.

A conversion of the same bytes to the same form is done once: paths share their steps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from meta_checkpoints import meta_forward, read_meta, write_meta
from safetensors.torch import load_file
from smelt.api import convert, open_checkpoint
from smelt.convert.options import OpenOptions
from smelt.convert.side_files import SIDE_FILES
from smelt.convert.tokenizer_proof import HARD_TEXTS
from smelt.convert.tokenizer_tiktoken import N_SPECIAL
from smelt.errors import ModelError

from . import small_models
from .byte_level import trained_ranks
from .clients import transformers_logits
from .small_models import N_RANKS, TOKENS

N_SHARDS = 2
PART = 60_000  # bytes of tensors in a part
CONTEXT = 128


@dataclass(frozen=True)
class Form:
    """One way to write a model: a dialect, whole or divided."""

    dialect: str
    divided: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """What `convert` is told."""
        if self.dialect == "meta":
            return {"to": "meta", "n_shards": N_SHARDS if self.divided else 1}
        if self.dialect == "metaseq":
            return {"to": "metaseq"}
        return {"to": self.dialect, "max_shard_nbytes": PART if self.divided else None}

    def place(self, folder: Path) -> Path:
        """Where a model of this form lies in `folder`; the same name whatever it is made of."""
        return folder / ("m.gguf" if self == Form("gguf") else "m")


DIALECTS = ("meta", "metaseq", "safetensors", "gguf")
META, META_SHARDS = Form("meta"), Form("meta", divided=True)
HF, HF_SHARDS = Form("safetensors"), Form("safetensors", divided=True)
GGUF, GGUF_PARTS = Form("gguf"), Form("gguf", divided=True)
METASEQ = Form("metaseq")
BIN, BIN_SHARDS = Form("bin"), Form("bin", divided=True)


@dataclass(frozen=True)
class Model:
    """A row of the matrix. `released` writes it as its makers did, in the form `end`; `forms` are what smelt writes of it.

    small  the model's name in `small_models`, where transformers writes it
    """

    released: Callable[[Path], object]
    end: Form
    forms: tuple[Form, ...]
    small: str | None = None


def _meta(**settings: Any) -> Model:
    """A LLaMA in Meta's format; "ranks" for a tokenizer is a small tiktoken file."""
    ranks = settings.pop("ranks", False)
    forms = (META, META_SHARDS, HF, HF_SHARDS, GGUF, GGUF_PARTS)

    def write(folder: Path) -> None:
        if not ranks:
            write_meta(folder, n_shards=N_SHARDS, **settings)
            return
        write_meta(folder, n_shards=N_SHARDS, vocab=N_RANKS + N_SPECIAL, tokenizer=None, embedding_dim=0, **settings)
        (folder / "tokenizer.model").write_bytes(trained_ranks(N_RANKS))

    return Model(write, META_SHARDS, forms)


def _hugging_face(name: str, dtype: torch.dtype = torch.bfloat16, *more: Form) -> Model:
    """What transformers writes; `more` are forms beside the four that every family has."""
    forms = (*more, HF, HF_SHARDS, GGUF, GGUF_PARTS)
    return Model(lambda folder: small_models.write(folder, name, dtype), HF, forms, name)


LLAMA3_THETA = 500000.0
_THETA = {"rope_theta": LLAMA3_THETA}
_SCALED = _THETA | {"use_scaled_rope": True}
MODELS = {
    "LLaMA 1": _meta(dtype=torch.float16, tokenizer="parent", shared_storage=True),
    "Llama 2": _meta(dtype=torch.bfloat16, n_kv_heads=2),
    "Code Llama": _meta(dtype=torch.bfloat16, n_kv_heads=2, vocab=528, extra_params={"rope_theta": 1000000.0}),
    "Llama 3": _meta(dtype=torch.bfloat16, n_kv_heads=2, ranks=True, extra_params=_THETA, rope_freqs=False),
    "Llama 3.1": _meta(dtype=torch.bfloat16, n_kv_heads=2, ranks=True, extra_params=_SCALED, rope_freqs=False),
    "Llama 3.2": _meta(
        dtype=torch.bfloat16, n_kv_heads=2, ranks=True, extra_params=_SCALED, rope_freqs=False, tied=True
    ),
    "Llama 2, transformers'": _hugging_face("llama", torch.float16, META, META_SHARDS),
    "Llama 3.2, transformers'": _hugging_face("llama 3.2, 8192 tokens, tied", torch.bfloat16, META, META_SHARDS),
    "LLaMA, linear": _hugging_face("llama, linear"),
    "LLaMA, yarn": _hugging_face("llama, yarn"),
    "LLaMA, longrope": _hugging_face("llama, longrope"),
    "LLaMA, dynamic": _hugging_face("llama, dynamic"),
    "LLaMA, biases": _hugging_face("llama, biases"),
    "Mistral": _hugging_face("mistral"),
    "Mixtral": _hugging_face("mixtral"),
    "Qwen 2": _hugging_face("qwen2"),
    "Qwen 2, yarn": _hugging_face("qwen2, yarn"),
    "Qwen 3": _hugging_face("qwen3"),
    "Gemma": _hugging_face("gemma"),
    "Gemma 2": _hugging_face("gemma2"),
    "Gemma 3": _hugging_face("gemma3, linear"),
    "BLOOM": _hugging_face("bloom", torch.float16),
    "OPT": _hugging_face("opt", torch.float16, METASEQ),
    "OPT-350M": _hugging_face("opt, 350M", torch.float16, METASEQ),
}


@dataclass(frozen=True)
class Made:
    """A model somewhere on disk, in a form, and the digest of all its files."""

    path: Path
    form: Form
    digest: str


@dataclass
class Walk:
    """Conversions of one model, each done once."""

    folder: Path
    made: dict[tuple[str, Form], Made] = field(default_factory=dict)

    def new(self) -> Path:
        """A folder for the next model."""
        path = self.folder / f"{len(list(self.folder.iterdir()))}"
        path.mkdir(parents=True)
        return path

    def to(self, source: Made, form: Form) -> Made:
        """`source` converted."""
        if (source.digest, form) not in self.made:
            path = form.place(self.new())
            options = OpenOptions(context_length=CONTEXT if source.form.dialect == "meta" else None)
            convert(source.path, path, options=options, threads=1, device="cpu", **form.arguments)
            self.made[source.digest, form] = Made(path, form, digest(path))
        return self.made[source.digest, form]


def files_of(path: Path) -> dict[str, bytes]:
    """Every file of a model by name, but the manifest."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in found if not file.name.endswith("smelt.json")}


def digest(path: Path) -> str:
    """Of every file's name and bytes, but the manifest's."""
    total = hashlib.sha256()
    for name, content in files_of(path).items():
        total.update(f"{name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def contents(path: Path) -> dict[str, Any]:
    """What two programs that wrote the same model agree about."""
    model = open_checkpoint(path, OpenOptions(context_length=CONTEXT) if is_meta(path) else None)
    tokenizer = model.tokenizer
    found: dict[str, Any] = {
        "tensors": {
            name: (tensor.shape, tensor.dtype.name, hashlib.sha256(tensor.read(0, tensor.matrix_shape[0])).hexdigest())
            for name, tensor in model.tensors.items()
        },
        "facts": model.config,
        "params": (path / "params.json").read_bytes() if is_meta(path) else None,
        "config": as_transformers(path) if (path / "config.json").is_file() else None,
    }
    if tokenizer is not None:
        bare = replace(tokenizer, files={})  # the pieces by themselves
        found["ids"] = [tokenizer.encode(text) for text in HARD_TEXTS]
        found["ids of the pieces"] = [bare.encode(text) for text in HARD_TEXTS]
        found["pieces"] = (tokenizer.pieces, tokenizer.merges, tokenizer.special_ids, tokenizer.chat_template)
        found["tokenizer"] = {name: content for name, content in tokenizer.files.items() if name in SIDE_FILES}
        found["model file"] = tokenizer.model_file() if is_meta(path) else None
    return found


def as_transformers(folder: Path) -> dict[str, Any]:
    """config.json as transformers reads it, but its own version, and the dtype that it was loaded in."""
    config = small_models.transformers.AutoConfig.from_pretrained(folder).to_dict()
    return {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}


def is_meta(path: Path) -> bool:
    """Whether a folder holds Meta's files."""
    return (path / "params.json").is_file()


def as_bin(source: Path, folder: Path, *, divided: bool) -> None:
    """The safetensors folder `source` with torch's .bin files in place of its own."""
    folder.mkdir(parents=True)
    state = load_file(source / "model.safetensors")
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "smelt.json":
            (folder / file.name).write_bytes(file.read_bytes())
    if not divided:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = [f"pytorch_model-{number:05d}-of-00002.bin" for number in (1, 2)]
    where = {name: names[number % 2] for number, name in enumerate(state)}
    for file in names:
        torch.save({name: tensor for name, tensor in state.items() if where[name] == file}, folder / file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def starts(name: str, walk: Walk) -> Iterator[tuple[str, Made, Form]]:
    """(kind of start, the model there, the form its paths end in) of every path of `name`."""
    model = MODELS[name]
    released = model.end.place(walk.new() / "released")
    model.released(released)
    source = Made(released, model.end, digest(released))
    yield "released", source, model.end
    for form in model.forms:
        yield form.dialect, walk.to(source, form), form
    whole = walk.to(source, HF)
    for form in (BIN, BIN_SHARDS):
        place = form.place(walk.new())
        as_bin(whole.path, place, divided=form.divided)
        yield "bin", Made(place, form, digest(place)), HF
    if METASEQ in model.forms:  # nobody else writes OPT as GGUF
        return
    bare = GGUF.place(walk.new())
    small_models.rewritten(walk.to(source, GGUF).path, bare, "smelt.")
    yield "others", Made(bare, GGUF, digest(bare)), GGUF


def paths(model: Model, end: Form) -> list[tuple[Form, Form]]:
    """What lies between the two ends: B and C of A -> B -> C -> A."""
    return [(b, c) for b, c in itertools.product(model.forms, model.forms) if end not in (b, c) and b != c]


def measure(name: str, folder: Path) -> dict[str, str]:
    """{kind of start: "24 files"}: how many paths there are and what is equal at their ends; "logits": see above."""
    walk, found, logits = Walk(folder), {}, Logits()
    results: dict[str, Counter[str]] = {}
    for kind, start, end in starts(name, walk):
        logits.after(kind, start, walk)
        # ends that smelt wrote are compared file by file; .bin's with the safetensors that they were made of
        own = {"released": None, "bin": walk.to(start, HF), "others": walk.to(start, GGUF)}.get(kind, start)
        counts = results.setdefault(kind, Counter())
        for b, c in paths(MODELS[name], end):
            back = walk.to(walk.to(walk.to(start, b), c), end)
            if own is not None and back.digest == own.digest:
                counts["files"] += 1
            else:
                counts[shared(start.path, back.path, found)] += 1
    cells = {kind: ", ".join(f"{n} {what}" for what, n in counts.items()) for kind, counts in results.items()}
    missing = {dialect: refused(walk, dialect) for dialect in DIALECTS if dialect not in cells}
    return {**cells, **missing, "logits": logits.said()}


@dataclass
class Logits:
    """transformers' logits of the released model, and how many conversions to safetensors kept them."""

    released: torch.Tensor | None = None
    of: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def after(self, kind: str, start: Made, walk: Walk) -> None:
        """Compare the model that `start` becomes as safetensors; the first start is the released one."""
        if self.released is None:
            self.released = self._released(start, walk)
        if kind == "others":  # their norms are F32
            return
        end = walk.to(start, HF)
        if end.digest not in self.of:
            self.of[end.digest] = transformers_logits(end.path, TOKENS, "auto")
        self.counts["equal" if torch.equal(self.of[end.digest], self.released) else "different"] += 1

    def _released(self, start: Made, walk: Walk) -> torch.Tensor:
        if not is_meta(start.path):
            return transformers_logits(start.path, TOKENS, "auto")
        path = walk.to(start, HF).path
        is_llama3 = json.loads((start.path / "params.json").read_text()).get("rope_theta") == LLAMA3_THETA
        state, params = read_meta(start.path, embedding_dim=0 if is_llama3 else 1)
        expected = meta_forward({key: value.double() for key, value in state.items()}, params, TOKENS)
        assert (transformers_logits(path, TOKENS).double() - expected).abs().max() < 1e-4
        return transformers_logits(path, TOKENS, "auto")

    def said(self) -> str:
        """The cell."""
        dtype = str(self.released.dtype).removeprefix("torch.") if self.released is not None else ""
        return ", ".join(f"{n} {what}" for what, n in self.counts.items()) + f", {dtype}"


def shared(first: Path, second: Path, known: dict[Path, dict[str, Any]]) -> str:
    """ "contents", or what of them differs."""
    one, two = (known.setdefault(path, contents(path)) for path in (first, second))
    differing = [key for key in one if not _same(one[key], two.get(key), more=key == "config")]
    return f"without {' and '.join(differing)}" if differing else "contents"


def _same(one: Any, two: Any, *, more: bool) -> bool:
    """Equal; with `more` the second may say what the first leaves out or null, as a config may a head's size."""
    if more and isinstance(one, dict) and isinstance(two, dict):
        return all(two.get(key) == value for key, value in one.items() if value is not None)
    return bool(one == two)


def refused(walk: Walk, dialect: str) -> str:
    """ "refused" where smelt says that the model has no form in `dialect`."""
    source = next(iter(walk.made.values()))
    try:
        walk.to(source, Form(dialect))
    except ModelError:
        return "refused"
    return "written"
