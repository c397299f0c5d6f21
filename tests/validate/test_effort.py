from __future__ import annotations

from typing import Any

from smelt.validate.effort import shares
from smelt.validate.options import ValidateOptions
from smelt.validate.question import Subject
from smelt.validate.run import validate
from smelt.validate.texts import Text


def test_parts_have_their_share_of_the_whole() -> None:
    seen: list[tuple[int, int, str]] = []
    first, second, third = shares(lambda *step: seen.append(step), [1.0, 3.0, 0.0])
    first(1, 2, "a")
    first(2, 2, "a")
    second(1, 3, "b")
    second(3, 3, "b")
    third(1, 1, "c")
    assert [done for done, _, _ in seen] == [125, 250, 500, 1000, 1000]
    assert {total for _, total, _ in seen} == {1000}


def test_nothing_to_do_is_no_division_by_zero() -> None:
    seen: list[int] = []
    (only,) = shares(lambda done, total, label: seen.append(done), [0.0])
    only(0, 0, "")
    assert seen == [0]


def test_the_more_chunks_the_smaller_the_share_of_comparing_weights(tiny: Any, text: str) -> None:
    def share(chunks: int) -> int:
        seen: list[int] = []

        def progress(done: int, total: int, label: str) -> None:
            if label.endswith(".weight"):
                seen.append(done)

        options = ValidateOptions(n_ctx=64, resamples=50, generate=0, chunks=chunks)
        subjects = Subject("ref", tiny.model()), [Subject("same", tiny.model())]
        validate(*subjects, [Text("text", text)], options, progress)
        return max(seen)

    assert 0 < share(10) < share(2) < 500
