"""The report on an index: its self-test in words, figures and a map, in one file, also in a browser."""

import json
import re

import pytest
import torch
from pictures import picture

from sfrs.models.backbones import REGISTRY, build_backbone
from sfrs.models.model import Model
from sfrs.models.network import DescriptorNetwork
from sfrs.retrieval import near_duplicates
from sfrs.retrieval.coverage import look_alikes
from sfrs.retrieval.index import Builder, Index
from sfrs.web.report import figures, pictures
from sfrs.web.report.figures import Answer


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Twelve places with three photographs each, and three far away with two that show the first three."""
    folder = tmp_path_factory.mktemp("tested")
    spots = [(100 * scene + 2 * view, scene, view) for scene in range(12) for view in range(3)]
    far = [(10000 + 1000 * scene + 40 * view, scene, view) for scene in range(3) for view in range(2)]
    for east, scene, view in [*spots, *far]:
        name = f"@{500000 + east}@4000000@{'abc'[view] * (scene + 1)}<b>@.png"
        picture(scene, noise=0.05 + 0.03 * view).save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "tiny", "tiny_backbone:TinyBackbone")
        patch.setattr(near_duplicates, "COPY", 2.0)  # so small a network finds all pictures alike
        torch.manual_seed(0)
        model = Model(DescriptorNetwork(build_backbone("tiny"), 4).eval(), size=(48, 64))
        return Index.build(folder, model, out=folder.parent / "town.index", zone="33N")


def written(run, index, out, *options) -> str:
    code, printed, err = run("report", index.path, "--out", out, *options)
    assert code == 0 and "nothing outside it is needed" in printed, err
    return (out / "index.html").read_text()


def test_the_page_says_what_the_self_test_says_and_refers_to_nothing(run, index, tmp_path):
    text = written(run, index, tmp_path)
    test = index.self_test
    for line in test.lines():
        assert f"<li>{line.replace('<', '&lt;').replace('>', '&gt;')}</li>" in text
    assert f"{100 * test.ways['search'].found:.1f}<small> %</small>" in text
    assert "<title>town.index</title>" in text and "<b>" not in text.split("<main>")[1]
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\((?!#)|https?://(?!www\.w3\.org)""", text)


def test_the_map_has_every_gap_and_look_alike(run, index, tmp_path):
    text = written(run, index, tmp_path, "--cases", "3")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])
    gaps = index.self_test.gaps
    assert data["gaps"] == [[gap.easting, gap.northing, gap.photos] for gap in gaps] and gaps
    assert len(data["points"]) == len(index) == 42
    pairs = look_alikes(index, index.self_test.answers)
    assert len(data["look_alikes"]) == len(pairs) >= 6
    assert text.count('class="card alike"') == 3 and text.count("data:image/jpeg") == 6
    assert f"{gaps[0].latitude:.5f}, {gaps[0].longitude:.5f}" in text
    assert "data:image/jpeg" not in written(run, index, tmp_path, "--cases", "0")


def test_of_look_alikes_the_same_two_places_are_shown_once(run, index, tmp_path):
    text = written(run, index, tmp_path)
    ends = [json.loads(found) for found in re.findall(r'data-ends="([^"]*)"', text)]
    places = [frozenset(round((east - 500000) / 100) for east, _ in pair) for pair in ends]
    assert len(places) == len(set(places)) == 3


def test_an_index_without_a_self_test_names_the_command(run, index, tmp_path):
    assert run("report", index.path, "--out", tmp_path, "--split", "val")[0] == 2
    kept = (index.path / "self-test.json").rename(tmp_path / "kept.json")
    try:
        code, _, err = run("report", index.path, "--out", tmp_path / "r")
    finally:
        kept.rename(index.path / "self-test.json")
    assert code == 2 and "sfrs index --check --out" in err and not (tmp_path / "r").exists()


def test_a_photograph_that_is_gone_is_named_before_anything_is_written(run, index, tmp_path):
    row = look_alikes(index, index.self_test.answers)[0][0]
    gone = index.files[row].rename(tmp_path / "gone.png")
    pictures.jpeg_uri.cache_clear()
    try:
        code, _, err = run("report", index.path, "--out", tmp_path / "r")
    finally:
        gone.rename(index.files[row])
    assert code == 2 and "--cases 0 leaves the photographs out" in err and not (tmp_path / "r").exists()


def test_too_few_photographs_give_a_page_that_says_so(run, index, tmp_path):
    with Builder(tmp_path / "few.index", index.model) as builder:
        builder.add([])
        builder.finish()
    few = Index.open(tmp_path / "few.index")
    few.check()
    assert "too few to test" in written(run, few, tmp_path / "r")


def test_trust_is_drawn_where_ten_answers_are_alike_likely():
    def answers(count, confidence, right):
        return [Answer(0, 1, 0.0 if right else 90.0, confidence, 1, right, True)] * count

    assert figures.trust_figure(answers(9, 0.5, True)) == []
    ((_, chart),) = figures.trust_figure(
        [*answers(6, 1.0, True), *answers(4, 0.85, False), *answers(9, 0.3, True)]
    )
    assert "called 80 to 100 % likely: 6 of 10 right" in chart and chart.count("<circle") == 1


@pytest.mark.slow
def test_a_browser_shows_gaps_and_look_alikes(run, index, tmp_path, open_page):
    written(run, index, tmp_path)
    opened = open_page((tmp_path / "index.html").as_uri(), reduced_motion="reduce")
    page, gaps = opened.page, len(index.self_test.gaps)
    assert page.locator(".map-mark.map-gap").count() == gaps == page.locator(".gaps li").count()
    assert page.locator(".map-line.map-alike").count() == 1
    page.locator('.map-mark[data-id="1"]').focus()
    assert "Photograph here next" in page.locator(".map-tip").text_content()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "gap-1"
    scale = page.locator(".map-scale text").text_content()
    page.locator(".gaps .locate").first.click()
    assert page.locator(".map-mark.map-selected").get_attribute("data-id") == "1"
    assert page.locator(".map-scale text").text_content() != scale
    page.locator(".alike .locate").first.click()
    assert page.evaluate("document.activeElement.id") == "map"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert opened.problems == [] and opened.left_the_machine == []
    page.close()
