"""What goes wrong in a long run loses nothing, and says what it was."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import network_of_seed, tiny_config

from sfrs.data.images import BadImageError
from sfrs.data.places import Places
from sfrs.models.network import save_network
from sfrs.runtime.atomic_io import WriteError, replaced
from sfrs.runtime.errors import UserError
from sfrs.training.checkpoint import load_checkpoint
from sfrs.training.progress import TrainingProgress
from sfrs.training.run_folder import RunDirectory
from sfrs.training.trainer import train

pytestmark = pytest.mark.slow

SPOTS = (12, 8)

ONE_EPOCH = dict(generations=1, epochs=(1,))


@pytest.fixture(scope="module")
def outcome(seen_by):
    """What ``killed_training.py`` saw."""
    return seen_by("killed_training.py")


def assert_undisturbed(seen, what=""):
    assert seen["same_weights"], what
    assert seen["same_metrics"], what
    assert seen["leftovers"] == [], what


def test_killed_at_twenty_random_moments_runs_end_as_if_undisturbed(outcome):
    assert_undisturbed(outcome["again"])
    assert sum(seen["kills"] for seen in outcome["random"]) >= 20
    for seen in outcome["random"]:
        assert_undisturbed(seen)


def test_killed_while_a_file_is_written_or_named_a_run_ends_as_if_undisturbed(outcome):
    assert len(outcome["points"]) == 9
    for point, seen in outcome["points"].items():
        assert seen["code"] == -9, point
        assert_undisturbed(seen, point)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "disk",
            r"latest.safetensors: cannot be written, the disk is full: [\d,]+ bytes are needed, [\d,]+ byt",
        ),
        (
            "file",
            r"latest.safetensors: cannot be written, files may not become that large here \(ulimit -f\)",
        ),
        ("line", r"metrics.jsonl: cannot be written, files may not become that large here"),
    ],
)
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(outcome, how, told):
    seen = outcome["full"][how]
    if not seen["possible"]:
        pytest.skip("a small file system cannot be mounted here")
    printed = " ".join(seen["printed"].split())
    assert seen["code"] == 2, printed
    assert "Traceback" not in printed
    assert printed.count("Error:") == 1
    assert re.search(told, printed), printed
    assert seen["partial"] == []
    assert seen["whole_lines"]
    assert_undisturbed(seen)


def last_weights(run):
    return load_file(run / "checkpoints/latest.safetensors")


class Spoil(TrainingProgress):
    """Cuts a file off after the second step of an epoch of generation 2."""

    def __init__(self, file):
        self.file, self.whole = file, file.read_bytes()

    def step(self, generation, epoch, report):
        if (generation, epoch, report.step) == (2, 1, 2):
            self.file.write_bytes(self.whole[:200])


def test_an_image_that_becomes_unreadable_is_named_and_the_repaired_run_ends_with_the_same_bits(
    places, tmp_path
):
    config = tiny_config(jitter=(0.4, 0.4, 0.4, 0.1), checkpoint_minutes=0)
    train(places, config, tmp_path / "whole", network=network_of_seed())
    spoil = Spoil(places[0].queries.files[0])
    with pytest.raises(BadImageError, match=f"{spoil.file.name}: this image cannot be read"):
        train(places, config, tmp_path / "run", network=network_of_seed(), progress=spoil)
    spoil.file.write_bytes(spoil.whole)
    _, facts = load_checkpoint(tmp_path / "run/checkpoints/latest.safetensors")
    assert facts["generation"] == 2 and facts["done"] >= 7
    train(places, config, tmp_path / "run", resume=True)
    ours, theirs = last_weights(tmp_path / "run"), last_weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


class Never(TrainingProgress):
    """Ends the run at its second step."""

    def step(self, generation, epoch, report):
        if report.step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("minutes", "done"), [(0, 4), (60, None)])
def test_checkpoints_within_an_epoch_come_as_often_as_asked_for(places, tmp_path, minutes, done):
    config = tiny_config(**ONE_EPOCH, tuples_per_step=2, refresh_every=100, checkpoint_minutes=minutes)
    with pytest.raises(KeyboardInterrupt):
        train(places, config, tmp_path / "run", network=network_of_seed(), progress=Never())
    _, facts = load_checkpoint(tmp_path / "run/checkpoints/latest.safetensors")
    # The step that was shown when the run ended is not in the checkpoint.
    assert facts.get("done") == (None if done is None else done - 2)
    assert facts["epoch"] == 0


def with_images(places: Places, **changes) -> Places:
    return Places(places.name, places.split, replace(places.database, **changes), places.queries)


def edited(places: Places, how: str) -> Places:
    database = places.database
    keep = np.ones(len(database), dtype=bool)
    if how == "removed":
        keep[-1] = False
        return Places(places.name, places.split, database.subset(keep), places.queries)
    if how == "moved on the map":
        return with_images(places, positions=database.positions + [[0.0, 0.01]])
    if how == "another place":
        return with_images(places, place_ids=database.place_ids[::-1].copy())
    if how == "another time":
        return with_images(places, time_stamps=np.arange(len(database)))
    if how == "another order":
        order = np.roll(np.arange(len(database)), 1)
        return Places(places.name, places.split, database.subset(order), places.queries)
    files = (database.files[0].with_name("renamed.png"), *database.files[1:])
    return with_images(places, files=files)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("removed", "train database: 36 -> 35 images"),
        (
            "moved on the map",
            "train images: as many, but with other names, positions, places or time stamps, or in another",
        ),
        ("another place", "train images: as many, but with other names"),
        ("another time", "train images: as many, but with other names"),
        ("another order", "train images: as many, but with other names"),
        ("renamed", "train images: as many, but with other names"),
    ],
)
def test_an_edited_data_set_is_refused_in_words(places, finished, how, told):
    with pytest.raises(UserError, match=f"cannot resume, the run was started otherwise:\n  {told}"):
        train((edited(places[0], how), places[1]), tiny_config(**ONE_EPOCH), finished, resume=True)


@pytest.fixture(scope="module")
def finished(places, tmp_path_factory):
    from sfrs.models.backbones import REGISTRY

    path = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "tiny", "tiny_backbone:TinyBackbone")
        train(places, tiny_config(**ONE_EPOCH), path, network=network_of_seed())
    return path


def test_a_moved_or_repaired_data_set_is_not_refused(places, tmp_path, finished):
    files = [shutil.copy(file, tmp_path) for file in places[0].database.files]
    moved = with_images(places[0], files=tuple(map(Path, files)))
    moved.database.files[0].write_bytes(moved.database.files[1].read_bytes())
    train((moved, places[1]), tiny_config(**ONE_EPOCH), finished, resume=True)


def test_every_difference_of_configuration_is_told_and_what_decides_nothing_may_differ(places, finished):
    config = tiny_config(**ONE_EPOCH)
    changed = config.changed(learning_rate=0.5, seed=3, tuples_per_step=1)
    with pytest.raises(UserError) as caught:
        train(places, changed, finished, resume=True)
    assert str(caught.value).splitlines()[1:] == [
        "  tuples_per_step: 4 -> 1",
        "  learning_rate: 0.01 -> 0.5",
        "  seed: 0 -> 3",
    ]
    free = config.changed(checkpoint_minutes=1, workers=1, log_every=3, data="elsewhere")
    train(places, free, finished, resume=True)


def test_a_second_run_in_the_same_directory_is_refused_while_the_first_one_lasts(places, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    assert not directory.is_held()
    config = tiny_config(**ONE_EPOCH)
    with directory.locked():
        assert directory.is_held()
        with pytest.raises(UserError, match="run: another process is training here"):
            train(places, config, directory.path, network=network_of_seed())
    assert not directory.is_held()
    train(places, config, directory.path, network=network_of_seed())
    with directory.locked(), pytest.raises(UserError, match="another process is training here"):
        train(places, config, directory.path, resume=True)


def test_metrics_that_a_kill_cut_off_are_cut_to_whole_lines(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.metrics.write_text("")
    directory.log("step", total=1.0)
    size = directory.metrics_size()
    directory.log("step", total=2.0)
    whole = directory.metrics.read_bytes()
    for kept in (whole, whole + b'{"kind": "st', whole[:size], whole[: size - 5] + b"\n", whole[: size - 5]):
        directory.metrics.write_bytes(kept)
        directory.cut_metrics(size)
        left = directory.metrics.read_bytes()
        assert left == (whole[:size] if kept.startswith(whole[:size]) else b"" if b"\n" not in kept else kept)


def test_a_configuration_cut_off_is_named(places, tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    text = (tmp_path / "run/config.json").read_text()
    (tmp_path / "run/config.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="run/config.json: this is not JSON"):
        train(places, tiny_config(**ONE_EPOCH), tmp_path / "run", resume=True)


def test_a_run_without_a_checkpoint_is_resumed_from_its_beginning_if_it_can_be(places, tmp_path):
    save_network(tmp_path / "start.safetensors", network_of_seed())
    config = tiny_config(**ONE_EPOCH, weights=str(tmp_path / "start.safetensors"))
    train(places, config, tmp_path / "whole")
    for name, network in (("built", None), ("given", network_of_seed())):
        train(places, config, tmp_path / name, network=network)
        (tmp_path / name / "checkpoints/latest.safetensors").unlink()
    train(places, config, tmp_path / "built", resume=True)
    ours, theirs = last_weights(tmp_path / "built"), last_weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    with pytest.raises(UserError, match="given: the run stopped before its first checkpoint; begin it anew"):
        train(places, config, tmp_path / "given", resume=True)


def test_a_file_that_cannot_be_replaced_stays_and_is_named(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(
        WriteError, match="file.txt: cannot be written, the disk is full: 5.0 MB are needed, "
    ):
        with replaced(path, size=5_000_000), open("/dev/full", "w") as full:
            full.write("x")
    assert path.read_text() == "before"
    with pytest.raises(ZeroDivisionError), replaced(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
    with replaced(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after"
