"""A pickle is a program. This reads its opcodes into inert values and runs nothing.

    data.pkl = PROTO 2 | EMPTY_DICT | MARK | BINUNICODE 'norm.weight' | GLOBAL torch._utils _rebuild_tensor_v2 | ...
    opcode   = one byte, then its operand: a length and bytes, little-endian, or two lines of text

Neither `pickle` nor `torch` is imported, no name is looked up, and nothing that a file names is called: the values are
Python's own scalars and containers and the records of `torch_records`. An opcode or a global that tensors do not need
is an error, so what is unknown is refused, not guessed. Caps on bytes, opcodes, memo, stack and nesting bound the time
(under a second) and the memory (under 64 MiB) that a hostile file can take. Source: Python, Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import NoReturn

from ..errors import FormatError, UnsafePickleError
from .torch_records import (
    BUILDERS,
    STORAGES,
    STRICT,
    TORCH_DTYPES,
    Global,
    InertObject,
    Policy,
    malformed,
    storage_ref,
    without_parent,
)

# A tensor takes about 35 opcodes, 11 memo entries and 230 bytes, so these admit 11,000 in a file; the largest Meta shard
# has 1,138. Together they bound the memory: 28 MiB of values, 16 of wide strings, 11 of memo, and the program itself.
PICKLE_NBYTES = 4 << 20
OPCODES = 400_000
MEMO = 130_000
CALLS = 45_000  # of REDUCE: two for a tensor, four for a parameter
STACK = 100_000
DEPTH = 64  # of the result's nesting and of open marks
VALUES = 1_000_000  # in the result, with everything shared written out
NAME_NBYTES = 256
SMALL_KEY = 1 << 16


def read_pickle(data: bytes, where: str, policy: Policy = STRICT) -> object:
    """The value that `data` (protocol 2 to 5) spells: Python's scalars, tuple, list, dict and the records of torch.

    The result has no cycles and nests at most `DEPTH` deep. `where` names the file in messages. UnsafePickleError for a
    global or an opcode that tensors do not need; FormatError for what is malformed or beyond a cap.
    """
    if len(data) > PICKLE_NBYTES:
        raise FormatError(
            f"{where} has {len(data)} bytes, at most {PICKLE_NBYTES} are read: it holds more than tensors"
        )
    value = _Machine(data, where, policy).run()
    _require_bounded(value, where)
    return value


class _Machine:
    """The pickle machine: a stack, marks on it, a memo, and a position in the program."""

    def __init__(self, data: bytes, where: str, policy: Policy) -> None:
        self.data = data
        self.where = where
        self.policy = policy
        self.at = 0
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.n_calls = 0

    def run(self) -> object:  # noqa: RET503 (fail never returns)
        if self.data[:1] != b"\x80":
            self.fail("does not begin as a pickle of protocol 2 or later")
        for _ in range(OPCODES):
            if self.at >= len(self.data):
                self.fail("ends without STOP")
            code = self.data[self.at]
            self.at += 1
            if code == STOP:
                return self.stop()
            action = ACTIONS.get(code)
            if action is None:
                self.refuse_opcode(code)
            action(self)
            if len(self.stack) > STACK:
                self.fail(f"has more than {STACK} values on its stack")
        self.fail(f"has more than {OPCODES} opcodes")

    def stop(self) -> object:
        if self.at != len(self.data):
            self.refuse(f"goes on for {len(self.data) - self.at} bytes after its end (STOP)")
        value = self.pop()
        if self.stack or self.marks:
            self.fail("leaves values on its stack")
        return value

    def fail(self, what: str) -> NoReturn:
        raise malformed(self.where, f"{what} (byte {self.at})")

    def refuse(self, what: str) -> NoReturn:
        raise UnsafePickleError(
            f"{self.where} {what}, which tensors do not need: smelt parses pickles and never runs them; if you trust "
            "its author, load it with the program that wrote it and save the plain dict of tensors again"
        )

    def refuse_opcode(self, code: int) -> NoReturn:
        name = FORBIDDEN.get(code)
        if name is None:
            self.fail(f"has an unknown opcode 0x{code:02x}")
        if name == "INST":
            self.refuse(f"asks for {Global(self.line(), self.line())} (opcode INST)")
        self.refuse(f"uses the opcode {name} at byte {self.at - 1}")

    def take(self, nbytes: int) -> bytes:
        stop = self.at + nbytes
        if stop > len(self.data):
            self.fail("ends in the middle of an opcode")
        taken = self.data[self.at : stop]
        self.at = stop
        return taken

    def integer(self, nbytes: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(nbytes), "little", signed=signed)

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8", "strict")
        except UnicodeDecodeError:
            self.fail("has a string that is not UTF-8")

    def line(self) -> str:
        stop = self.data.find(b"\n", self.at, self.at + NAME_NBYTES)
        if stop < 0:
            self.fail("has a global's name without an end")
        return self.text(self.take(stop + 1 - self.at)[:-1])

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("takes a value from an empty stack")
        return self.stack.pop()

    def pop_tuple(self, length: int) -> None:
        start = len(self.stack) - length
        if start < (self.marks[-1] if self.marks else 0):
            self.fail("takes a value from an empty stack")
        self.stack[start:] = (tuple(self.stack[start:]),)

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            self.fail("takes values up to a mark that is not there")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def mark(self) -> None:
        if len(self.marks) >= DEPTH:
            self.fail(f"nests more than {DEPTH} deep")
        self.marks.append(len(self.stack))

    def proto(self) -> None:
        version = self.integer(1)
        if self.at != 2 or not 2 <= version <= 5:
            self.fail(f"declares protocol {version}")

    def frame(self) -> None:
        nbytes = self.integer(8)
        if nbytes > len(self.data) - self.at:
            self.fail(f"has a frame of {nbytes} bytes, beyond its end")

    def put(self, index: int) -> None:
        # Memo keys are dense where a real pickler wrote them; sparse ones could be chosen to collide in the dict.
        if index >= MEMO:
            self.fail(f"uses memo entry {index}, at most {MEMO} are kept")
        if not self.stack:
            self.fail("puts a value from an empty stack into its memo")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail(f"reads memo entry {index}, which was never written")
        self.push(self.memo[index])

    def set_items(self, flat: list[object]) -> None:
        target = self.pop()
        self.push(target)
        if len(flat) % 2:
            self.fail("sets a dict key without a value")
        if isinstance(target, InertObject):
            target.items.extend(zip(flat[::2], flat[1::2], strict=True))
        elif isinstance(target, dict):
            for key, value in zip(flat[::2], flat[1::2], strict=True):
                # Hashing a shared nest of tuples, or large integers chosen to collide, takes time without end.
                if not (key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < SMALL_KEY)):
                    self.fail(f"has a dict key that is neither a string nor a small integer but {type(key).__name__}")
                target[key] = value
        else:
            self.fail(f"sets items of a {type(target).__name__}")

    def append(self, values: list[object]) -> None:
        target = self.pop()
        self.push(target)
        if isinstance(target, InertObject):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            self.fail(f"appends to a {type(target).__name__}")

    def push_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > 2 * NAME_NBYTES:
            self.fail("names a global by something other than two short strings")
        wanted = Global(module, name)
        if not (wanted in BUILDERS or wanted in STORAGES or wanted in TORCH_DTYPES or self.policy.stubs_for(wanted)):
            self.refuse(f"asks for {wanted}")
        self.push(wanted)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push_global(module, name)

    def reduce(self) -> None:
        arguments, callee = self.pop(), self.pop()
        if not isinstance(callee, Global) or not isinstance(arguments, tuple):
            self.refuse(f"calls (REDUCE) a {type(callee).__name__}")
        self.n_calls += 1
        if self.n_calls > CALLS:
            self.fail(f"makes more than {CALLS} objects")
        builder = BUILDERS.get(callee)
        if builder is not None:
            self.push(builder(self.where, arguments))
        elif self.policy.stubs_for(callee):
            self.push(InertObject(callee, arguments))
        else:
            self.refuse(f"calls (REDUCE) {callee}")

    def new_object(self) -> None:
        arguments, made_by = self.pop(), self.pop()
        if not isinstance(made_by, Global) or not isinstance(arguments, tuple) or not self.policy.stubs_for(made_by):
            self.refuse(
                f"makes an object (NEWOBJ) of {made_by if isinstance(made_by, Global) else type(made_by).__name__}"
            )
        self.push(InertObject(made_by, arguments))

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if isinstance(target, InertObject):
            target.state = without_parent(state)
        elif not isinstance(target, OrderedDict):  # whose state is a module's `_metadata`: versions, no weights
            self.refuse(f"sets the state (BUILD) of a {type(target).__name__}")
        self.push(target)


STOP = ord(".")
ACTIONS: dict[int, Callable[[_Machine], None]] = {
    ord(code): action
    for code, action in (
        ("\x80", _Machine.proto),
        ("\x95", _Machine.frame),
        ("N", lambda m: m.push(None)),
        ("\x88", lambda m: m.push(True)),
        ("\x89", lambda m: m.push(False)),
        ("K", lambda m: m.push(m.integer(1))),
        ("M", lambda m: m.push(m.integer(2))),
        ("J", lambda m: m.push(m.integer(4, signed=True))),
        ("\x8a", lambda m: m.push(m.integer(m.integer(1), signed=True))),  # LONG1
        ("G", lambda m: m.push(struct.unpack(">d", m.take(8))[0])),
        ("\x8c", lambda m: m.push(m.text(m.take(m.integer(1))))),  # SHORT_BINUNICODE
        ("X", lambda m: m.push(m.text(m.take(m.integer(4))))),
        ("\x8d", lambda m: m.push(m.text(m.take(m.integer(8))))),  # BINUNICODE8
        ("(", _Machine.mark),
        (")", lambda m: m.push(())),
        ("]", lambda m: m.push([])),
        ("}", lambda m: m.push({})),
        ("t", lambda m: m.push(tuple(m.pop_to_mark()))),
        ("\x85", lambda m: m.pop_tuple(1)),
        ("\x86", lambda m: m.pop_tuple(2)),
        ("\x87", lambda m: m.pop_tuple(3)),
        ("s", lambda m: m.set_items([m.pop(), m.pop()][::-1])),
        ("u", lambda m: m.set_items(m.pop_to_mark())),
        ("a", lambda m: m.append([m.pop()])),
        ("e", lambda m: m.append(m.pop_to_mark())),
        ("q", lambda m: m.put(m.integer(1))),
        ("r", lambda m: m.put(m.integer(4))),
        ("\x94", lambda m: m.put(len(m.memo))),  # MEMOIZE
        ("h", lambda m: m.get(m.integer(1))),
        ("j", lambda m: m.get(m.integer(4))),
        ("c", lambda m: m.push_global(m.line(), m.line())),
        ("\x93", _Machine.stack_global),
        ("Q", lambda m: m.push(storage_ref(m.where, m.pop()))),  # BINPERSID
        ("R", _Machine.reduce),
        ("\x81", _Machine.new_object),
        ("b", _Machine.build),
    )
}
FORBIDDEN = {
    ord(code): name
    for code, name in (
        ("0", "POP"),
        ("1", "POP_MARK"),
        ("2", "DUP"),
        ("F", "FLOAT"),
        ("I", "INT"),
        ("L", "LONG"),
        ("P", "PERSID"),
        ("S", "STRING"),
        ("T", "BINSTRING"),
        ("U", "SHORT_BINSTRING"),
        ("V", "UNICODE"),
        ("B", "BINBYTES"),
        ("C", "SHORT_BINBYTES"),
        ("d", "DICT"),
        ("g", "GET"),
        ("i", "INST"),
        ("l", "LIST"),
        ("o", "OBJ"),
        ("p", "PUT"),
        ("\x82", "EXT1"),
        ("\x83", "EXT2"),
        ("\x84", "EXT4"),
        ("\x8b", "LONG4"),
        ("\x8e", "BINBYTES8"),
        ("\x8f", "EMPTY_SET"),
        ("\x90", "ADDITEMS"),
        ("\x91", "FROZENSET"),
        ("\x92", "NEWOBJ_EX"),
        ("\x96", "BYTEARRAY8"),
        ("\x97", "NEXT_BUFFER"),
        ("\x98", "READONLY_BUFFER"),
    )
}


def _require_bounded(value: object, where: str) -> None:
    """FormatError for a value with cycles, nested too deep, or too large once what it shares is written out."""
    level, total = [_parts(value)], 0
    for _ in range(DEPTH):
        total += sum(map(len, level))
        if total > VALUES:
            raise FormatError(f"{where} spells more than {VALUES} values: it holds more than tensors")
        level = [parts for container in level for part in container if (parts := _parts(part))]
        if not level:
            return
    raise FormatError(f"{where} nests more than {DEPTH} deep, or holds itself: no dict of tensors does")


def _parts(value: object) -> Collection[object]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, InertObject):
        return [*value.arguments, value.state, *value.items]
    return value if isinstance(value, (tuple, list)) else ()
