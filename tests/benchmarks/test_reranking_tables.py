"""Tables of re-ranking say what was measured."""

import pytest

from benchmarks.pages import show
from benchmarks.reranking_tables import gains_table, pooled, scores_table
from sfrs.retrieval.region_rerank import SCORES


def piece(queries, before, after, gained, lost, network="A"):
    recalls = {"searched": before} | dict.fromkeys(SCORES, after)
    return {
        "network": network,
        "queries": queries,
        "cpu_ms_per_query": 3.0,
        "recalls": {
            name: dict(zip(("1", "5", "10"), values, strict=True)) for name, values in recalls.items()
        },
        "gained": dict.fromkeys(SCORES, gained),
        "lost": dict.fromkeys(SCORES, lost),
    }


SMALL = piece(100, (0.5, 0.6, 0.7), (0.6, 0.6, 0.8), gained=15, lost=5)
LARGE = piece(300, (0.1, 0.2, 0.3), (0.1, 0.2, 0.3), gained=0, lost=0, network="B")


def test_seeds_are_pooled_by_their_queries_and_tested_together():
    recalls, difference, p_value = pooled([SMALL, LARGE], "mixed")
    assert recalls == {
        "searched": pytest.approx([20.0, 30.0, 40.0]),
        "mixed": pytest.approx([22.5, 30.0, 42.5]),
    }
    # Two-sided binomial: 2 * sum_{k <= 5} C(20, k) / 2^20.
    assert difference == pytest.approx(2.5) and p_value == pytest.approx(0.04139, abs=1e-5)
    assert pooled([LARGE], "mixed")[2] == 1.0


def test_tables_show_gains_by_network_and_recall_before_and_after():
    assert scores_table([SMALL, LARGE])[2] == "| `mixed` | +10.0 | +0.0 | +2.5 | +0.0 | +2.5 |"
    row = "| town | 100 | 50.0 → 60.0 | 60.0 → 60.0 | 70.0 → 80.0 | +10.0 | 0.04 | 3.0 |"
    assert gains_table([("town", [SMALL])], "mixed")[2] == row


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n")
    show(page, "x", "new")
    assert page.read_text() == "before\n<!-- x: begin -->\nnew\n<!-- x: end -->\nafter\n"
    show(page, "x", "new", check=True)
    with pytest.raises(SystemExit, match="does not show"):
        show(page, "x", "newer", check=True)
    with pytest.raises(SystemExit, match="lacks the lines"):
        show(page, "y", "new")
