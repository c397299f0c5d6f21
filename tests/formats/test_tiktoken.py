from __future__ import annotations

import base64
from pathlib import Path

import pytest
from smelt.errors import FormatError
from smelt.formats.sentencepiece import decode_model, is_sentencepiece
from smelt.formats.tiktoken import SIZE_CAP, TOKEN_CAP, decode_ranks, encode_ranks, is_tiktoken

GOLDEN = b"IQ== 0\nIg== 1\nICAg 2\n"


def line(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" %d\n" % rank


def test_a_line_is_a_token_in_base64_and_its_rank() -> None:
    assert decode_ranks(GOLDEN) == [b"!", b'"', b"   "]
    assert encode_ranks([b"!", b'"', b"   "]) == GOLDEN


def test_tiktoken_reads_the_same(tmp_path: Path) -> None:
    load = pytest.importorskip("tiktoken.load", reason="reads its own format")
    path = tmp_path / "ranks"
    tokens = [bytes([i]) for i in range(256)] + [b"ab", "日本".encode()]
    path.write_bytes(encode_ranks(tokens))
    assert load.load_tiktoken_bpe(str(path)) == {token: rank for rank, token in enumerate(tokens)}


def test_lines_may_come_in_any_order_and_end_anyhow() -> None:
    assert decode_ranks(b"Ig== 1\r\nIQ== 0") == [b"!", b'"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 ranks"),
        (b"hello\n", "line 1: .*no base64"),
        (b"IQ== 0\nIg==1\n", "line 2"),
        (b"IQ== 0\nIg== -1\n", "line 2"),
        (b"IQ== 0\nI 1\n", "line 2: .*not base64"),
        (b"IQ== 0\nIg== 2\n", "not 0 to 1: the file was cut"),
        (b"IQ== 0\nIg== 0\n", "line 2: rank 0 is there twice"),
        (b"IQ== 0\nIQ== 1\n", "a token is there twice"),
        (b"IQ== 0\nIg== 99999999999999999999\n", "line 2"),
        (line(b"x" * (TOKEN_CAP + 1), 0), f"{TOKEN_CAP + 1} bytes"),
        (b"A" * (SIZE_CAP + 1), "is it the right file"),
    ],
)
def test_rejects_what_is_no_list_of_ranks(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        decode_ranks(content)
    assert "\n" not in str(caught.value)


def test_the_two_kinds_of_tokenizer_model_are_told_apart() -> None:
    assert is_tiktoken(GOLDEN) and not is_sentencepiece(GOLDEN)
    assert not is_tiktoken(b"\x0a\x0c\x0a\x05<unk>") and is_sentencepiece(b"\x0a\x0c\x0a\x05<unk>")
    with pytest.raises(FormatError, match="tiktoken"):
        decode_model(GOLDEN)
