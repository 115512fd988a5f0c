import numpy as np
import pytest
from PIL import Image

from sfrs.data.images import BadImageError
from sfrs.retrieval.plots import RIGHT, WRONG, SheetRow, contact_sheet, recall_curves


def count(path, colour: str) -> int:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    with Image.open(path) as image:
        return int((np.asarray(image.convert("RGB")) == rgb).all(axis=2).sum())


def test_recall_curves_draw_a_line_per_label(tmp_path):
    one = {"first": {1: 0.2, 5: 0.5, 10: 0.7}}
    recall_curves(one, tmp_path / "deep/one.png")
    recall_curves(one | {"second": {1: 0.3, 5: 0.6, 10: 0.8}}, tmp_path / "two.png", title="town")
    assert count(tmp_path / "deep/one.png", "#0072B2") > 100
    assert count(tmp_path / "deep/one.png", "#D55E00") == 0 < count(tmp_path / "two.png", "#D55E00")
    assert not list(tmp_path.glob("*.partial"))


def test_curves_of_one_depth_and_of_perfect_recall_are_drawn(tmp_path):
    recall_curves({"one point": {1: 0.0}}, tmp_path / "point.png")
    recall_curves({"perfect": {n: 1.0 for n in range(1, 21)}}, tmp_path / "perfect.png")
    assert count(tmp_path / "point.png", "#0072B2") > 0 < count(tmp_path / "perfect.png", "#0072B2")


def test_contact_sheet_frames_right_ones_green_and_wrong_ones_red(tmp_path, make_image):
    query, found = make_image("q.png"), [make_image(f"{i}.png", scene=i) for i in range(5)]
    for name, correct in (
        ("all", [True] * 5),
        ("none", [False] * 5),
        ("two", [True, False, True, False, False]),
    ):
        contact_sheet([SheetRow(query, found, correct)], tmp_path / f"{name}_sheet.png", title="town")
    green, red = (count(tmp_path / "all_sheet.png", RIGHT), count(tmp_path / "none_sheet.png", WRONG))
    assert count(tmp_path / "all_sheet.png", WRONG) == count(tmp_path / "none_sheet.png", RIGHT) == 0
    assert count(tmp_path / "two_sheet.png", RIGHT) == pytest.approx(0.4 * green, rel=0.01)
    assert count(tmp_path / "two_sheet.png", WRONG) == pytest.approx(0.6 * red, rel=0.01)


def test_contact_sheet_takes_rows_with_fewer_images(tmp_path, make_image):
    rows = [SheetRow(make_image("q.png"), [make_image("a.jpg", height=90, width=30)], [True])] * 2
    contact_sheet(rows, tmp_path / "sheet.png", title="to$wn_", subtitle="2 of $2_queries$")  # no mathematics
    assert count(tmp_path / "sheet.png", RIGHT) > 0


def test_contact_sheet_names_a_bad_image(tmp_path, make_image):
    (tmp_path / "broken.jpg").write_text("no picture")
    with pytest.raises(BadImageError, match="broken.jpg"):
        contact_sheet(
            [SheetRow(make_image("q.png"), [tmp_path / "broken.jpg"], [True])], tmp_path / "sheet.png"
        )
