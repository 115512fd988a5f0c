"""Regions compared with regions, and candidates ordered by them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import picture

from sfrs.data.places import load_places
from sfrs.models.model import Model, compact
from sfrs.models.network import save_network
from sfrs.models.whitening import Whitening
from sfrs.retrieval import region_rerank
from sfrs.retrieval.evaluation import Scoring, evaluate
from sfrs.retrieval.region_rerank import (
    SCORES,
    KeptQuarters,
    RememberedQuarters,
    Reranking,
    region_matches,
    rerank,
    rerank_all,
)
from sfrs.runtime.errors import UserError
from sfrs_ext.reference import region_descriptors


@pytest.fixture
def quarters():
    return torch.randn(12, 4, 5, 8, generator=torch.Generator().manual_seed(0))


def test_every_region_is_compared_with_every_region():
    torch.manual_seed(0)
    queries, images = torch.randn(2, 4, 5, 8), torch.randn(3, 4, 5, 8)
    expected = torch.einsum("tikd,njkd->tnij", region_descriptors(queries), region_descriptors(images))
    torch.testing.assert_close(region_matches(queries, images), expected)


def test_an_image_matches_itself_region_by_region():
    torch.manual_seed(0)
    quarters = torch.randn(1, 4, 5, 8)
    torch.testing.assert_close(region_matches(quarters, quarters)[0, 0].diagonal(), torch.ones(9))


def test_regions_whose_quarters_cancel_match_nothing_on_either_side():
    torch.manual_seed(0)
    quarters = torch.randn(2, 4, 5, 8)
    quarters[:, 3] = -quarters[:, 0] - quarters[:, 1] - quarters[:, 2]  # the whole image cancels
    matches = region_matches(quarters, quarters)
    assert not matches[..., 0, :].any() and not matches[..., :, 0].any()
    assert matches[..., 1:, 1:].ne(0).all()
    torch.testing.assert_close(matches[0, 0].diagonal()[1:], torch.ones(8))


def scores_in_words(matches):
    """Every score of one pair of images, written out as its name says."""
    m, whole = matches.tolist(), range(9)
    forth = sum(max(m[i]) for i in whole) / 9
    back = sum(max(m[i][j] for i in whole) for j in whole) / 9
    nine = sum(sorted((x for row in m for x in row), reverse=True)[:9]) / 9
    return {
        "mixed": ((forth + back) / 2 + nine) / 2,
        "chamfer": (forth + back) / 2,
        "nine-best": nine,
        "aligned": sum(m[i][i] for i in whole) / 9,
        "whole-query": max(m[0]),
        "best-pair": max(map(max, m)),
    }


def test_scores_are_what_their_names_say(quarters):
    matches = region_matches(quarters[:2], quarters[2:])
    found = {name: score(matches) for name, score in SCORES.items()}
    for query in range(2):
        for image in range(10):
            expected = scores_in_words(matches[query, image])
            assert {name: float(s[query, image]) for name, s in found.items()} == pytest.approx(
                expected, abs=1e-6
            )


@pytest.mark.parametrize("name", SCORES)
def test_an_image_is_found_first_by_itself(quarters, name):
    found = rerank(quarters[3:4], np.arange(12), lambda rows: quarters[rows], name)
    assert found.rows[0] == 3 and sorted(found.rows) == list(range(12))
    assert found.scores[0] == pytest.approx(1) and (np.diff(found.scores) <= 0).all()


def test_the_best_pair_of_regions_is_named(quarters):
    image = torch.zeros_like(quarters[:1])
    image[0, 1] = quarters[0, 2]  # the query's bottom left quarter, 7, stands top right, 6
    found = rerank(quarters[:1], np.array([9, 4]), lambda rows: torch.cat([quarters[9:10], image]))
    best = found.pairs[found.rows.tolist().index(4)]
    assert best[0] == 7 and best[1] in (0, 1, 4, 6)  # alone in its image, it is whole, top and right as well


def test_equal_scores_keep_the_order_of_the_search(quarters):
    same = quarters[5:6].expand(4, -1, -1, -1)
    found = rerank(quarters[:1], np.array([7, 2, 9, 1]), lambda rows: same)
    assert found.rows.tolist() == [7, 2, 9, 1]


def test_only_the_first_are_ordered_and_blanks_stay_last(quarters):
    candidates = np.array([[1, 2, 0, 4, 5], [7, 1, -1, -1, -1], [-1, -1, -1, -1, -1]])
    give = lambda rows: quarters[rows]  # noqa: E731
    seen = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    result = rerank_all(give, candidates, give, depth=3, progress=progress)
    assert result[0, 0] == 0 and set(result[0, 1:3]) == {1, 2} and result[0, 3:].tolist() == [4, 5]
    assert result[1].tolist() == [1, 7, -1, -1, -1] and (result[2] == -1).all()
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_kept_as_float16_the_regions_are_the_same(quarters, scale):
    # Clusters of very different weight: a faint one counts as much as a heavy one once it is normalised.
    weights = scale * torch.logspace(-5, 0, 5)[:, None]
    kept = compact(quarters * weights)
    assert kept.dtype == torch.float16 and kept.isfinite().all()
    expected = region_matches(quarters[:3], quarters)
    torch.testing.assert_close(region_matches(kept[:3].float(), kept.float()), expected, atol=1e-3, rtol=0)


def test_clusters_without_weight_stay_without(quarters):
    quarters[:, :, 2] = 0
    assert (compact(quarters)[:, :, 2] == 0).all()


def test_kept_quarters_are_those_asked_for(quarters, tmp_path):
    rows = np.memmap(tmp_path / "q", np.float16, "w+", shape=tuple(quarters.shape))
    rows[:] = quarters.numpy()
    kept = KeptQuarters(rows)
    for asked in ([3], [11, 0, 3], [5, 5], []):
        assert torch.equal(kept(np.array(asked, dtype=np.int64)), quarters.half().float()[asked])


def test_remembered_quarters_are_computed_again_only_where_they_were_dropped(quarters):
    asked = []
    image = quarters[0].numel() * 2
    remembered = RememberedQuarters(
        lambda rows: (asked.append(rows.tolist()), quarters[rows])[1], limit=3 * image
    )
    kept = compact(quarters).float()
    for rows in ([1, 2], [2, 3, 2], [2], [1, 5], [3]):
        assert torch.equal(remembered(np.array(rows)), kept[rows])
    # 3 was used longest ago when 1 and 5 were asked for, with which only 2 stays.
    assert asked == [[1, 2], [3], [5], [3]]


def test_one_pass_gives_the_descriptors_and_the_quarters(tiny_network, place_folder):
    files = load_places(place_folder).database.files
    kept = np.empty((12, 4, 4, 6), np.float16)
    described = Model(tiny_network, size=(48, 64)).encode(files, quarters=kept, batch_size=5)
    assert np.array_equal(described, Model(tiny_network, size=(48, 64)).encode(files, batch_size=5))
    similarities = region_matches(torch.from_numpy(kept).float(), torch.from_numpy(kept).float())[..., 0, 0]
    assert np.abs(similarities.numpy() - described @ described.T).max() < 1e-3


def test_what_is_evaluated_before_re_ranking_is_the_search(tiny_network, place_folder):
    places = load_places(place_folder)
    model = Model(tiny_network, size=(48, 64))
    after = evaluate(model, places, rerank=Reranking(6))
    before, plain = after.before, evaluate(model, places)
    assert np.array_equal(before.predictions, plain.predictions) and before.recalls == plain.recalls
    assert np.array_equal(after.predictions[:, 6:], before.predictions[:, 6:])
    assert all(
        set(a) == set(b) for a, b in zip(after.predictions[:, :6], before.predictions[:, :6], strict=True)
    )
    assert set(after.seconds) == {"describe", "search", "rerank"}


@pytest.fixture
def shifted_places(tmp_path):
    """Queries show the left half of their place on their right, next to something else."""
    for scene in range(8):
        place, query = picture(scene, 96, 128), picture(100 + scene, 96, 128)
        query.paste(place.crop((0, 0, 64, 96)), (64, 0))
        for role, image in (("database", place), ("queries", query)):
            folder = tmp_path / "shifted/images/test" / role
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"@{1000 * scene:.2f}@0.00@{scene}@.png")
    return load_places(tmp_path / "shifted")


@pytest.mark.parametrize("score", ["mixed", "nine-best", "best-pair"])
def test_regions_find_places_that_moved_within_the_picture(tiny_network, shifted_places, score):
    model, scoring = Model(tiny_network, size=None), Scoring(recalls=(1, 8))
    after = evaluate(model, shifted_places, scoring=scoring, rerank=Reranking(score=score))
    ranks = [result.correct.argmax(axis=1).mean() for result in (after.before, after)]
    assert ranks[1] < 0.75 * ranks[0] and after.recalls[1] > after.before.recalls[1]


def test_whitening_chooses_the_candidates_and_regions_order_them(tiny_network, place_folder):
    places = load_places(place_folder)
    whitening = Whitening.fit(Model(tiny_network, size=(48, 64)).encode(places.database.files), 4)
    model = Model(tiny_network, whitening, size=(48, 64))
    after = evaluate(model, places, rerank=Reranking(5))
    before, plain = after.before, evaluate(model, places)
    assert np.array_equal(before.predictions, plain.predictions)
    kept = np.empty((24, 4, 4, 6), np.float16)
    model.encode(places.database.files + places.queries.files, quarters=kept)
    give, ask = KeptQuarters(kept[:12]), KeptQuarters(kept[12:])
    assert np.array_equal(rerank_all(ask, before.predictions, give, depth=5), after.predictions)


def test_a_disk_that_is_too_small_is_explained(tiny_network, place_folder, monkeypatch):
    monkeypatch.setattr(region_rerank.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UserError, match="Set TMPDIR to a larger disk"):
        evaluate(Model(tiny_network), load_places(place_folder), rerank=Reranking())


@pytest.fixture
def arguments(tmp_path, place_folder, tiny_network):
    save_network(tmp_path / "tiny.safetensors", tiny_network, {"image_size": [48, 64]})
    return ("evaluate", "--data", place_folder, "--weights", tmp_path / "tiny.safetensors")


def test_evaluate_shows_recall_before_and_after(run, arguments, tmp_path):
    code, out, err = run(*arguments, "--rerank", "regions", "--rerank-depth", 3)
    assert code == 0 and "searched" in out and "re-ranked" in out and "the first 3 by regions" in out
    assert "re-ranking" in err and "12 of 12" in err
    code, out, _ = run(*arguments, "--rerank", "regions", "--json", "--out", tmp_path / "out")
    result = json.loads(out)
    assert code == 0 and result["rerank"]["by"] == "regions" and result["rerank"]["depth"] == 100
    assert set(result["rerank"]["recalls_before"]) == set(result["recalls"])
    assert json.loads((tmp_path / "out/results.json").read_text()) == result


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rerank", "magic"), "--rerank is 'magic'; expected regions"),
        (("--rerank", "regions", "--rerank-score", "x"), "--rerank-score is 'x'; expected one of mixed"),
        (("--rerank-score", "chamfer"), "--rerank-score needs --rerank regions"),
        (("--rerank-depth", "7"), "--rerank-depth needs --rerank regions"),
    ],
)
def test_mistakes_are_explained(run, arguments, more, message):
    code, _, err = run(*arguments, *more)
    assert code == 2 and message in err
