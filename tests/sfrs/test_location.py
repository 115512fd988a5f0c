"""One position of many matches, and how much it is worth."""

import math

import numpy as np
import pytest

from sfrs.retrieval.location import CONSIDERED, TEMPERATURE, estimate

SQUARE = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [1000.0, 0.0]])


def test_equal_neighbours_are_averaged_and_the_far_one_is_left_out():
    found = estimate(SQUARE, [0.8, 0.8, 0.8, 0.8])
    assert (found.easting, found.northing) == pytest.approx((10 / 3, 10 / 3))
    # Distances from the mean: sqrt(22.2), sqrt(55.6), sqrt(55.6).
    assert found.spread == pytest.approx(math.sqrt(400 / 9))
    assert found.confidence == pytest.approx(3 / 5)  # three of four, and the one nobody has seen
    assert found.latitude is None and found.longitude is None


def test_more_similar_matches_pull_harder():
    found = estimate(SQUARE[:2], [0.8, 0.8 - TEMPERATURE])
    assert found.easting == pytest.approx(10 * math.exp(-1) / (1 + math.exp(-1)))


def test_many_fair_matches_at_one_place_outweigh_a_slightly_better_one_elsewhere():
    assert estimate(SQUARE, [0.80, 0.80, 0.80, 0.81]).easting < 10
    assert estimate(SQUARE, [0.80, 0.80, 0.80, 0.90]).easting == 1000


def test_one_match_alone_is_believed_half():
    found = estimate([[5.0, 6.0]], [0.9])
    assert (found.easting, found.northing, found.spread) == (5, 6, 0) and found.confidence == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_confidence_is_a_share_that_rises_with_what_is_near_and_falls_with_what_is_not(seed):
    rng = np.random.default_rng(seed)
    positions, similarities = rng.uniform(0, 60, (12, 2)), rng.uniform(0.7, 0.75, 12)
    base = estimate(positions, similarities)
    assert 0 < base.confidence < 1
    here = np.linalg.norm(positions - (base.easting, base.northing), axis=1)
    best = similarities.max()
    nearest, furthest = here.argmin(), here.argmax()
    lifted, dropped = similarities.copy(), similarities.copy()
    lifted[nearest] = best + 0.05
    assert estimate(positions, lifted).confidence > base.confidence
    dropped[furthest] = 0.0
    assert estimate(positions, dropped).confidence > base.confidence


def test_only_the_first_are_weighed_whatever_their_order():
    rng = np.random.default_rng(0)
    positions, similarities = rng.uniform(0, 100, (50, 2)), np.sort(rng.uniform(0.5, 0.9, 50))[::-1]
    expected = estimate(positions[:CONSIDERED], similarities[:CONSIDERED])
    order = rng.permutation(50)
    found = estimate(positions[order], similarities[order])
    assert (found.easting, found.confidence) == pytest.approx((expected.easting, expected.confidence))


def test_images_without_a_position_are_passed_over():
    positions = np.vstack([[[np.nan, np.nan]], SQUARE])
    assert estimate(positions, [0.99, 0.8, 0.8, 0.8, 0.8]) == estimate(SQUARE, [0.8] * 4)
    nothing = estimate([[np.nan, np.nan]], [0.9])
    assert math.isnan(nothing.easting) and nothing.confidence == 0 and nothing.latitude is None
    assert estimate(np.zeros((0, 2)), []).confidence == 0


def test_degrees_come_with_the_zone():
    found = estimate([[386531.0, 6174119.0]], [0.9], "33N")
    assert (found.latitude, found.longitude) == pytest.approx((55.6992, 13.1950), abs=1e-3)


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="expected .k, 2. and .k."):
        estimate(SQUARE, [0.8, 0.8])
