"""A trunk cache on disk: what is used again, what is gone on with, what is built again."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import SIZE, cache_of, network_of_seed

from sfrs.data.jitter import ColorJitter
from sfrs.features.disk import DiskRows
from sfrs.features.on_the_fly import FrozenTrunk
from sfrs.runtime.atomic_io import lock_taken
from sfrs.runtime.errors import UserError

pytestmark = pytest.mark.slow

PAPER = (0.7, 0.7, 0.7, 0.5)


@pytest.fixture
def build(files, tmp_path, monkeypatch):
    """Build the cache; returns it, the number of images that went through the trunk, and the messages."""
    sizes, run = [], FrozenTrunk.__call__

    def counting(self, images):
        sizes.append(len(images))
        return run(self, images)

    monkeypatch.setattr(FrozenTrunk, "__call__", counting)

    def call(*, std=0.25, files=files, variants=2, jitter_seed=0, **options):
        sizes.clear()
        messages, network = [], network_of_seed()
        network.backbone.std = (std, std, std)
        cache = cache_of(
            network,
            files,
            options.pop("size", SIZE),
            place="disk",
            path=tmp_path / "cache/trunk_train",
            variants=variants,
            jitter=ColorJitter(*PAPER, seed=jitter_seed),
            batch_size=options.pop("batch_size", 12),
            say=messages.append,
            **options,
        )
        return cache, sum(sizes), messages

    return call


def test_a_cache_on_disk_holds_what_one_in_memory_holds_and_is_used_again(build, files, tmp_path):
    jitter = ColorJitter(*PAPER)
    memory = cache_of(network_of_seed(), files, variants=2, jitter=jitter, batch_size=12)
    disk, computed, messages = build()
    assert computed == 120
    assert torch.equal(disk.features, memory.features)
    assert messages == [
        f"Frozen features of 40 images and 2 jittered variants of each: 0.00 GB in "
        f"{tmp_path}/cache/trunk_train.bin (float16)"
    ]
    again, computed, messages = build()
    assert computed == 0 and torch.equal(again.features, memory.features)
    assert messages[1:] == [f"{tmp_path}/cache/trunk_train.bin: is used again, all features are there"]
    moved = [tmp_path / "moved" / file.name for file in files]
    moved[0].parent.mkdir()
    for old, new in zip(files, moved, strict=True):
        new.write_bytes(old.read_bytes())
    assert build(files=moved)[1] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(std=0.3), "trunk"),
        (dict(size=(56, 64)), "image size, shape"),
        (dict(dtype=torch.float32), "dtype"),
        (dict(jitter_seed=5), "jitter"),
        (dict(variants=1), "variants"),
        (dict(budget=5000), "plain outputs"),
    ],
)
def test_a_cache_of_something_else_is_built_anew_with_a_message(build, change, named):
    build()
    cache, computed, messages = build(**change)
    assert computed >= 40 or "budget" in change
    assert any("is built again, because it was built for another" in m and named in m for m in messages)
    assert cache(torch.tensor([3])).isfinite().all()


def test_an_edited_or_missing_image_is_noticed(build, files, tmp_path):
    copies = [tmp_path / file.name for file in files]
    for old, new in zip(files, copies, strict=True):
        new.write_bytes(old.read_bytes())
    build(files=copies)
    copies[5].write_bytes(copies[5].read_bytes() + b"more")
    _, computed, messages = build(files=copies)
    assert computed == 120 and "another images" in messages[1]
    copies[5].unlink()
    with pytest.raises(UserError, match=copies[5].name):
        build(files=copies)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda file: file.with_suffix(".json").write_text("{"), "trunk_train.json is damaged"),
        (lambda file: file.with_suffix(".json").write_text("[1]"), "trunk_train.json is damaged"),
        (lambda file: file.with_suffix(".json").unlink(), "there is no trunk_train.json"),
        (lambda file: file.with_suffix(".done").unlink(), "trunk_train.done is missing or cut off"),
        (lambda file: os.truncate(file.with_suffix(".bin"), 99), "trunk_train.bin is missing or cut off"),
    ],
)
def test_a_damaged_cache_is_built_anew_with_a_message(build, tmp_path, damage, why):
    whole, _, _ = build()
    kept = whole.features.clone()
    damage(tmp_path / "cache/trunk_train.bin")
    cache, computed, messages = build()
    assert computed == 120 and torch.equal(cache.features, kept)
    assert messages[1].endswith(f"is built again, because {why}")


def test_building_goes_on_where_it_was_interrupted(build):
    class Interrupted(Exception):
        pass

    def stop(done, total):
        if done >= 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        build(progress=stop)
    seen = []
    cache, computed, messages = build(progress=lambda done, total: seen.append((done, total)))
    assert computed == 120 - 3 * 20
    assert "goes on after 5 of 10 blocks" in messages[1]
    assert seen == [(done, 40) for done in (24, 28, 32, 36, 40)]
    whole = cache_of(
        network_of_seed(), cache.source.files, SIZE, variants=2, jitter=ColorJitter(*PAPER), batch_size=12
    )
    assert torch.equal(cache.features, whole.features)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tiny_training import cache_of, network_of_seed
from sfrs.models.backbones import REGISTRY
from sfrs.data.jitter import ColorJitter

REGISTRY["tiny"] = "tiny_backbone:TinyBackbone"
files = [Path(line) for line in sys.stdin.read().splitlines()]
write, rows = os.pwrite, []

def killed(file, content, offset):
    rows.extend([offset] * (len(content) > 1))
    if len(rows) == 8:
        write(file, content[: len(content) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(file, content, offset)

os.pwrite = killed
cache_of(network_of_seed(), files, place="disk", path=Path(sys.argv[2]), variants=2,
                 jitter=ColorJitter(0.7, 0.7, 0.7, 0.5), batch_size=12)
"""


def test_a_cache_killed_in_the_middle_of_writing_a_block_ends_whole(build, files, tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "cache/trunk_train")]
    killed = subprocess.run(command, input="\n".join(map(str, files)), text=True, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    cache, computed, messages = build()
    assert 0 < computed < 120 and "goes on after" in messages[1]
    whole = cache_of(network_of_seed(), files, SIZE, variants=2, jitter=ColorJitter(*PAPER), batch_size=12)
    assert torch.equal(cache.features, whole.features)


def test_a_full_disk_is_told_before_anything_is_written(build, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"trunk_train.bin: the trunk cache needs .* --cache-gigabytes"):
        build()
    assert not list((tmp_path / "cache").glob("*.bin"))


def test_a_disk_that_fills_up_meanwhile_is_told(build, monkeypatch):
    write, written = os.pwrite, []

    def full(file, content, offset):
        written.append(offset)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content, offset)

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(UserError, match="trunk_train.bin: cannot be written, the disk is full"):
        build()
    monkeypatch.setattr("os.pwrite", write)
    _, computed, messages = build()
    assert 0 < computed < 120 and "goes on after" in messages[1]


def test_space_is_reserved_before_the_work_begins(build):
    """A file-size limit stands for the full disk: the system refuses the reservation."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(
            UserError, match="trunk_train.bin: cannot be written, files may not become that large"
        ):
            build()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_two_runs_do_not_fill_one_cache_at_once(build, tmp_path):
    (tmp_path / "cache").mkdir()
    first = DiskRows(tmp_path / "cache/trunk_train", {}, (4, 2), torch.float16, 2)
    first.open(lambda message: None)
    with pytest.raises(UserError, match="another run is filling this trunk cache"):
        build()
    first.close()
    build()


def test_a_run_that_reads_a_cache_keeps_it_when_another_run_builds_anew(build, tmp_path):
    mine, _, _ = build()
    kept = mine.features.clone()
    build(std=0.3)
    assert torch.equal(mine.features, kept)
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    mine.prefetch(torch.tensor([1, 0]))
    assert torch.equal(mine(torch.tensor([1, 0])), kept[[1, 0]].float())


def test_no_other_run_can_put_its_cache_in_place_before_this_one_has_mapped_its_own(build, monkeypatch):
    read, held = DiskRows.read, []

    def reading(cache):
        with open(cache.lock_file) as file:
            held.append(not lock_taken(file, fcntl.LOCK_EX))
        return read(cache)

    monkeypatch.setattr(DiskRows, "read", reading)
    build()
    build()
    assert held == [True, True]


def test_a_disk_without_locks_holds_a_cache(build, monkeypatch):
    def unknown(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unknown)
    _, computed, _ = build()
    assert computed


def test_a_folder_nobody_may_write_to_is_told(build, monkeypatch):
    def refused(self, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UserError, match=r"trunk_train.bin: cannot be written, permission denied"):
        build()


def test_a_cache_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        DiskRows(tmp_path / "file/trunk_train", {}, (4, 2), torch.float16, 2).open(print)


def test_the_side_file_says_what_the_rows_are(build, tmp_path):
    build()
    facts = json.loads((tmp_path / "cache/trunk_train.json").read_text())
    assert facts["format"] == 1 and facts["shape"] == [120, 6, 8, 3] and facts["dtype"] == "torch.float16"
    assert (tmp_path / "cache/trunk_train.bin").stat().st_size == 120 * 6 * 8 * 3 * 2
