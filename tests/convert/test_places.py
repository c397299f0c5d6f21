"""Slabs cut for their places, and what is known of the bytes once all are written, in whatever order."""

from __future__ import annotations

import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from smelt.convert.checksums import SlotChecksums
from smelt.convert.places import Place
from smelt.errors import StorageError, UsageError
from smelt.formats.checkpoint import FileLayout
from smelt.formats.transaction import Transaction


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 5), st.data())
def test_slabs_of_any_height_fill_a_place_with_its_rows_and_columns(
    n_rows: int, width: int, height: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, n_rows - 1))
    stop = data.draw(st.integers(start + 1, n_rows))
    first = data.draw(st.integers(0, width - 1))
    last = data.draw(st.integers(first + 1, width))
    rows = np.arange(n_rows * width, dtype=np.uint8).reshape(n_rows, width)
    place = Place("f", 7, last - first, start, stop, first)
    out = np.full(7 + (stop - start) * (last - first), 255, np.uint8)
    for begin in range(0, n_rows, height):
        cut = place.cut(begin, rows[begin : begin + height])
        if cut is not None:
            offset, part = cut
            out[offset : offset + part.size] = part.reshape(-1)
    assert (out[7:].reshape(stop - start, -1) == rows[start:stop, first:last]).all()
    assert (out[:7] == 255).all()


@given(st.binary(min_size=1, max_size=400), st.lists(st.integers(1, 399), max_size=12), st.randoms())
def test_pieces_in_any_order_give_the_checksum_of_the_whole(content: bytes, cuts: list[int], random: object) -> None:
    edges = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    pieces = list(pairwise(edges))
    random.shuffle(pieces)  # type: ignore[attr-defined]
    checksums = SlotChecksums()
    for start, stop in pieces:
        checksums.add("f", 100 + start, np.frombuffer(content[start:stop], np.uint8))
        checksums.add("other", 100 + start, np.frombuffer(content[start:stop][::-1], np.uint8))
    assert checksums.crc32("f", 100) == zlib.crc32(content)
    assert checksums.crc32("f", 101 + len(content)) == 0


def test_a_transaction_reads_back_what_was_written(tmp_path: Path) -> None:
    with Transaction(tmp_path / "f", {"f": FileLayout(10)}, folder=False, force=False) as transaction:
        transaction.write("f", 3, b"abc")
        assert transaction.read("f", 2, 5) == b"\0abc\0"
        with pytest.raises(UsageError, match="outside the planned 10"):
            transaction.read("f", 8, 3)
        with pytest.raises(UsageError, match="not a planned file"):
            transaction.read("g", 0, 1)


def test_a_file_cut_short_under_a_transaction_is_an_error(tmp_path: Path) -> None:
    with Transaction(tmp_path / "f", {"f": FileLayout(10)}, folder=False, force=False) as transaction:
        (part,) = tmp_path.iterdir()
        with open(part, "r+b") as file:
            file.truncate(4)
        with pytest.raises(StorageError, match="ends at byte 4"):
            transaction.read("f", 0, 10)
