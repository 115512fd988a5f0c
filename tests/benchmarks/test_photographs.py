"""Benchmarks on photographs: hand-made descriptors, the split of a building, and their tables."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import fine_tuning, photographs, sizes
from sfrs.data.places import ImageSet, Places


@pytest.fixture
def picture(tmp_path):
    def write(name: str, pixels: np.ndarray):
        Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path / name

    return write


def test_a_gradient_histogram_ignores_brightness_and_sees_direction(picture):
    stripes = np.tile(np.repeat([60, 160], 16), (96, 4)).astype(np.uint8)
    upright = photographs.gradient_histogram(picture("upright.png", stripes))
    darker = photographs.gradient_histogram(picture("darker.png", stripes // 2))
    across = photographs.gradient_histogram(picture("across.png", np.rot90(stripes).copy()))
    assert np.linalg.norm(upright) == pytest.approx(1, abs=1e-5)
    assert upright @ darker > 0.95
    assert upright @ across < 0.3


def test_a_colour_histogram_ignores_places_and_sees_colours(picture):
    red, blue = np.full((40, 40, 3), (200, 20, 20), np.uint8), np.full((40, 40, 3), (20, 20, 200), np.uint8)
    one = photographs.colour_histogram(picture("one.png", np.vstack([red, blue])))
    other = photographs.colour_histogram(picture("other.png", np.hstack([blue, red])))
    third = photographs.colour_histogram(picture("third.png", np.vstack([red, red])))
    assert one @ other == pytest.approx(1, abs=0.02)
    assert one @ third == pytest.approx(0.5**0.5, abs=0.05)


def building() -> Places:
    positions = np.array([[x, floor * fine_tuning.FLOOR + 7] for floor in range(10) for x in (0.0, 40.0)])
    files = tuple(f"{i}.jpg" for i in range(len(positions)))
    images = ImageSet(files, positions, np.arange(len(files)))
    return Places("building", "test", images, images)


def test_no_floor_is_in_two_splits_and_every_seed_tests_others():
    tested = []
    for seed in fine_tuning.SEEDS:
        splits = fine_tuning.floors(building(), seed)
        floors = [
            set((places.database.positions[:, 1] // fine_tuning.FLOOR).astype(int)) for places in splits
        ]
        assert sum(map(len, floors)) == 10 and set().union(*floors) == set(range(10))
        assert [len(found) for found in floors] == [6, 2, 2]
        tested += floors[2]
    assert len(set(tested)) == len(tested)


def test_the_table_shows_every_way_on_every_set():
    file = photographs.FILE
    text = photographs.table(json.loads(file.read_text("utf-8")))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 + 4 * (1 + len(photographs.NETWORKS))
    assert all(row.count("|") == 2 + len(photographs.SETS) for row in rows)


def test_the_size_is_chosen_by_the_self_test_and_judged_by_the_queries():
    hits = {"240": "1000", "320": "1101"}
    by_size = {
        size: {
            "tested": 9,
            "self_test": share,
            "recalls": [hits[size].count("1") / 4] * 3,
            "hits": hits[size],
        }
        for size, share in (("240", 0.5), ("320", 0.6))
    }
    best = sizes.chosen(by_size)
    assert best["size"] == 320 and best["difference"] == pytest.approx(0.5) and best["p_value"] == 0.5
    about = {"commit": "0123abc", "date": "2026-01-01", "kernels": "avx2"}
    recorded = {
        "command": "x",
        "machine": about,
        "sizes": [240, 320],
        "sets": {"place": {"by_size": by_size, "chosen": best}},
    }
    assert "| place | 50.0 / 25.0 | 60.0 / 75.0 | 320 | +50.0 | 0.5 |" in sizes.table(recorded)
