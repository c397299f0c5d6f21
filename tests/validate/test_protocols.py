from __future__ import annotations

import pytest
from smelt.convert.tokenizer import Tokenizer
from smelt.errors import InputError, UsageError
from smelt.validate.protocols import encode, protocol, token_digest, windows

TOKENIZER = Tokenizer("llama", (), bos_id=1, eos_id=2, unk_id=0)


def test_llamacpp_scores_the_second_half_of_each_window_and_puts_bos_first() -> None:
    ids = list(range(100, 100 + 1100))
    cut = windows(ids, TOKENIZER, protocol("llamacpp"))
    assert len(cut) == 2
    assert cut[1].tokens[:3].tolist() == [1, 613, 614]
    first, targets = cut[1].scored
    assert first == 256
    assert targets.tolist() == list(range(612 + 257, 612 + 512))
    assert len(targets) == 255


def test_gptq_scores_every_token_but_the_first_and_keeps_bos_once() -> None:
    ids = [1, *range(100, 100 + 5000)]
    cut = windows(ids, TOKENIZER, protocol("gptq"))
    assert len(cut) == 2
    assert cut[0].tokens[0] == 1
    assert cut[1].tokens[0] == ids[2048]
    first, targets = cut[1].scored
    assert (first, len(targets), targets[0]) == (0, 2047, ids[2049])


def test_a_tokenizer_without_bos_gets_none() -> None:
    plain = Tokenizer("llama", (), bos_id=1, eos_id=2, unk_id=0, add_bos=False)
    cut = windows(list(range(10, 26)), plain, protocol("llamacpp", 8))
    assert [window.tokens[0] for window in cut] == [10, 18]


def test_encode_puts_bos_in_front_where_the_tokenizer_adds_it() -> None:
    class Fixed(Tokenizer):
        def encode(self, text: str) -> list[int]:
            return [7, 8]

    assert encode(Fixed("llama", (), 1, 2, 0), "x") == [1, 7, 8]
    assert encode(Fixed("llama", (), 1, 2, 0, add_bos=False), "x") == [7, 8]


def test_chunks_limit_the_windows() -> None:
    assert len(windows(list(range(80)), TOKENIZER, protocol("llamacpp", 8), 3)) == 3
    assert len(windows(list(range(80)), TOKENIZER, protocol("llamacpp", 8), 30)) == 10
    with pytest.raises(UsageError, match="0 chunks"):
        windows(list(range(80)), TOKENIZER, protocol("llamacpp", 8), 0)


def test_too_few_tokens_are_an_error_with_both_numbers() -> None:
    with pytest.raises(InputError, match="the text has 7 tokens, protocol gptq wants windows of 2048"):
        windows(list(range(7)), TOKENIZER, protocol("gptq"))


def test_unknown_protocols_and_empty_windows_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="known: llamacpp, gptq"):
        protocol("wikitext")
    with pytest.raises(UsageError, match="windows of 2 tokens"):
        protocol("gptq", 2)


def test_the_token_digest_tells_questions_apart() -> None:
    first, second = ([*range(10, 26)], [*range(11, 27)])
    digests = [token_digest(windows(ids, TOKENIZER, protocol("gptq", 8))) for ids in (first, first, second)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("n_ctx", "stride"), [(8, 4), (8, 3), (8, 1), (37, 5)])
def test_strided_windows_score_every_token_but_the_first_once(n_ctx: int, stride: int) -> None:
    ids = list(range(1000, 1037))
    cut = windows(ids, TOKENIZER, protocol("strided", n_ctx, stride))
    assert [token for window in cut for token in window.scored[1].tolist()] == ids[1:]
    assert all(window.tokens[0] == ids[k * stride] for k, window in enumerate(cut))
    assert all(len(window.tokens) == n_ctx for window in cut[:-1])


def test_strided_follows_the_published_loop() -> None:
    """transformers' documentation, "Perplexity of fixed-length models": -100 masks what an earlier window scored."""
    ids = list(range(50))
    wanted, reached = [], 0
    for begin in range(0, len(ids), 6):
        end = min(begin + 16, len(ids))
        fresh = end - reached
        labels = [-100] * (end - begin - fresh) + ids[end - fresh : end]
        wanted.append((ids[begin:end], [label for label in labels[1:] if label != -100]))
        reached = end
        if end == len(ids):
            break
    cut = windows(ids, TOKENIZER, protocol("strided", 16, 6))
    assert [(w.tokens.tolist(), w.scored[1].tolist()) for w in cut] == wanted


def test_a_stride_is_for_overlapping_windows_alone() -> None:
    with pytest.raises(UsageError, match="do not overlap"):
        protocol("gptq", 64, 32)
    for stride in (0, 65):
        with pytest.raises(UsageError, match="wanted 1 to 64"):
            protocol("strided", 64, stride)
