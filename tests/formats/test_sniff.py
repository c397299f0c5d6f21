from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from smelt.errors import FormatError, InputError
from smelt.formats.checkpoint import SourceFile, TensorSpec
from smelt.formats.gguf import gguf_layout
from smelt.formats.safetensors import safetensors_layout
from smelt.formats.sniff import ADVICE, expect, sniff


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", b"")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    return buffer.getvalue()


NO_TENSORS: list[TensorSpec] = []

KINDS = [
    ("gguf", gguf_layout(NO_TENSORS, {}).pieces[0][1]),
    ("safetensors", safetensors_layout(NO_TENSORS, {}).pieces[0][1]),
    ("safetensors", struct.pack("<Q", 5000) + b'{"a'),  # cut, but still what it is
    ("pth", zipped()),
    ("legacy-pth", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)),
    ("legacy-pth", tarred()),
    ("legacy-ggml", b"tjgg" + bytes(20)),
    ("log-probabilities", b"_logits_" + bytes(12)),
    ("lfs-pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
    ("html", b"\n <!DOCTYPE HTML>\n<html>"),
    ("html", b"<html lang=en>"),
    ("empty", b""),
    ("unknown", b"hello"),
    ("unknown", struct.pack("<Q", 100_000_001) + b"{"),
    ("unknown", bytes(600)),
    ("unknown", b"\x80"),
]


@pytest.mark.parametrize(("kind", "content"), KINDS)
def test_a_file_is_what_its_bytes_say_whatever_its_name(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert sniff(path) == kind


def test_every_kind_has_a_sentence() -> None:
    assert {kind for kind, _ in KINDS} == ADVICE.keys()


@pytest.mark.parametrize(("kind", "content"), KINDS)
def test_expect_says_in_one_line_what_a_file_is_instead(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    file = SourceFile(path)
    wanted = "safetensors" if kind == "gguf" else "gguf"
    expect(file, kind)
    if kind == "unknown":
        expect(file, wanted)
        return
    with pytest.raises(FormatError) as caught:
        expect(file, wanted)
    assert str(caught.value) == f"{path}: is not {wanted}: it {ADVICE[kind]}"


def test_refuses_to_sniff_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a regular file"):
        sniff(tmp_path)
