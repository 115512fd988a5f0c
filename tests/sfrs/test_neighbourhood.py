"""Who may stand where in a tuple."""

import numpy as np
from tiny_training import tiny_places

from sfrs.data.neighbourhood import Neighbourhood, right_images
from sfrs.data.places import ImageSet, Places


def test_images_of_the_querys_own_panorama_are_no_positives():
    queries = ImageSet(("q", "r"), np.zeros((2, 2)), np.array([7, 8]))
    database = ImageSet(("a", "b", "c"), np.zeros((3, 2)), np.array([7, 8, 9]))
    near = Neighbourhood.of_places(Places("spot", "train", database, queries), 10, 25)
    assert [near.positives[i].tolist() for i in range(2)] == [[1, 2], [0, 2]]


def test_radii_decide_who_is_positive_and_who_may_be_negative(tmp_path):
    places = tiny_places(tmp_path, "train", spots=4, seed=0)
    near = Neighbourhood.of_places(places, 10, 45)
    assert [near.positives[i].tolist() for i in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert set(near.excluded[0].tolist()) == set(range(6))


def test_images_of_the_querys_own_time_stamp_are_no_answers_but_no_negatives_either():
    def images(names, east, stamps):
        positions = np.array([[x, 0.0] for x in east])
        ids = np.arange(len(names)) + 100 * len(names)
        return ImageSet(tuple(names), positions, ids, time_stamps=np.array(stamps))

    database = images("abcd", [0, 1, 2, 20], [3, 4, 3, 4])
    places = Places("line", "train", database, images("qr", [0, 1], [3, 4]))
    assert [right_images(places, 25.0)[i].tolist() for i in range(2)] == [[1, 3], [0, 2]]
    near = Neighbourhood.of_places(places, 10, 25)
    assert [near.positives[i].tolist() for i in range(2)] == [[1], [0, 2]]
    assert near.excluded[0].tolist() == [0, 1, 2, 3]
