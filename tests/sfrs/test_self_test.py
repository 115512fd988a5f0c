"""An index that tests itself: what it says of its own photographs, and what answers are worth by that."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import picture

from sfrs.models.model import Model
from sfrs.retrieval import confidence, near_duplicates
from sfrs.retrieval.confidence import (
    WEAK_SHARE,
    Calibration,
    Evidence,
    fit,
    prior_log_odds,
    probability_known,
    probability_own,
    sameness,
)
from sfrs.retrieval.coverage import look_alikes
from sfrs.retrieval.index import Builder, Index
from sfrs.retrieval.near_duplicates import NearDuplicates, consecutive, time_of
from sfrs.retrieval.tested import FILE, SelfTest, Way
from sfrs.runtime.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve places 100 m apart, three photographs of each 2 m apart, one of them of a wrong place."""
    folder = tmp_path_factory.mktemp("town")
    for scene in range(12):
        for view, letter in enumerate("abc"):
            name = f"@{500000 + 100 * scene + 2 * view}@4000000@{letter * (scene + 1)}@.png"
            picture(scene, noise=0.05 + 0.03 * view).save(folder / name)
    return folder


@pytest.fixture
def index(folder, tiny_network, tmp_path, monkeypatch):
    monkeypatch.setattr(near_duplicates, "COPY", 2.0)  # so small a network finds all pictures alike
    return Index.build(folder, Model(tiny_network, size=(48, 64)), out=tmp_path / "town.index", regions=True)


def test_own_photographs_are_found_among_the_others(index):
    test = index.self_test
    assert test.tested == test.placed == 36 and test.ways["search"].tested == 36
    right = [answer for answer in test.answers if answer.right]
    assert test.ways["search"].found == len(right) / 36 > 0.5  # 12 places, so that chance is 1 in 12
    assert all(answer.row != answer.match for answer in test.answers)
    assert set(test.ways) == {"search", "regions"}
    assert f"{100 * len(right) / 36:.0f} % of 36 photos are found within 25 m" in test.lines()[0]


def test_gaps_are_where_photographs_are_not_found_and_look_alikes_are_far_apart(index, make_image):
    lonely = [make_image(f"more/@{510000 + n}@4000000@{'x' * n}@.png", scene=0, noise=0.05) for n in (0, 40)]
    index = Index.build(lonely[0].parent, out=index.path)
    gap = index.self_test.gaps[0]
    assert (gap.easting, gap.northing, gap.photos) == (510020.0, 4000000.0, 2)
    assert "(photos not found there): 510020 E 4000000 N (2)" in index.self_test.lines()[-1]
    pairs = look_alikes(index, index.self_test.answers)
    assert pairs and all(np.ptp(index.positions[list(pair)], axis=0).max() > 100 for pair in pairs)
    taken_for = {index.positions[match, 0] for row, match in pairs if index.files[row] in lonely}
    assert taken_for and max(taken_for) < 500005  # the place that shows the same


def test_photographs_of_one_moment_do_not_find_each_other(folder, tiny_network, tmp_path):
    for n, file in enumerate(sorted(folder.iterdir())):
        fields = file.name.split("@")
        name = f"@{fields[1]}@{fields[2]}@33@S@36@15@p@00@0@0@0@0@20240101_10{n // 3:02d}{n % 3:02d}@x@.png"
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(file.read_bytes())
    index = Index.build(tmp_path / "photos", Model(tiny_network, size=(48, 64)), out=tmp_path / "x.index")
    assert index.self_test.ways["search"].found is None
    assert not any(answer.answerable for answer in index.self_test.answers)
    assert "none of 36 photos has another within 25 m, taken at another moment" in index.self_test.lines()[0]


def test_a_change_makes_the_test_void_and_ends_with_another(index, folder):
    assert Index.open(index.path).self_test == index.self_test
    with Builder(index.path) as builder:
        builder.remove("*@a@*")
        builder.finish()
    assert Index.open(index.path).self_test is None
    again = Index.build(folder, out=index.path)
    assert again.self_test.tested == 36 and again.self_test.generation > index.generation


def test_what_is_kept_is_read_back_or_named_as_damaged(index):
    kept = json.loads((index.path / FILE).read_text())
    assert kept["version"] == 1 and kept["fingerprint"] == index.fingerprint
    answer = kept["answers"][0]
    for wrong, message in (
        ("{", "this is not JSON"),
        ('{"version": 1}', "no generation, fingerprint in it"),
        (
            json.dumps(kept | {"answers": [answer | {"off": "x"}]}),
            'off is "x", expected a number',
        ),
        (json.dumps(kept | {"answers": [answer | {"row": 10**6}]}), "beyond the 36 of the index"),
        (
            json.dumps(kept | {"ways": {"search": {}}}),
            "no calibration, found, tested",
        ),
        (json.dumps(kept | {"more": 1}), "more is unknown"),
    ):
        (index.path / FILE).write_text(wrong)
        with pytest.raises(UserError, match=f"self-test.json: .*{message}.*sfrs index --check"):
            Index.open(index.path)
    (index.path / FILE).write_text(json.dumps(kept | {"version": 2}))
    assert Index.open(index.path).self_test is None


def test_too_few_photographs_are_not_tested(tiny_network, tmp_path):
    for n in range(4):
        (tmp_path / "few").mkdir(exist_ok=True)
        picture(n).save(tmp_path / f"few/@{n * 100}@0@.png")
    index = Index.build(tmp_path / "few", Model(tiny_network, size=(48, 64)))
    assert index.self_test.ways == {} and "only 4 of 4" in index.self_test.lines()[0]
    assert index.locate(tmp_path / "few/@0@0@.png").in_index is None


def test_answers_are_calibrated_and_say_whether_the_index_has_the_place(index, folder):
    photo = sorted(folder.iterdir())[0]
    found = index.locate(photo, rerank="none")
    assert 0 < found.location.confidence < 1 and found.in_index is True
    assert found.as_json()["in_index"] is True and found.error < 5
    index.self_test = None
    share = index.locate(photo, rerank="none")
    assert share.in_index is None and share.as_json()["in_index"] is None
    assert share.location.confidence != found.location.confidence


def test_a_refused_place_says_so_and_is_less_likely():
    sure = Evidence(distinctness=0.5, share=3.0, count=1.0)
    strange = Evidence(distinctness=0.5, share=-1.0, count=1.0, sameness=1.5)
    calibration = Calibration(temperature=0.03)
    assert calibration.knows(sure) and not calibration.knows(strange)
    assert calibration.confidence(strange, "search") < 0.1 < calibration.confidence(sure, "search")
    assert calibration.lowered(0.0).knows(strange) and calibration.lowered(1.0) == calibration


def test_a_photograph_without_another_of_its_place_does_not_make_an_index_refuse_less():
    alone, clear = Evidence(0.0, -3.0, 0.0), Evidence(0.0, 3.0, 0.0)
    assert probability_own(alone, True) == probability_known(alone) < 0.9
    assert probability_own(alone, False) == probability_known(replace(alone, share=WEAK_SHARE)) > 0.9
    assert probability_own(clear, False) == probability_known(clear)
    wall = Evidence(0.0, -3.0, 0.0, sameness=1.0)  # its own looks still say something
    assert probability_own(wall, False) < 0.5


def test_one_photograph_per_place_is_no_reason_to_refuse_less(tiny_network, tmp_path, monkeypatch):
    monkeypatch.setitem(confidence.SOFTNESS, "search", 1e4)  # all matches weigh the same: small shares
    for scene in range(30):
        (tmp_path / "town").mkdir(exist_ok=True)
        picture(scene, noise=0.05).save(tmp_path / f"town/@{500000 + 100 * scene}@4000000@.png")
    index = Index.build(tmp_path / "town", Model(tiny_network, size=(48, 64)), regions=True)
    alone = index.self_test.ways["search"]
    monkeypatch.setattr(confidence, "WEAK_SHARE", -np.inf)  # shares count as they are
    lowered = index.check().ways["search"]
    assert alone.tested == lowered.tested == 0
    assert confidence.LEAST_KNOWN >= alone.calibration.least_known > lowered.calibration.least_known


def test_an_index_moves_the_prior_as_far_as_its_photographs_say():
    odds = np.linspace(-2, 2, 100)
    assert fit(odds[:0], np.zeros(0, bool)) == (1, 0)
    _, down = fit(odds, np.zeros(100, bool))
    _, up = fit(odds, np.ones(100, bool))
    assert down < -0.5 < 0.5 < up
    few = fit(odds[:5], np.zeros(5, bool))[1]
    assert down < few < 0
    more = Evidence(distinctness=1.0, share=2.0, count=1.5)
    less = Evidence(distinctness=0.5, share=1.0, count=0.0)
    for way in ("search", "regions"):
        assert prior_log_odds(more, way) > prior_log_odds(less, way)


def test_quarters_of_one_wall_are_alike_and_those_of_a_street_are_not():
    generator = torch.Generator().manual_seed(0)
    street = torch.randn(1, 4, 8, 16, generator=generator)
    wall = street[:, :1].expand(1, 4, 8, 16)
    assert sameness(wall) == pytest.approx(1.0) and abs(sameness(street)[0]) < 0.2


def test_reranking_is_done_where_the_test_recommends_it(index, folder):
    photo = sorted(folder.iterdir())[4]
    way = index.self_test.ways["regions"]
    for recommended in (True, False):
        ways = {**index.self_test.ways, "regions": Way(**{**vars(way), "recommended": recommended})}
        index.self_test = SelfTest(**{**vars(index.self_test), "ways": ways})
        assert ("rerank" in index.locate(photo).milliseconds) is recommended
    assert "rerank" in index.locate(photo, rerank="regions").milliseconds
    with pytest.raises(UserError, match="rerank is 'all'; expected regions or none"):
        index.locate(photo, rerank="all")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("IMG_0041.jpg", "IMG_0042.jpg", True),
        ("IMG_0041.jpg", "IMG_0043.jpg", False),
        ("@1@2@frame_7@.jpg", "@11@2@frame_8@.jpg", True),
        ("a7_b1.jpg", "a8_b2.jpg", False),
        ("walk.jpg", "walk.jpg", False),
        ("x9.jpg", "x10.jpg", True),
    ],
)
def test_frames_follow_each_other_by_one_number(tmp_path, one, other, same):
    assert consecutive(tmp_path / one, tmp_path / other) is same
    assert not consecutive(tmp_path / one, tmp_path / "elsewhere" / other)


def test_moments_are_read_from_names_and_exif(make_image, tmp_path):
    full = tmp_path / "@1@2@33@U@52@13@p@00@0@0@0@0@20230101_123647@day@.jpg"
    assert time_of(full).isoformat() == "2023-01-01T12:36:47"
    exif = picture(0).getexif()
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "gone.jpg")]
    picture(0).save(paths[0], exif=exif)
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:59"
    picture(0).save(paths[1], exif=exif)
    assert time_of(paths[0]).isoformat() == "2024-05-06T07:08:09" and time_of(paths[2]) is None

    class Files:
        files = paths

    near = NearDuplicates(Files()).of(0, np.array([1, 2]), np.array([0.3, 0.9995]))
    assert near.tolist() == [False, True]  # 50 s apart; a copy


def test_the_constants_are_those_that_were_measured():
    from pathlib import Path

    recorded = Path(__file__).resolve().parents[2] / "benchmarks/results/confidence.json"
    constants = json.loads(recorded.read_text())["constants"]
    assert {way: list(values) for way, values in confidence.RIGHT.items()} == constants["RIGHT"]
    assert [*confidence.KNOWN] == constants["KNOWN"]
    assert (confidence.LEAST_KNOWN, confidence.WEAK_SHARE) == (
        constants["LEAST_KNOWN"],
        constants["WEAK_SHARE"],
    )
