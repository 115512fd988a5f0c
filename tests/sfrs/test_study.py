"""What the study's counting promises."""

import json

import numpy as np
import pytest

from sfrs.commands.study import own_variant
from sfrs.retrieval.recall import mcnemar
from sfrs.runtime.errors import UserError
from sfrs.synthetic.study import Score, markdown, summarise


def _hits(*right: int, of: int = 20) -> np.ndarray:
    hits = np.zeros(of, dtype=bool)
    hits[list(right)] = True
    return hits


def _score(label: str, passes: int, hits: np.ndarray) -> Score:
    return Score(label, passes, {1: hits, 5: hits, 10: hits}, 0.5, 1.0)


def test_mcnemar_counts_only_queries_on_which_the_networks_differ():
    first, second = _hits(*range(10)), _hits(0, 1, 12, 13)
    paired = mcnemar(first, second)
    assert (paired.gained, paired.lost) == (8, 2)
    assert paired.difference == pytest.approx(6 / 20)
    # Two-sided binomial: 2 (1 + 10 + 45) / 2^10.
    assert paired.p_value == pytest.approx(112 / 1024)


def test_mcnemar_of_equal_networks_shows_no_difference():
    assert mcnemar(_hits(1, 2), _hits(1, 2)).p_value == 1.0


def test_mcnemar_refuses_other_queries():
    with pytest.raises(ValueError, match=r"\(20,\) and \(30,\)"):
        mcnemar(_hits(1), _hits(1, of=30))


def test_each_row_is_compared_with_the_baseline_of_as_many_passes():
    seeds = [
        [
            _score("SARE-ind", 12, _hits(0)),
            _score("SARE-ind", 24, _hits(0, 1, 2)),
            _score("SFRS", 24, _hits(0, 1, 2, 3 + seed)),
        ]
        for seed in range(2)
    ]
    first, second, sfrs = summarise(seeds)
    assert first.against is None and second.against is None
    assert (sfrs.against.gained, sfrs.against.lost) == (2, 0)
    assert sfrs.by_seed == pytest.approx([0.05, 0.05])
    assert sfrs.recalls[1] == pytest.approx(0.2)


def test_the_table_shows_every_row_with_its_difference():
    seeds = [[_score("SARE-ind", 12, _hits(0)), _score("SFRS", 12, _hits(0, 1))]]
    table = markdown(summarise(seeds), [0], 20)
    assert "| SARE-ind | 12 | 5.0 | 5.0 | 5.0 |  |  |  |" in table
    assert "| SFRS | 12 | 10.0 | 10.0 | 10.0 | +5.0 | +5.0 | 1 |" in table


def test_a_variant_of_ones_own_is_read_like_flags_of_train():
    variant = own_variant("My loss: soft_negatives=true teacher_temperatures=0.1,0.08")
    assert (variant.name, variant.label) == ("My_loss", "My loss")
    assert variant.changes == {"soft_negatives": True, "teacher_temperatures": (0.1, 0.08)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soft_weight=1", "expected 'NAME: FIELD=VALUE ...'"),
        (": soft_weight=1", "expected 'NAME: FIELD=VALUE ...'"),
        ("mine: soft_weight", "expected 'NAME: FIELD=VALUE ...'"),
        ("mine: softness=1", "unknown configuration field.*softness"),
        ("mine: soft_negatives=perhaps", "soft_negatives is 'perhaps', expected bool"),
        ("mine: soft_loss=mine", "soft_loss is mine, expected one of cross-entropy"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        own_variant(text)


def test_generations_are_compared_with_sare_of_as_many_passes(run, tmp_path):
    out = tmp_path / "study"
    asked = ("study", "--out", out, "--seeds", "0", "--size", "small", "--generations", "3", "--variants", "")
    code, table, _ = run(*asked, "--variant", "mine: soft_negatives=true")
    recorded = json.loads((out / "study.json").read_text())
    rows = [(row["label"], row["passes"], row["difference"] is None) for row in recorded["rows"]]
    baselines = [("before training", 0, True), *(("SARE-ind", n, True) for n in (2, 4, 6))]
    assert code == 0 and rows == [*baselines, ("mine", 4, False), ("mine", 6, False)]
    assert table.count("| mine |") == 2 and (out / "study.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run(*asked, "--variant", "mine: soft_weight=1")
    assert code == 2 and "mine_3.scores.json is of a variant with {'soft_negatives': True}" in err
    code, _, err = run("study", "--out", out, "--size", "demo")
    assert code == 2 and "holds a study of {'size': 'small'" in err
    code, table, _ = run(*asked[:2], tmp_path / "choice", *asked[3:], "--split", "val")
    validated = (tmp_path / "choice/study.json").read_text()
    assert code == 0 and [row["passes"] for row in json.loads(validated)["rows"]] == [0, 2]
    assert "Recall on the val quarters" in table
