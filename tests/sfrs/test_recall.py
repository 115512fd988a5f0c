import math

import numpy as np
import pytest

from sfrs.data.ragged import Ragged
from sfrs.retrieval.recall import correct, recall_at, spatial_nms, without_same_time

POSITIVES = Ragged.from_lists([[4], [0, 2], [], [7]])
PREDICTIONS = np.array([[4, 1, 2], [1, 2, 0], [0, 1, 2], [1, 2, 3]])


def test_correct_marks_each_positive():
    assert correct(PREDICTIONS, POSITIVES).astype(int).tolist() == [
        [1, 0, 0],
        [0, 1, 1],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_recall_counts_queries_with_a_positive_only():
    recalls = recall_at(PREDICTIONS, POSITIVES, (1, 2, 3))
    assert recalls == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3), 3: pytest.approx(2 / 3)}


def test_recall_beyond_the_predictions_is_that_of_all_of_them():
    assert recall_at(PREDICTIONS, POSITIVES, (20,))[20] == pytest.approx(2 / 3)


def test_recall_without_any_positive_is_not_a_number():
    assert math.isnan(recall_at(PREDICTIONS, Ragged.from_lists([[]] * 4), (1,))[1])


def test_filled_up_predictions_are_never_right():
    assert not correct(np.array([[-1, -1]]), Ragged.from_lists([[0, 1]])).any()
    # -1 in the second row must not be taken for the largest key of the first.
    assert not correct(np.array([[0, 0], [-1, -1]]), Ragged.from_lists([[5], [5]])).any()


def test_recall_agrees_with_a_loop():
    random = np.random.default_rng(0)
    lists = [random.choice(50, random.integers(0, 4), replace=False).tolist() for _ in range(200)]
    predictions = np.stack([random.permutation(50)[:20] for _ in range(200)])
    for n, recall in recall_at(predictions, Ragged.from_lists(lists)).items():
        hits = [
            bool(set(row[:n]) & set(items)) for row, items in zip(predictions, lists, strict=True) if items
        ]
        assert recall == pytest.approx(np.mean(hits))


def test_mismatched_queries_are_reported():
    with pytest.raises(ValueError, match="4 rows of predictions, but 1 lists"):
        recall_at(PREDICTIONS, Ragged.from_lists([[1]]))


def test_predictions_of_the_querys_own_time_are_dropped():
    database = np.array([7, 7, 8, 9])
    kept = without_same_time(np.array([[0, 3, 1, 2], [2, 0, -1, -1]]), np.array([7, 8]), database, 3)
    assert kept.tolist() == [[3, 2, -1], [0, -1, -1]]


def test_nms_keeps_the_best_image_of_each_panorama_in_order():
    places = np.array([9, 9, 5, 5, 7, 7, 1])
    kept = spatial_nms(np.array([[3, 2, 0, 1, 6, 4, 5], [0, 1, 2, 3, 4, 5, 6]]), places, 3)
    assert kept.tolist() == [[3, 0, 6], [0, 2, 4]]


def test_nms_looks_at_the_first_12_n_only_and_fills_up():
    predictions = np.arange(30)[None]
    places = np.array([0] * 24 + [1] * 6)
    assert spatial_nms(predictions, places, 2).tolist() == [[0, -1]]
    assert spatial_nms(predictions, places, 3).tolist() == [[0, 24, -1]]


def test_nms_agrees_with_a_loop():
    random = np.random.default_rng(1)
    places = random.integers(0, 30, 300)
    predictions = np.stack([random.permutation(300) for _ in range(20)])
    kept = spatial_nms(predictions, places, 5)
    for row, result in zip(predictions, kept, strict=True):
        seen = []
        for index in row[:60]:
            if places[index] not in places[seen]:
                seen.append(int(index))
        assert result.tolist() == seen[:5]
