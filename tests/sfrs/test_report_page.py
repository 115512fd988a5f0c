"""The report in a browser: it loads, its pictures show, its buttons do what they say."""

from dataclasses import replace

import pytest
import torch
from report_data import evaluated

from sfrs.models.backbones import REGISTRY, build_backbone
from sfrs.models.network import DescriptorNetwork
from sfrs.web.report import Overrides, Running, read_subject, write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A report of three failures and nine successes under four conditions."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "tiny", "tiny_backbone:TinyBackbone")
        torch.manual_seed(0)
        network = DescriptorNetwork(build_backbone("tiny"), 4).eval()
        subject = read_subject(evaluated(folder, network), folder / "r", Overrides(), Running(workers=0))
        compared = {name: subject.result.recalls for name in ("SARE-ind, 8 passes", "SFRS generation 2")}
        return write_report(replace(subject, compared=compared), folder / "r").as_uri()


@pytest.fixture(scope="module")
def opened(open_page, address):
    return open_page(address, reduced_motion="reduce")  # scrolls at once


@pytest.fixture
def page(opened):
    """The page as it is when opened."""
    opened.page.reload()
    yield opened.page
    assert opened.problems == [] and opened.left_the_machine == []


def shown(page) -> set[int]:
    """Queries of the visible cases."""
    return {int(case.get_attribute("id")[5:]) for case in page.locator(".case:visible").all()}


def press(page, name: str) -> None:
    page.get_by_role("group", name="What is shown").get_by_role("button", name=name, exact=True).click()


def test_it_loads_without_errors_and_asks_for_nothing(page, opened):
    assert page.title() == "town, test"
    assert {address for address in opened.requests if not address.startswith("data:")} == {page.url}


def test_every_picture_shows(page):
    widths = page.evaluate(
        "Promise.all([...document.images].map(async i => (await i.decode(), i.naturalWidth)))"
    )
    assert len(widths) == 12 * 6 + 12 * 2 + 3 * 2 and min(widths) > 0
    assert page.locator("img:not([alt])").count() == 0


def test_outcomes_and_conditions_filter_cases_and_map(page):
    everything = shown(page)
    dots = page.locator(".map-mark").count()
    assert len(everything) == 12 and dots == 12
    press(page, "Failures")
    assert shown(page) == {4, 5, 6} and page.locator(".map-mark").count() == 3
    assert page.locator("[role=status]").inner_text() == "3 of 12 cases"
    press(page, "night")
    assert shown(page) == {6} and page.locator(".map-mark").count() == 1
    press(page, "Successes")
    assert shown(page) == {2, 10}
    press(page, "All")
    press(page, "any condition")
    assert shown(page) == everything and page.locator(".map-mark").count() == dots


def test_choices_without_a_case_say_so(page):
    press(page, "Failures")
    press(page, "rain")
    assert shown(page) == set() and page.get_by_text("No case fits these choices.").is_visible()
    press(page, "All")
    assert not page.get_by_text("No case fits these choices.").is_visible()


def test_a_mark_on_the_map_leads_to_its_case_and_back(page):
    page.locator('.map-mark[data-id="5"]').click()
    case = page.locator("#case-5")
    page.wait_for_function("document.getElementById('case-5').getBoundingClientRect().top < 200")
    assert page.evaluate("document.activeElement.id") == "case-5" and "chosen" in case.get_attribute("class")
    case.get_by_role("button", name="Show on map").click()
    assert "map-selected" in page.locator('.map-mark[data-id="5"]').get_attribute("class")
    page.wait_for_function("document.getElementById('map').getBoundingClientRect().top >= 0")


def test_the_keyboard_reaches_marks_and_moves_the_map(page):
    mark = page.locator('.map-mark[data-id="4"]')
    mark.focus()
    assert "off" in page.locator(".map-tip").text_content()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "case-4"
    page.locator("#map").focus()
    before, scale = mark.get_attribute("transform"), page.locator(".map-scale text").text_content()
    page.keyboard.press("ArrowLeft")
    assert mark.get_attribute("transform") != before
    for _ in range(4):
        page.keyboard.press("+")
    assert page.locator(".map-scale text").text_content() != scale
    page.keyboard.press("0")
    assert mark.get_attribute("transform") == before


def test_dragging_moves_the_map_and_selects_nothing(page):
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    mark = page.locator('.map-mark[data-id="4"]')
    before = mark.bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 70, steps=4)
    page.mouse.up()
    after = mark.bounding_box()
    assert after["x"] - before["x"] == pytest.approx(60, abs=1)
    assert after["y"] - before["y"] == pytest.approx(30, abs=1)
    assert page.locator(".case.chosen").count() == 0


def test_the_matching_regions_are_lit_and_a_value_lights_its_region(page):
    pair = page.locator(".pair").first
    lit = pair.locator(".region")
    assert lit.count() == 2 and lit.first.is_visible()
    before = lit.nth(1).evaluate("e => e.style.inset")
    cell = pair.locator('[data-region="8"]')
    cell.click()
    assert cell.get_attribute("aria-pressed") == "true"
    assert lit.nth(0).evaluate("e => e.style.inset") == "0%"
    assert lit.nth(1).evaluate("e => e.style.inset") == "50% 0% 0% 50%"
    cell.click()
    assert lit.nth(1).evaluate("e => e.style.inset") == before


def test_clusters_are_drawn_and_can_be_seen_alone(page):
    press(page, "Clusters")
    pair = page.locator(".pair").first
    canvas = pair.locator("canvas").first
    assert canvas.is_visible() and not pair.locator(".region").first.is_visible()
    painted = """c => {
        const copy = new OffscreenCanvas(c.width, c.height).getContext("2d", {willReadFrequently: true});
        copy.drawImage(c, 0, 0);
        const {data} = copy.getImageData(0, 0, c.width, c.height);
        return data.filter((value, i) => i % 4 == 3 && value > 0).length;
    }"""
    everywhere = canvas.evaluate(painted)
    assert everywhere == 6 * 8
    counts = []
    for chip in pair.locator(".chips button").all():
        chip.click()
        counts.append(canvas.evaluate(painted))
        assert chip.get_attribute("aria-pressed") == "true"
    assert sum(counts) == everywhere  # four clusters, each position in one of them
    press(page, "Photographs")
    assert not canvas.is_visible()


CONTRASTS = """names => {
    const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (e) => {
        const colour = getComputedStyle(e).backgroundColor;
        return colour.startsWith("rgb(") ? colour : ground(e.parentElement);
    };
    return names.map((name) => document.querySelector(name)).map((e) => {
        const own = light(getComputedStyle(e)[e.matches("text") ? "fill" : "color"]);
        const behind = light(ground(e));
        return (Math.max(own, behind) + 0.05) / (Math.min(own, behind) + 0.05);
    });
}"""  # the formula of WCAG 2.1


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(open_page, address, dark):
    page = open_page(address, dark=dark).page
    names = [
        "h1",
        ".lead",
        ".tile-value",
        ".tile-name",
        "td",
        ".case h3",
        ".strip p",
        ".why p",
        ".legend",
        ".axis",
    ]
    assert min(page.evaluate(CONTRASTS, names)) >= 4.5
    page.close()


def test_nothing_is_cut_off_on_a_phone(open_page, address):
    opened = open_page(address, width=390, height=844)
    cut = opened.page.evaluate("""[...document.querySelectorAll("svg.chart text")].filter(text => {
      const {left, right} = text.getBoundingClientRect(), chart = text.closest("svg").getBoundingClientRect();
      return left < chart.left - 1 || right > chart.right + 1;
    }).map(text => text.textContent)""")
    assert cut == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    assert opened.problems == []
    opened.page.close()
