"""The card: compact, escaped, with what it takes to ask again."""

from __future__ import annotations

import re
from dataclasses import replace

from made_reports import a_candidate, a_report
from smelt.validate.gates import Gate
from smelt.validate.markdown import code, escaped, render


def tables(card: str) -> list[list[str]]:
    return [block.splitlines() for block in card.split("\n\n") if block.startswith("| ")]


def test_the_card_says_verdict_numbers_with_intervals_gates_and_worst_tensors() -> None:
    card = render(a_report(a_candidate("out/m.q4_k_m.gguf", 1), a_candidate("out/m.q2_k.gguf", 3, passed=False)))
    assert card.startswith(
        "## Validation: fail\n\nAgainst `models/ref` on text0: protocol llamacpp, windows of 64 tokens"
    )
    assert (
        "| q4\\_k\\_m | pass | 4.85 | 3.34 MiB | 7.0000 | +0.080% (+0.040% to +0.16%) | 0.000800 (0.000720 to 0.000960)"
        in card
    )
    assert "| kld | **fail** | mean KLD is at most 0.2, limit 0.05 |" in card
    assert "| `model.layers.1.mlp.down_proj.weight` | Q4_K | 0.0700 | +512.00 KiB |" in card
    assert "prose all 3; code 1 of 3" in card


def test_every_row_has_as_many_cells_as_its_head() -> None:
    found = a_candidate("a|b`c\n.gguf", 0)
    tensor = replace(found.tensors[0], name="t|`|x")
    found = replace(found, tensors=(tensor,), gates=(Gate("finite", 0, 1.0, False, "a | b\nc"),))
    card = render(a_report(found, a_candidate("nan", 1, run=False), reference="r|`x", name="<b>|"))
    assert len(tables(card)) >= 3
    for rows in tables(card):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "a \\| b c" in card
    assert "<b>" not in card[: card.index("### To reproduce")]


def test_the_command_line_and_all_digests_stand_at_the_end() -> None:
    report = a_report(a_candidate("a.gguf", 0, texts=2), texts=2)
    end = render(report, "smelt validate models/ref a.gguf --text 'a b.txt'").split("### To reproduce\n\n")[1]
    lines = end.splitlines()
    assert lines[0] == "    smelt validate models/ref a.gguf --text 'a b.txt'"
    digests = [digest for text in report.evaluation.texts for digest in (text.text_sha256, text.token_ids_sha256)]
    assert [line.split()[2] for line in lines[1:]] == digests
    assert all(line.startswith("    # sha256 ") for line in lines[1:])


def test_marks_of_markdown_in_names_are_text() -> None:
    assert escaped("*a*_b_[c](d)<e>|\n#") == "\\*a\\*\\_b\\_\\[c\\](d)\\<e\\>\\| \\#"
    assert code("a`b") == "``a`b``"
    assert code("`a|b`") == "`` `a\\|b` ``"
