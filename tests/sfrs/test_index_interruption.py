"""A build killed at any moment goes on where it was and ends as one that nobody disturbed."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(seen_by):
    """What ``killed_builds.py`` saw."""
    return seen_by("killed_builds.py")


def test_killed_at_random_moments_it_ends_as_if_undisturbed(outcome):
    assert outcome["random"]
    for seen in outcome["random"]:
        assert seen["kills"] >= 2
        assert seen["same_rows"] and seen["same_similarities"] and seen["same_descriptors"]


def test_killed_between_file_and_table_it_ends_as_if_undisturbed(outcome):
    for point, seen in outcome["points"].items():
        assert seen["killed"], point
        assert seen["same_rows"] and seen["same_similarities"] and seen["same_descriptors"], point


def test_killed_while_a_first_build_is_compacted_it_ends_as_if_undisturbed(outcome):
    assert outcome["compacted"]
    for point, seen in outcome["compacted"].items():
        assert seen["killed"], point
        assert seen["same_rows"] and seen["same_similarities"] and seen["same_descriptors"], point


def test_a_half_built_index_is_never_shown(outcome):
    assert outcome["shown_while_unfinished"] == []


def test_what_was_committed_is_not_described_again(outcome):
    assert 0 < outcome["described_after_kill"] < outcome["images"]
