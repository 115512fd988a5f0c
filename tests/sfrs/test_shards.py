"""Several processes index photographs into one server: killed at any moment, nothing is lost or doubled."""

import json
from pathlib import Path

import pytest

pytest.importorskip("milvus_lite", reason="the extra [milvus] is missing")
pytestmark = pytest.mark.slow

IMAGES = 60


@pytest.fixture(scope="module")
def outcome(seen_by):
    """What ``killed_shards.py`` saw."""
    return seen_by("killed_shards.py")


def errors(seen) -> list[str]:
    """The messages of all processes."""
    lines = "\n".join(seen["printed"]).splitlines()
    return [line for line in lines if line.startswith("Error: ")]


def test_killed_at_random_moments_it_ends_as_if_undisturbed(outcome):
    assert outcome["finished"]["code"] == 0, outcome["finished"]["shown"]
    assert outcome["finished"]["finished"] and outcome["finished"]["images"] == IMAGES
    assert outcome["files"] == sorted(f"@{500000 + i}@4000000@.png" for i in range(IMAGES))
    assert outcome["same"] and all(outcome["same"].values()), outcome["same"]


def test_what_was_written_before_a_kill_is_not_described_again(outcome):
    counts = [seen["images"] for seen in outcome["killed"]]
    assert 0 < counts[0] < IMAGES and counts == sorted(counts)
    assert f"{IMAGES - counts[-1]} added, 0 described again" in outcome["finished"]["printed"]


def test_the_other_process_ends_by_itself_and_nothing_unfinished_is_shown(outcome):
    for seen in outcome["killed"]:
        assert not seen["finished"] and "Traceback" not in "".join(seen["printed"])
        assert seen["codes"][seen["doomed"][0]] == -9, seen
        assert all(code in (-9, 1, 2) for code in seen["codes"]), seen  # none waits until it is ended
    told = outcome["killed"][2]["printed"][0]
    assert "process 0 of 2 waits in vain for another process of the run, which has been killed" in told


def test_one_process_shows_progress_and_the_result(outcome):
    shown, printed = outcome["finished"]["shown"], outcome["finished"]["printed"]
    assert printed.count(" added, ") == 1 and printed.count("self-test") == 1
    assert shown.count("describing") == 1 and "Traceback" not in shown


def test_a_damaged_photograph_is_named_once_and_left_out_where_that_is_asked_for(outcome):
    refused, skipped = outcome["refused"], outcome["skipped"]
    assert sorted(refused["codes"]) == [1, 2] and refused["finished"] and refused["images"] == IMAGES
    (message,) = errors(refused)
    assert "this image cannot be read" in message and "--skip-bad-images leaves such images out." in message
    assert skipped["codes"] == [0, 0]
    facts, _ = json.JSONDecoder().raw_decode(skipped["printed"][0][skipped["printed"][0].index("{\n") :])
    assert facts["images"] == IMAGES - 2 and facts["finished"]
    assert [Path(each["file"]).name for each in facts["change"]["skipped"]] == outcome["bad"]


def test_a_folder_is_refused(outcome):
    (message,) = errors(outcome["folder"])
    assert "to which one process writes at a time; expected milvus://HOST:PORT/COLLECTION" in message
