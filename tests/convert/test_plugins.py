"""Formats, families and schemes of other packages: the example package installed and used, and what a broken one says."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meta_checkpoints import write_meta
from smelt.api import convert, diff, open_checkpoint, quantize, quantized_plan, validate, verify
from smelt.convert import architecture, plugins
from smelt.convert.inspect import inspect
from smelt.convert.options import OpenOptions
from smelt.convert.run import RunOptions, run
from smelt.convert.writers import target_format
from smelt.errors import ModelError, PluginError, UsageError
from smelt.formats.gguf import open_gguf
from smelt.quantize.choose import ChooseOptions, find_scheme
from smelt.validate.options import ValidateOptions
from smelt.validate.weights import compare_weights, same_dtype

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
OPTIONS = OpenOptions(context_length=128)
PURE = ChooseOptions(pure=True)
NAMES = {
    "model.embed_tokens": "trunk.embedding",
    "model.norm": "trunk.norm",
    "model.layers": "trunk.blocks",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.gate_proj": "mixer.open",
    "mlp.up_proj": "mixer.wide",
    "mlp.down_proj": "mixer.close",
    "input_layernorm": "before_attention",
    "post_attention_layernorm": "before_mixer",
}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path with the example package as pip installs it; nothing is fetched."""
    source, target = tmp_path_factory.mktemp("plugin") / "source", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    if importlib.util.find_spec("setuptools") is None:  # what pip would have made with it
        return unpacked(source, target)
    words = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *words, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def unpacked(source: Path, target: Path) -> Path:
    """The package and the metadata that an installer makes of its pyproject.toml."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    shutil.copytree(source / "smelt_example", target / "smelt_example")
    metadata = target / f"smelt_example_plugin-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = (
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    )
    (metadata / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    return target


def forget() -> None:
    """What plugins there are is asked once a process."""
    for cached in (plugins._points, plugins._loaded, architecture.plugin_families):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.fixture(scope="session")
def mimas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaMA under Mimas' names, as its makers would publish it; beside it the LLaMA, in `llama`."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("mimas")
    write_meta(folder / "meta", n_kv_heads=2)
    convert(folder / "meta", folder / "llama", options=OPTIONS)
    shutil.copytree(folder / "llama", folder / "mimas")
    state = load_file(folder / "llama" / "model.safetensors")
    save_file({renamed(name): tensor for name, tensor in state.items()}, folder / "mimas" / "model.safetensors")
    config = json.loads((folder / "llama" / "config.json").read_text())
    config |= {"architectures": ["MimasForCausalLM"], "model_type": "mimas"}
    for theirs, ours in (
        ("depth", "num_hidden_layers"),
        ("width", "hidden_size"),
        ("mixer_width", "intermediate_size"),
    ):
        config[theirs] = config.pop(ours)
    (folder / "mimas" / "config.json").write_text(json.dumps(config))
    (folder / "mimas" / "smelt.json").unlink()
    return folder / "mimas"


def renamed(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def smelt(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-m", "smelt", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_the_command_line_uses_all_three(site: Path, mimas: Path, tmp_path: Path) -> None:
    def document(*words: object, code: int = 0) -> Any:
        found = smelt(site, *words, "--json")
        assert found.returncode == code, found.stderr
        return json.loads(found.stdout)

    seen = document("inspect", mimas)
    assert (seen["format"], seen["architecture"]) == ("safetensors", "mimas")
    made = document("convert", mimas, tmp_path / "npy", "--to", "npy-folder")
    assert {"tensors.json", "00000.npy", "config.json", "tokenizer.json"} <= {Path(name).name for name in made["files"]}
    assert document("inspect", tmp_path / "npy")["format"] == "npy-folder"
    document("convert", tmp_path / "npy", tmp_path / "m.gguf")
    small = document("quantize", tmp_path / "m.gguf", tmp_path / "int8", "--scheme", "int8-row")
    assert small["schemes"] == {"int8-row": 14, "f16": 7}
    assert document("diff", mimas, tmp_path / "int8", "--tolerance", "1%")["equal"]
    assert not document("diff", mimas, tmp_path / "int8", code=1)["equal"]
    assert document("verify", tmp_path / "int8")["verdict"] == "ok"


def test_a_container_holds_what_safetensors_holds(installed: Path, mimas: Path, tmp_path: Path) -> None:
    convert(mimas, tmp_path / "npy", to="npy-folder")
    index = json.loads((tmp_path / "npy" / "tensors.json").read_text())
    file, dtype = index["tensors"]["trunk.blocks.1.attention.query.weight"]
    held = np.load(tmp_path / "npy" / file)
    assert (held.shape, held.dtype, dtype) == ((64, 64), np.float16, "F16")
    convert(tmp_path / "npy", tmp_path / "back")
    convert(mimas, tmp_path / "straight")
    for path in (tmp_path / "straight").iterdir():
        if path.name != "smelt.json":
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    assert diff(mimas, tmp_path / "npy").equal
    assert verify(tmp_path / "npy").verdict == "ok"
    with open(tmp_path / "npy" / file, "r+b") as damaged:
        damaged.seek(-3, 2)
        damaged.write(b"x")
    assert verify(tmp_path / "npy").verdict == "bad"


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_a_container_holds_every_float_dtype(installed: Path, mimas: Path, tmp_path: Path, dtype: str) -> None:
    convert(mimas, tmp_path / "npy", to="npy-folder", dtype=dtype)
    convert(mimas, tmp_path / "hf", dtype=dtype)
    assert diff(tmp_path / "hf", tmp_path / "npy").equal


def test_a_family_of_a_known_kind_is_that_kind_in_gguf(installed: Path, mimas: Path, tmp_path: Path) -> None:
    convert(mimas, tmp_path / "m.gguf")
    convert(mimas.parent / "llama", tmp_path / "l.gguf")
    found, wanted = open_gguf(tmp_path / "m.gguf"), open_gguf(tmp_path / "l.gguf")
    assert found.metadata["general.architecture"] == "llama"
    assert {name: tensor.read(0, 1).tobytes() for name, tensor in found.tensors.items()} == {
        name: tensor.read(0, 1).tobytes() for name, tensor in wanted.tensors.items()
    }
    assert open_checkpoint(tmp_path / "m.gguf").architecture == "mimas"
    assert open_checkpoint(tmp_path / "l.gguf").architecture == "llama"
    assert diff(mimas, tmp_path / "m.gguf").equal


def test_without_its_package_a_file_is_what_others_see_in_it(
    site: Path, mimas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as inside:
        inside.syspath_prepend(str(site))
        convert(mimas, tmp_path / "m.gguf")
        quantize(mimas, tmp_path / "int8", "int8-row")
        convert(mimas, tmp_path / "npy", to="npy-folder")
    forget()
    model = open_checkpoint(tmp_path / "m.gguf")
    assert (model.architecture, model.config["model_type"]) == ("llama", "llama")
    with pytest.raises(ModelError, match="'mimas' is not known to smelt; known: bloom"):
        open_checkpoint(mimas)
    with pytest.raises(Exception, match="is it the model's folder"):
        open_checkpoint(tmp_path / "npy")
    with pytest.raises(UsageError, match="smelt writes meta, metaseq, safetensors, gguf"):
        target_format(tmp_path / "x", "npy-folder")
    with pytest.raises(UsageError, match="--scheme int8-row: unknown"):
        find_scheme("int8-row")


def test_what_a_scheme_stores_is_decoded_wherever_it_is_read(installed: Path, mimas: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    quantize(mimas, tmp_path / "int8", "int8-row")
    state = load_file(tmp_path / "int8" / "model.safetensors")
    name = "trunk.blocks.0.mixer.wide.weight"
    decoded = state[name].astype(np.float32) * state[f"{name}_scale"]
    model = open_checkpoint(tmp_path / "int8")
    assert np.array_equal(model.tensors[name].load_float32(), decoded)
    assert np.array_equal(model.tensors[name].read_float32(7, 9), decoded[7:9])
    listed = next(tensor for tensor in inspect(tmp_path / "int8").tensors if tensor.name == name)
    assert (listed.dtype, listed.nbytes) == ("int8-row", decoded.size + 4 * len(decoded))
    assert any("read as float32" in note for note in model.notes)
    convert(tmp_path / "int8", tmp_path / "f32.gguf", dtype="f32")
    assert diff(tmp_path / "int8", tmp_path / "f32.gguf").equal
    with pytest.raises(UsageError, match=r"is quantized already \(int8-row\)"):
        quantize(tmp_path / "int8", tmp_path / "q.gguf", "q8_0")
    result = quantize(tmp_path / "int8", tmp_path / "q.gguf", "q8_0", allow_requantize=True)
    assert "requantized from int8-row" in result.notes
    plan = quantized_plan(mimas, tmp_path / "pure", "int8-row", choices=PURE)
    assert run(plan, RunOptions(3, slab=64)).schemes == {"int8-row": 16, "f16": 5}
    again = load_file(tmp_path / "pure" / "model.safetensors")  # slabs of a row show as little as whole tensors
    assert all(np.array_equal(again[key], state[key]) for key in (name, f"{name}_scale"))


def test_a_plugins_scheme_is_compared_by_its_bits(installed: Path, mimas: Path, tmp_path: Path) -> None:
    quantize(mimas, tmp_path / "int8", "int8-row", choices=PURE)
    convert(mimas, tmp_path / "f32", dtype="f32")
    reference, candidate = open_checkpoint(tmp_path / "f32"), open_checkpoint(tmp_path / "int8")
    (found,) = compare_weights(reference, [candidate])
    drifts = {drift.name: drift for drift in found.tensors if drift.dtype == "int8-row"}
    assert len(drifts) == 16 and not any(drift.same_dtype for drift in drifts.values())
    assert all(8 < drift.bits_per_weight < 9 and 0 < (drift.relative_error or 1) < 0.01 for drift in drifts.values())
    assert not same_dtype(reference, candidate) and same_dtype(reference, reference)


@pytest.mark.long
def test_a_plugins_scheme_is_judged_by_its_bits(installed: Path, tiny_llama: Path, tmp_path: Path) -> None:
    options = OpenOptions(context_length=512)
    quantize(tiny_llama, tmp_path / "int8", "int8-row", options=options, choices=PURE)
    assert 8 < open_checkpoint(tmp_path / "int8").bits_per_weight < 8.5
    measure = ValidateOptions(n_ctx=64, chunks=3, threads=1, noise_floor=False, generate=0)
    report = validate(tiny_llama, [tmp_path / "int8"], Path(__file__).read_text()[:2000], measure, options)
    candidate = report.document()["candidates"][0]
    assert 8 < candidate["bits_per_weight"] < 8.5
    failed = {gate["name"] for gate in candidate["gates"] if not gate["passed"]}
    assert 0 < candidate["kld"]["mean"] < 0.01 and failed <= {"perplexity"}  # so few windows leave that undecided


@pytest.mark.parametrize(
    ("target", "scheme", "choices", "says"),
    [
        ("x.gguf", "int8-row", {}, "name a folder"),
        ("x", "q8_0", {}, r"name a target that ends in \.gguf"),
        ("x", "int8-row", {"tensor_types": (("attn_v", "q8_0"),)}, "--tensor-type: speaks of GGUF's types"),
        ("x", "int9-row", {}, "it makes .*, int8-row"),
    ],
)
def test_what_a_plugins_scheme_cannot_be_asked_is_a_usage_error(
    installed: Path, mimas: Path, tmp_path: Path, target: str, scheme: str, choices: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        quantize(mimas, tmp_path / target, scheme, choices=ChooseOptions(**choices))
    assert not (tmp_path / target).exists()


def test_stored_tensors_that_are_not_the_schemes_are_refused(installed: Path, mimas: Path, tmp_path: Path) -> None:
    quantize(mimas, tmp_path / "int8", "int8-row")
    path = tmp_path / "int8" / "config.json"
    config = json.loads(path.read_text())
    shapes = config["quantization_config"]["tensors"]
    name = min(shapes)
    for settings, says in (
        ({"quant_method": "gptq"}, "'gptq'.*does not read this dialect"),
        ({"scheme": "int4-row"}, "no installed package brings .installed: int8-row"),
        ({"scheme": None}, "names no scheme"),
        ({"tensors": {**shapes, name: [1, -2]}}, "no shapes"),
        ({"tensors": {**shapes, name: [3, 3]}}, "the scheme int8-row wants I8"),
    ):
        path.write_text(json.dumps({**config, "quantization_config": {**config["quantization_config"], **settings}}))
        with pytest.raises(ModelError, match=says):
            open_checkpoint(tmp_path / "int8")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Installs a package of one module: (its name, the entry points' text, the module's)."""

    def install(name: str, entries: str, code: str) -> None:
        folder = tmp_path / f"site-{name}"
        metadata = folder / f"{name}-2.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
        (metadata / "entry_points.txt").write_text(entries)
        (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, name, raising=False)

    return install


SCHEME = """
import numpy as np
from smelt.dtypes import DTYPES
from smelt.kernels.scheme import Scheme
def stored(shape): return {"": (shape, DTYPES["U8"])}
def encode(rows, importance): return {"": rows.astype(np.uint8)}
def decode(found): return found[""].astype(np.float32)
VALUE = Scheme(NAME, stored, encode, decode)
"""


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("odd", "import nothing_like_it", "cannot be loaded: ModuleNotFoundError: .No module named .nothing_like_it"),
        ("odd", "1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("odd", "raise SystemExit(3)", "cannot be loaded: SystemExit"),
        ("odd", "OTHER = 1", "cannot be loaded: AttributeError"),
        ("odd", "VALUE = 1", r"gives a int, wanted a smelt\.kernels\.scheme\.Scheme"),
        ("odd", SCHEME.replace("NAME", "'even'"), "its value calls itself 'even'"),
        ("odd", SCHEME.replace("NAME, stored", "'odd', 1"), "stored is no function"),
        ("q8_0", SCHEME.replace("NAME", "'q8_0'"), "smelt has a q8_0 of its own"),
    ],
)
def test_a_plugin_that_is_none_is_one_clear_error(
    package: Callable[[str, str, str], None], name: str, code: str, says: str
) -> None:
    package("oddities", f"[smelt.schemes]\n{name} = oddities:VALUE\n", code)
    with pytest.raises(PluginError, match=says) as caught:
        find_scheme(name)
    assert str(caught.value).startswith(f"oddities 2.0, entry point smelt.schemes: {name} = oddities:VALUE: ")
    assert "\n" not in str(caught.value)
    assert find_scheme("q4_0").name == "Q4_0"  # what has nothing to do with it goes on


def test_two_plugins_of_one_name_are_both_named(package: Callable[[str, str, str], None]) -> None:
    for name in ("first", "second"):
        package(name, f"[smelt.schemes]\nodd = {name}:VALUE\n", SCHEME.replace("NAME", "'odd'"))
    with pytest.raises(PluginError, match=r"first 2\.0, .* and second 2\.0, .* have the same name: uninstall one"):
        find_scheme("odd")


def test_the_command_line_says_it_in_a_line(
    package: Callable[[str, str, str], None], mimas: Path, tmp_path: Path
) -> None:
    package("oddities", "[smelt.formats]\ngguf = oddities:VALUE\n", "VALUE = 1")
    found = smelt(tmp_path / "site-oddities", "convert", mimas.parent / "llama", tmp_path / "x.gguf", "--to", "gguf")
    assert found.returncode == 3
    assert found.stderr == (
        "smelt: error: oddities 2.0, entry point smelt.formats: gguf = oddities:VALUE: smelt has a gguf of its own: rename the "
        "plugin's, or uninstall it\n"
    )


FORMAT = """
from smelt.formats.checkpoint import FileLayout
from smelt.formats.container import Format
def claims(path): return CLAIMS
def open_it(path): return OPENED
def layout(specs, words): return LAYOUT
VALUE = Format("odd", claims, open_it, layout)
"""


def a_format(claims: str = "True", opened: str = "None", layout: str = "{}") -> str:
    return FORMAT.replace("CLAIMS", claims).replace("OPENED", opened).replace("LAYOUT", layout)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (a_format(claims="path.nothing"), "fails when it looks at .*: AttributeError"),
        (a_format(opened="1 / 0"), "fails when it opens .*: ZeroDivisionError"),
        (a_format(), "open gave NoneType, wanted a Checkpoint"),
    ],
)
def test_a_format_that_fails_says_whose_it_is(
    package: Callable[[str, str, str], None], tmp_path: Path, code: str, says: str
) -> None:
    package("oddities", "[smelt.formats]\nodd = oddities:VALUE\n", code)
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "weights.odd").write_bytes(b"odd")
    with pytest.raises(PluginError, match=says):
        open_checkpoint(tmp_path / "thing")


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("{}", "has not one slot for each tensor"),
        ("{'w': FileLayout(10, (), {spec.name: 0 for spec in specs})}", "pieces that overlap, or end beyond the file"),
        (
            "{'config.json': FileLayout(1 << 30, (), {spec.name: i << 20 for i, spec in enumerate(specs)})}",
            "smelt writes beside the weights",
        ),
        ("1 / 0", "fails when it lays out a target: ZeroDivisionError"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_before_anything_is_written(
    package: Callable[[str, str, str], None], mimas: Path, tmp_path: Path, layout: str, says: str
) -> None:
    package("oddities", "[smelt.formats]\nodd = oddities:VALUE\n", a_format(layout=layout))
    with pytest.raises(PluginError, match=says):
        convert(mimas.parent / "llama", tmp_path / "out", to="odd")
    assert not (tmp_path / "out").exists()


def test_a_format_that_is_only_read_says_so(
    package: Callable[[str, str, str], None], mimas: Path, tmp_path: Path
) -> None:
    code = a_format().replace(", layout)", ")")
    package("oddities", "[smelt.formats]\nodd = oddities:VALUE\n", code)
    with pytest.raises(UsageError, match="its plugin only reads this format"):
        convert(mimas.parent / "llama", tmp_path / "out", to="odd")


def test_two_formats_that_claim_one_path_are_both_named(
    package: Callable[[str, str, str], None], tmp_path: Path
) -> None:
    for name in ("odd", "even"):
        package(f"of_{name}", f"[smelt.formats]\n{name} = of_{name}:VALUE\n", a_format().replace('"odd"', f'"{name}"'))
    (tmp_path / "thing.odd").write_bytes(b"odd")
    with pytest.raises(PluginError, match=r"claimed by two formats: even .of_even 2\.0.* and odd .of_odd 2\.0"):
        open_checkpoint(tmp_path / "thing.odd")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("rows.astype(np.uint8)[1:]", "encode gave .*, wanted uint8 rows"),
        ("rows", "encode gave .*float32"),
        ("rows.nothing", "fails when it encodes: AttributeError"),
    ],
)
def test_a_scheme_that_encodes_otherwise_than_it_says_leaves_nothing(
    package: Callable[[str, str, str], None], mimas: Path, tmp_path: Path, change: str, says: str
) -> None:
    code = SCHEME.replace("NAME", "'odd'").replace("rows.astype(np.uint8)", change)
    package("oddities", "[smelt.schemes]\nodd = oddities:VALUE\n", code)
    with pytest.raises(PluginError, match=says):
        quantize(mimas.parent / "llama", tmp_path / "out", "odd")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stored", "says"),
    [("{}", "not stored as matrices of as many rows"), ('{"": ((1, 1), DTYPES["U8"])}', "not stored as matrices")],
)
def test_a_scheme_without_a_row_for_each_row_is_refused(
    package: Callable[[str, str, str], None], mimas: Path, tmp_path: Path, stored: str, says: str
) -> None:
    code = SCHEME.replace("NAME", "'odd'").replace('{"": (shape, DTYPES["U8"])}', stored)
    package("oddities", "[smelt.schemes]\nodd = oddities:VALUE\n", code)
    with pytest.raises(PluginError, match=says):
        quantize(mimas.parent / "llama", tmp_path / "out", "odd")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('model_type="llama"', "model_type llama is that of smelt's llama already"),
        ("rows=FAMILY.rows[1:]", "no row has the role token_embd"),
        ('rows=("a",)', "not all of the class Row"),
        ('rows=(*FAMILY.rows[:-1], replace(FAMILY.rows[-1], canonical="head"))', "not called lm_head.weight"),
    ],
)
def test_a_family_that_cannot_be_is_refused(
    package: Callable[[str, str, str], None], mimas: Path, change: str, says: str
) -> None:
    code = (
        "from dataclasses import replace\nfrom smelt.convert.architectures.mistral import FAMILY\n"
        f'VALUE = replace(FAMILY, **{{"name": "odd", "model_type": "odd", **dict({change})}})\n'
    )
    package("oddities", "[smelt.architectures]\nodd = oddities:VALUE\n", code)
    with pytest.raises(PluginError, match=says):
        open_checkpoint(mimas)


def test_nothing_is_looked_for_while_smelts_own_are_enough(
    mimas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_words: object) -> Any:
        raise AssertionError("the entry points were read")

    monkeypatch.setattr(plugins, "entry_points", refuse)
    llama = mimas.parent / "llama"
    inspect(llama)
    convert(llama, tmp_path / "m.gguf")
    assert diff(llama, tmp_path / "m.gguf").equal and verify(tmp_path / "m.gguf").verdict == "ok"
    with pytest.raises(AssertionError, match="were read"):
        open_checkpoint(mimas)


def test_help_reads_no_entry_points() -> None:
    code = "import sys, smelt.cli\nprint('importlib.metadata' in sys.modules)"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
