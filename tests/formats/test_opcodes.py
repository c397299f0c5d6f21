from __future__ import annotations

import ast
import contextlib
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import smelt
from hypothesis import given, settings
from hypothesis import strategies as st
from smelt.dtypes import DTYPES
from smelt.errors import FormatError, SmeltError, UnsafePickleError
from smelt.formats.opcodes import DEPTH, MEMO, OPCODES, PICKLE_NBYTES, STACK, read_pickle
from smelt.formats.torch_records import Global, InertObject, Policy, StorageRef, TensorRef

PROTO = b"\x80\x02"
WHERE = "model.pth: data.pkl"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind: str = "FloatStorage", key: str = "0", numel: int = 6, module: str = "torch") -> bytes:
    return b"(" + text("storage") + named(module, kind) + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(buffer: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], rest: bytes = b"") -> bytes:
    place = number(offset) + numbers(*shape) + numbers(*strides)
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + buffer + place + b"\x89}" + rest + b"tR"


def read(program: bytes, policy: Policy = Policy()) -> object:  # noqa: B008
    return read_pickle(program, WHERE, policy)


# What Python's own pickle would do with these is run a command, open a file or import a module.
CALL = b"(" + text("touch canary") + b"tR."
PAYLOADS = {
    "os.system by GLOBAL": (PROTO + named("os", "system") + CALL, "os.system"),
    "posix.system": (PROTO + named("posix", "system") + CALL, "posix.system"),
    "nt.system": (PROTO + named("nt", "system") + CALL, "nt.system"),
    "os.system by STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93" + CALL, "os.system"),
    "STACK_GLOBAL from the memo": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93" + CALL, "POP"),
    "INST": (PROTO + b"(" + text("touch canary") + b"ios\nsystem\n.", "os.system"),
    "OBJ": (PROTO + b"(" + named("os", "system") + text("touch canary") + b"o.", "os.system"),
    "OBJ on an allowed name": (PROTO + b"(" + named("collections", "OrderedDict") + b"o.", "OBJ"),
    "NEWOBJ": (PROTO + named("subprocess", "Popen") + b"(" + text("touch canary") + b"t\x81.", "subprocess.Popen"),
    "NEWOBJ on an allowed name": (PROTO + named("collections", "OrderedDict") + b")\x81.", "NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04" + named("collections", "OrderedDict") + b")}\x92.", "NEWOBJ_EX"),
    "BUILD with __setstate__": (
        PROTO + b"}" + b"}" + text("__setstate__") + named("os", "system") + b"sb" + text("touch canary") + b"b.",
        "os.system",
    ),
    "BUILD of a plain dict": (PROTO + b"}}b.", "BUILD"),
    "BUILD of an allowed class": (PROTO + named("collections", "OrderedDict") + b"}b.", "BUILD"),
    "EXT1": (PROTO + b"\x82\x01.", "EXT1"),
    "EXT2": (PROTO + b"\x83\x01\x00.", "EXT2"),
    "EXT4": (PROTO + b"\x84\x01\x00\x00\x00.", "EXT4"),
    "text PERSID": (PROTO + b"Pstorage\n.", "PERSID"),
    "nested in a tuple": (PROTO + b"((" + text("a") + named("os", "popen") + b"ttt.", "os.popen"),
    "as a dict key": (PROTO + b"}" + named("builtins", "eval") + b"Ns.", "builtins.eval"),
    "builtins.eval": (PROTO + named("builtins", "eval") + CALL, "builtins.eval"),
    "__builtin__.exec": (PROTO + named("__builtin__", "exec") + CALL, "__builtin__.exec"),
    "builtins.getattr": (PROTO + named("builtins", "getattr") + CALL, "builtins.getattr"),
    "builtins.__import__": (PROTO + named("builtins", "__import__") + CALL, "builtins.__import__"),
    "subprocess.Popen": (PROTO + named("subprocess", "Popen") + CALL, "subprocess.Popen"),
    "pip.main": (PROTO + named("pip", "main") + CALL, "pip.main"),
    "runpy": (PROTO + named("runpy", "run_path") + CALL, "runpy.run_path"),
    "logging.FileHandler": (PROTO + named("logging", "FileHandler") + CALL, "logging.FileHandler"),
    "torch.load": (PROTO + named("torch", "load") + CALL, "torch.load"),
    "torch.storage._load_from_bytes": (PROTO + named("torch.storage", "_load_from_bytes") + CALL, "_load_from_bytes"),
    "numpy.load": (PROTO + named("numpy", "load") + CALL, "numpy.load"),
    "numpy reconstruct": (PROTO + named("numpy.core.multiarray", "_reconstruct") + CALL, "_reconstruct"),
    "timeit": (PROTO + named("timeit", "timeit") + CALL, "timeit.timeit"),
    "codecs.encode": (PROTO + named("_codecs", "encode") + CALL, "_codecs.encode"),
    "operator.attrgetter": (PROTO + named("operator", "attrgetter") + CALL, "operator.attrgetter"),
    "functools.partial": (PROTO + named("functools", "partial") + CALL, "functools.partial"),
    "ctypes": (PROTO + named("ctypes", "CDLL") + CALL, "ctypes.CDLL"),
    "importlib": (PROTO + named("importlib", "import_module") + CALL, "importlib.import_module"),
    "bdb": (PROTO + named("bdb", "Bdb.run") + CALL, "bdb.Bdb.run"),
    "dotted into an allowed module": (PROTO + named("torch._utils", "sys.modules") + CALL, "torch._utils.sys.modules"),
    "an allowed name with a space": (PROTO + named("collections", "OrderedDict ") + CALL, "OrderedDict "),
    "calling a storage class": (PROTO + named("torch", "FloatStorage") + CALL, "torch.FloatStorage"),
    "calling a dtype": (PROTO + named("torch", "float32") + CALL, "torch.float32"),
    "calling a string": (PROTO + text("os.system") + CALL, "REDUCE"),
    "code after STOP": (PROTO + b"}." + named("os", "system") + CALL, "after its end"),
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_refuses_and_names_what_a_payload_asks_for(payload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, wanted = PAYLOADS[payload]
    with pytest.raises(UnsafePickleError) as caught:
        read(program)
    message = str(caught.value)
    assert wanted in message and message.startswith(WHERE)
    assert "\n" not in message and "smelt parses pickles and never runs them" in message
    assert list(tmp_path.iterdir()) == []


class Runs:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("call", [os.mkdir, eval, exec, getattr, __import__, subprocess.Popen, print, open])
def test_refuses_what_pythons_own_pickler_makes(call, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps({"layers.0": [(Runs(call, "canary"),)]}, protocol)
    with pytest.raises(UnsafePickleError, match=call.__name__):
        read(program)
    assert list(tmp_path.iterdir()) == []


def test_the_canary_would_sing_under_pythons_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps(Runs(os.mkdir, "canary"), 2)
    pickle.loads(program)
    assert (tmp_path / "canary").is_dir()


MALFORMED = {
    "nothing": b"",
    "protocol 0": b"N.",
    "protocol 6": b"\x80\x06N.",
    "a second PROTO": PROTO + PROTO + b"N.",
    "no STOP": PROTO + b"N",
    "STOP on an empty stack": PROTO + b".",
    "values left over": PROTO + b"NN.",
    "a mark left over": PROTO + b"N(.",
    "an unknown opcode": PROTO + b"\xff.",
    "a mark that is not there": PROTO + b"t.",
    "a value taken from below a mark": PROTO + b"N(\x85.",
    "a memo entry never written": PROTO + b"h\x05.",
    "memo entry beyond the cap": PROTO + b"Nr" + struct.pack("<I", MEMO) + b".",
    "memo of an empty stack": PROTO + b"q\x00.",
    "a string beyond the end": PROTO + b"X\xff\xff\xff\x7fabc.",
    "a string of 2**63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b".",
    "a string that is not UTF-8": PROTO + b"X\x01\x00\x00\x00\xff.",
    "a lone surrogate": PROTO + b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "a frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "a global without an end": PROTO + b"cos.system",
    "a global of numbers": b"\x80\x04K\x01K\x02\x93.",
    "a global with an endless name": PROTO + b"c" + b"a" * 5000 + b"\nb\n.",
    "a dict key without a value": PROTO + b"}(Nu.",
    "items of a list": PROTO + b"]NNs.",
    "an append to a dict": PROTO + b"}Na.",
    "a tuple as a key": PROTO + b"})Ns.",
    "a float as a key": PROTO + b"}G" + bytes(8) + b"Ns.",
    "a huge integer as a key": PROTO + b"}" + number(1 << 61) + b"Ns.",
    "an OrderedDict with arguments": PROTO + named("collections", "OrderedDict") + b"]\x85R.",
    "a parameter of a string": PROTO + named("torch._utils", "_rebuild_parameter") + text("a") + b"\x88}\x87R.",
    "a persistent id of a string": PROTO + text("storage") + b"Q.",
    "a persistent id of four": PROTO + b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + b"NtQ.",
    "a module in the persistent id": PROTO + b"(" + text("module") + text("os") + text("a") + text("b") + b"NtQ.",
    "a storage of a dtype": PROTO + storage("float32") + b".",
    "a storage whose key is a number": PROTO + storage().replace(text("0"), b"K\x00") + b".",
    "a storage of -1": PROTO + storage(numel=-1) + b".",
    "a storage of 2**63": PROTO + storage(numel=1 << 63) + b".",
    "a storage of True": PROTO + storage().replace(number(6), b"\x88") + b".",
    "a tensor of a string": PROTO + tensor(text("0"), 0, (2,), (1,)) + b".",
    "a tensor of untyped bytes": PROTO
    + tensor(storage("UntypedStorage", module="torch.storage"), 0, (2,), (1,))
    + b".",
    "an offset of -1": PROTO + tensor(storage(), -1, (2,), (1,)) + b".",
    "an offset past the end": PROTO + tensor(storage(), 5, (2,), (1,)) + b".",
    "an empty tensor past the end": PROTO + tensor(storage(), 7, (0,), (1,)) + b".",
    "a negative size": PROTO + tensor(storage(), 0, (-2,), (1,)) + b".",
    "a negative stride": PROTO + tensor(storage(), 5, (2,), (-1,)) + b".",
    "a stride past the end": PROTO + tensor(storage(), 0, (2, 3), (4, 1)) + b".",
    "a product that wraps": PROTO + tensor(storage(), 0, (1 << 32, 1 << 32), (1, 1)) + b".",
    "an expansion without end": PROTO + tensor(storage(), 0, (1 << 40, 1 << 40), (0, 0)) + b".",
    "strides of another length": PROTO + tensor(storage(), 0, (2, 3), (1,)) + b".",
    "9 dimensions": PROTO + tensor(storage(), 0, (1,) * 9, (1,) * 9) + b".",
    "a pending negation": PROTO + tensor(storage(), 0, (2,), (1,), b"}" + text("neg") + b"\x88s") + b".",
    "too few arguments": PROTO + named("torch._utils", "_rebuild_tensor_v2") + b")R.",
    "a tensor of complex numbers": PROTO + tensor(storage("ComplexFloatStorage"), 0, (2,), (1,)) + b".",
    "huge LONG4": PROTO + b"\x8b\xff\xff\xff\x7f" + bytes(100) + b".",
    "negative LONG4": PROTO + b"\x8b\xff\xff\xff\xff.",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_refuses_malformed_programs(case):
    with pytest.raises(FormatError) as caught:
        read(MALFORMED[case])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def doubling(n: int) -> bytes:
    """Lists that each hold the one before twice: 2**n values in n steps."""
    steps = (b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(n))
    return PROTO + b"(]q\x00" + b"".join(steps) + b"t."


BOMBS = {
    "memo bomb": (doubling(40), "more than 1000000 values"),
    "wide sharing": (PROTO + b"((" + b"N" * 9_000 + b"tq\x00" + b"h\x00" * 9_000 + b"t.", "more than 1000000 values"),
    "deep tuples": (PROTO + b"N" + b"\x85" * (OPCODES // 4) + b".", "more than 64 deep"),
    "deep marks": (PROTO + b"(" * (DEPTH + 1) + b"t" * (DEPTH + 1) + b".", "more than 64 deep"),
    "lists in lists": (PROTO + b"]" * 90_000 + b"a" * 89_999 + b".", "more than 64 deep"),
    "a list in itself": (PROTO + b"]q\x00h\x00a.", "holds itself"),
    "a dict in itself": (PROTO + b"}q\x00" + text("a") + b"h\x00s.", "holds itself"),
    "full stack": (PROTO + b"N" * (STACK + 1) + b".", "values on its stack"),
    "full stack of lists": (PROTO + b"]" * (STACK + 1) + b".", "values on its stack"),
    "endless opcodes": (PROTO + b"N" + b"q\x00" * OPCODES + b".", "more than 400000 opcodes"),
    "endless dicts": (PROTO + b"]" + b"}a" * (OPCODES // 2) + b".", "more than 400000 opcodes"),
    "endless memo": (
        PROTO + b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(MEMO + 1)) + b".",
        "memo entry",
    ),
    "too large": (PROTO + bytes(PICKLE_NBYTES), "at most 4194304"),
    "endless tensors": (
        PROTO
        + b"("
        + named("torch._utils", "_rebuild_tensor_v2")
        + b"q\x01("
        + storage()
        + b"K\x00"
        + 2 * numbers(*[1] * 8)
        + b"\x89}tq\x00"
        + b"h\x01h\x00R" * (OPCODES // 3),
        "more than 45000 objects",
    ),
    "a dozen things at once": (
        PROTO
        + b"".join(b"(" + text("a" * 60_000 + "\U0001f600") for _ in range(50))
        + b"("
        + b"}q\x00" * 40_000
        + b"t"
        + b"("
        + b"]" * 90_000
        + b"t"
        + b"("
        + b"}" * 90_000
        + b"t",
        "without STOP",
    ),
    "a wide string": (PROTO + text("a" * (PICKLE_NBYTES - 20) + "\U0001f600") + b"(.", "empty stack"),
    "shared tuples as a key": (PROTO + b")q\x00" + b"h\x00\x86q\x00" * 60 + b"}h\x00Ns.", "dict key"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused(bomb):
    program, wanted = BOMBS[bomb]
    with pytest.raises(FormatError, match=wanted):
        read(program)


BOMB_SQUAD = """
import sys
from pathlib import Path
from smelt.errors import FormatError
from smelt.formats.opcodes import read_pickle
def peak():  # of this program's own memory: getrusage would start from the parent's
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10
before = peak()
for path in map(Path, sys.argv[1:]):
    try:
        read_pickle(path.read_bytes(), path.name)
    except FormatError:
        print(path.name, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_bombs_take_less_than_64_mib(tmp_path):
    for name, (program, _) in BOMBS.items():
        (tmp_path / name.replace(" ", "_")).write_bytes(program)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-P", "-c", BOMB_SQUAD, *paths], capture_output=True, text=True, check=True)
    mebibytes = {name: int(value) for name, value in map(str.split, done.stdout.splitlines())}
    assert len(mebibytes) == len(BOMBS)
    assert 4 < max(mebibytes.values()) < 64, mebibytes


SEED = PROTO + b"}(" + text("norm") + tensor(storage(), 1, (2, 2), (2, 1)) + text("step") + b"M\x01\x02" + b"u."


def test_reads_a_tensor_and_a_number():
    wanted = TensorRef(StorageRef(DTYPES["F32"], "0", 6), DTYPES["F32"], 1, (2, 2), (2, 1))
    assert read(SEED) == {"norm": wanted, "step": 513}


def test_every_truncation_is_an_error():
    for stop in range(len(SEED)):
        with pytest.raises(FormatError):
            read(SEED[:stop])


def test_every_flipped_byte_is_an_error_or_another_value():
    for at in range(len(SEED)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            program = bytearray(SEED)
            program[at] ^= flip
            try:
                read(bytes(program))
            except SmeltError as error:
                assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([bytes([code]) for code in range(256)] + [SEED[2:-1], b"q\x00", b"h\x00"]), max_size=40)
)
def test_random_programs_never_raise_anything_else(pieces):
    with contextlib.suppress(FormatError):
        read(PROTO + b"".join(pieces) + b".")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(st.text(max_size=20) | st.integers(-100, 100), inner, max_size=5)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(plain, st.sampled_from([2, 3, 4, 5]))
def test_agrees_with_pythons_pickle_on_plain_values(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 4])
def test_follows_the_memo_beyond_256_entries(protocol):
    names = [f"layers.{i}.weight" for i in range(1000)]
    value = {"names": names, "again": list(names), "more": tuple(names)}
    program = pickle.dumps(value, protocol)
    assert b"j" in program  # LONG_BINGET
    assert read(program) == value


class Namespace:  # stands for argparse.Namespace, which metaseq saves beside the weights
    def __init__(self, **fields):
        self.__dict__.update(fields)


class Configs(dict):
    pass


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_policy_turns_named_globals_into_inert_objects(protocol):
    configs = Configs(lr=[0.5, 1e-9])
    configs.extra = True
    program = pickle.dumps({"cfg": Namespace(arch="opt", dropout=0.1, more=configs), "n": 1}, protocol)
    stub = Namespace.__module__
    with pytest.raises(UnsafePickleError, match=r"Namespace|_reconstructor"):
        read(program)
    value = read(program, Policy(stubs=(f"{stub}.Namespace", f"{stub}.Configs")))
    cfg = value["cfg"]
    assert isinstance(cfg, InertObject) and cfg.made_by == Global(stub, "Namespace")
    assert cfg.state["arch"] == "opt" and cfg.state["dropout"] == 0.1
    assert cfg.state["more"].items == [("lr", [0.5, 1e-9])] and cfg.state["more"].state == {"extra": True}


def test_a_policy_admits_whole_packages_but_no_others():
    policy = Policy(stubs=("omegaconf",))
    made = read(PROTO + named("omegaconf.nodes", "AnyNode") + b")R.", policy)
    assert made.made_by == Global("omegaconf.nodes", "AnyNode")
    for module, name in (("omegaconf_evil", "Run"), ("os", "system"), ("builtins", "eval")):
        with pytest.raises(UnsafePickleError, match=name):
            read(PROTO + named(module, name) + b")R.", policy)


def test_an_inert_object_that_holds_itself_is_refused():
    program = PROTO + named("argparse", "Namespace") + b")\x81q\x00}" + text("me") + b"h\x00sb."
    with pytest.raises(FormatError, match="holds itself"):
        read(program, Policy(stubs=("argparse.Namespace",)))


def test_the_way_back_to_a_parent_is_left_out():
    program = (
        PROTO + named("omegaconf", "Node") + b")\x81q\x00}" + text("_parent") + b"h\x00s" + text("_val") + b"K\x07sb."
    )
    made = read(program, Policy(stubs=("omegaconf",)))
    assert isinstance(made, InertObject) and made.state == {"_val": 7}


def test_the_package_names_no_unpickler():
    root = Path(smelt.__file__).parent
    rooms = ("formats", "kernels", "convert", "quantize", "validate")
    sources = [*root.glob("*.py"), *(path for room in rooms for path in (root / room).rglob("*.py"))]
    assert len(sources) > 10
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if not node.level else []
            assert not {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib"} & {
                name.split(".")[0] for name in names
            }, path
            if isinstance(node, ast.Attribute) and node.attr in ("load", "loads", "Unpickler"):
                assert not (isinstance(node.value, ast.Name) and node.value.id in ("torch", "pickle")), path


def test_reading_imports_neither_pickle_nor_torch():
    program = "import sys; import smelt.formats.pth; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
