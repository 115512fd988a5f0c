"""A circle to which an index is confined: where it is opened, and per search, in a folder and in Milvus."""

import numpy as np
import pytest

from sfrs.data.coordinates import to_degrees, to_system
from sfrs.models.model import Model
from sfrs.retrieval.index import Index
from sfrs.retrieval.near import Near
from sfrs.runtime.errors import UserError

SIZE = (48, 64)


@pytest.fixture(params=["exact", "pq", "milvus"])
def index(request, place_folder, tmp_path, tiny_network):
    """An index of 12 photographs 100 m apart, with regions."""
    kind, out = request.param, tmp_path / "town.index"
    if kind == "milvus":
        pytest.importorskip("milvus_lite", reason="the extra [milvus] is missing")
        kind, out = "exact", f"milvus:{tmp_path}/town.db"
    model = Model(tiny_network, size=SIZE)
    built = Index.build(place_folder, model, out=out, kind=kind, zone="33N", regions=True)
    yield built
    close(built)


def close(index):
    if hasattr(index, "close"):
        index.close()


def around(easting: float, radius: float) -> Near:
    return Near(*to_degrees([[easting, 4000000.0]], "33N")[0], radius)


@pytest.fixture
def opened(index):
    """Open the index near a point again."""
    found = []

    def call(near):
        found.append(Index.open(index.path, near=near))
        return found[-1]

    yield call
    for each in found:
        close(each)


def test_it_holds_the_images_of_its_circle_and_finds_them_alone(index, opened):
    part = opened(around(500300.0, 101.0))
    assert sorted(part.positions[:, 0]) == [500200.0, 500300.0, 500400.0] and len(part) == 3
    rows = [list(index.files).index(file) for file in part.files]
    np.testing.assert_array_equal(part.positions, index.positions[rows])
    np.testing.assert_array_equal(part.descriptors([2, 0]), index.descriptors([rows[2], rows[0]]))
    np.testing.assert_array_equal(part.quarters([1]), index.quarters([rows[1]]))
    queries = index.descriptors(range(12))
    scores, found = part.search(queries, 5)
    assert (found >= 0).sum() == 36 and set(found[found >= 0]) == {0, 1, 2}
    expected = queries @ part.descriptors([0, 1, 2]).T
    np.testing.assert_allclose(scores[:, :3], -np.sort(-expected, axis=1), atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(expected, found[:, :3], axis=1), scores[:, :3], atol=1e-3)


def test_a_search_may_keep_to_a_circle_within_it(index, opened):
    part = opened(around(500300.0, 301.0))
    assert len(part) == 7
    near = around(500600.0, 101.0)  # of whose three images one lies outside
    found = part.search(index.descriptors(range(12)), 4, near)[1]
    assert all(set(part.positions[row[row >= 0], 0]) == {500500.0, 500600.0} for row in found)
    with pytest.raises(UserError, match="holds no image in this circle"):
        part.search(index.descriptors([0]), 1, around(501000.0, 50.0))


def test_the_corners_of_its_square_do_not_hide_what_is_in_the_circle(index, opened):
    part = opened(around(500300.0, 99.0))
    assert len(part) == 1 and (part.search(index.descriptors(range(12)), 1)[1] == 0).all()


def test_places_near_the_reach_of_a_zone_are_found_in_either():
    row = np.column_stack([np.full(120, 48.0), 16.4 + 0.005 * np.arange(120)])
    positions, system = to_system(np.vstack([[[48.0, 3.0]], row]))
    assert system == "31N+33N" and positions[1, 0] > 2e6  # a lone point there would be in 31N
    held = Near(48.0, 16.4, 500.0).holds(positions, system)
    assert held.tolist() == [False, True, True] + [False] * 118
    assert Near(48.0, 3.0, 500.0).holds(positions, system).tolist() == [True] + [False] * 120


def test_an_empty_circle_is_named(index, opened):
    for near in (around(509000.0, 50.0), Near(-30.0, 100.0, 500.0)):
        with pytest.raises(UserError, match=f"--near {near}: .* holds no image in this circle."):
            opened(near)


def test_the_self_test_of_the_whole_still_calibrates_and_is_not_overwritten(index, opened):
    part = opened(around(500300.0, 301.0))
    assert index.self_test is not None and part.self_test is not None
    assert part.self_test.calibration("search") == index.self_test.calibration("search")
    assert part.self_test.answers == [] and len(part.self_test.gaps) < len(index.self_test.gaps)
    with pytest.raises(UserError, match="expected all of it for the self-test"):
        part.check()
