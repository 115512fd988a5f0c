"""A trunk cache that several runs or processes share."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from tiny_training import SIZE, cache_of, network_of_seed, tiny_config

from sfrs.data.jitter import ColorJitter
from sfrs.runtime.distributed import Processes
from sfrs.runtime.progress import silent
from sfrs.training.preparation import build_features
from sfrs.training.progress import TrainingProgress
from sfrs.training.trainer import train

pytestmark = pytest.mark.slow

PAPER = (0.7, 0.7, 0.7, 0.5)


def test_a_resumed_run_uses_its_cache_again_and_ends_with_the_same_bits(places, tmp_path):
    class Interrupted(Exception):
        pass

    class Stop(TrainingProgress):
        def __init__(self):
            self.messages = []

        def message(self, text):
            self.messages.append(text)

        def epoch(self, *rest):
            raise Interrupted

    config = tiny_config(trunk_cache="disk,jitter=2", jitter=PAPER, generations=1, epochs=(2,))
    whole = train(places, config, tmp_path / "whole", network=network_of_seed()).network().state_dict()
    with pytest.raises(Interrupted):
        train(places, config, tmp_path / "run", network=network_of_seed(), progress=Stop())
    watch = Stop()
    with pytest.raises(Interrupted):
        train(places, config, tmp_path / "run", resume=True, progress=watch)
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    for folder, cache in (("run", "disk,jitter=2"), ("moved", "ram,jitter=2")):
        elsewhere = config.changed(trunk_cache=cache)
        resumed = train(places, elsewhere, tmp_path / folder, resume=True).network().state_dict()
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert sum("is used again" in message for message in watch.messages) == 2


def test_runs_share_a_cache_directory(places, tmp_path):
    config = tiny_config(trunk_cache="disk", cache_dir=str(tmp_path / "shared"), generations=1, epochs=(1,))
    train(places, config, tmp_path / "a", network=network_of_seed())
    before = (tmp_path / "shared/trunk_train.bin").stat().st_mtime_ns
    train(places, config.changed(seed=1), tmp_path / "b", network=network_of_seed())
    assert (tmp_path / "shared/trunk_train.bin").stat().st_mtime_ns == before
    assert not (tmp_path / "a/trunk_train.bin").exists()
    with pytest.raises(ValueError, match="there is no directory"):
        build_features(tiny_config(trunk_cache="disk"), network_of_seed(), places)


class Threads(Processes):
    """Processes played by threads, which give each other rows through a list."""

    def __init__(self, rank, count, meeting, given):
        super().__init__(rank, count)
        self.meeting, self.given = meeting, given

    def barrier(self):
        self.meeting.wait(60)

    def broadcast_(self, tensor, rank):
        if self.rank == rank:
            self.given[0] = tensor
        self.barrier()
        tensor.copy_(self.given[0])
        self.barrier()


@pytest.mark.parametrize("place", ["ram", "disk"])
@pytest.mark.parametrize("budget", [None, 97 * 6 * 8 * 3 * 2])
def test_processes_fill_a_cache_together(files, tmp_path, place, budget):
    options = dict(variants=2, jitter=ColorJitter(*PAPER), batch_size=9, budget=budget)
    alone = cache_of(network_of_seed(), files, SIZE, **options).features
    meeting, given, progress = Barrier(3), [None] * 3, []

    def build(rank):
        return cache_of(
            network_of_seed(),
            files,
            SIZE,
            place=place,
            path=tmp_path / "trunk",
            processes=Threads(rank, 3, meeting, given),
            progress=(lambda done, total: progress.append((done, total))) if rank == 0 else silent,
            **options,
        ).features

    with ThreadPoolExecutor(3) as pool:
        for outputs in pool.map(build, range(3)):
            torch.testing.assert_close(outputs, alone, rtol=1e-3, atol=1e-6)
    assert progress[-1] == (40, 40) and progress == sorted(progress)
