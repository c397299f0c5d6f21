"""Texts and token ids from files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from smelt.errors import FormatError, InputError
from smelt.validate.texts import Text, read_text, read_token_ids


def test_ids_from_json_and_npy_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([1, 5, 31999]))
    np.save(tmp_path / "b.npy", np.array([1, 5, 31999], np.uint16))
    wanted = Text("t", None, (1, 5, 31999))
    assert read_token_ids(tmp_path / "a.json", "t") == read_token_ids(tmp_path / "b.npy", "t") == wanted


@pytest.mark.parametrize(
    "content", [b"{}", b"[1, -1]", b"[1.5]", b"[true]", b'["1"]', b"[", b"\x93NUMPY", b"\xff", b"[4294967296]"]
)
def test_what_is_no_list_of_ids_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids").write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_token_ids(tmp_path / "ids", "t")
    assert "\n" not in str(caught.value)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(FormatError):
        read_token_ids(tmp_path / "ids.npy", "t")


def test_a_text_that_is_not_utf8_or_not_there_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="byte 2"):
        read_text(tmp_path / "text", "t")
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path / "nothing", "t")
