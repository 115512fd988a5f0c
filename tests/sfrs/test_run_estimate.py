"""What is left of a run whose parts take exactly known times."""

import pytest
from tiny_training import tiny_config

from sfrs.training.run_estimate import RunEstimate

CACHE, REFRESH, TUPLE, VALIDATION = 100.0, {1: 5.0, 2: 9.0}, {1: 0.5, 2: 2.0}, 30.0
QUERIES, EVERY = 20, 8
EPOCHS = (1, 2)


class Run:
    """A run on a clock of its own that tells an estimate what happens."""

    def __init__(self):
        self.now = 0.0
        config = tiny_config(generations=2, epochs=EPOCHS, refresh_every=EVERY, tuples_per_step=4)
        self.estimate = RunEstimate(config, clock=lambda: self.now)
        self.seen = []  # (now, epoch_left, run_left) after every step

    def work(self, seconds, tell, *arguments):
        self.now += seconds
        tell(*arguments)

    def whole(self):
        for i in range(10):
            self.work(CACHE / 10, self.estimate.task, "trunk outputs, train", i + 1, 10)
        self.work(50, self.estimate.begin)  # 50 s of clusters
        self.validation()
        for generation, epochs in enumerate(EPOCHS, start=1):
            for epoch in range(1, epochs + 1):
                self.train_epoch(generation, epoch)
                self.work(0, self.estimate.begin)
                self.validation()
                self.work(0, self.estimate.validated)

    def validation(self):
        for i in (2, 3):
            self.work(VALIDATION / 2, self.estimate.task, "validation", i, 3)

    def train_epoch(self, generation, epoch):
        for done in range(4, QUERIES + 1, 4):
            if done % EVERY == 4:
                self.estimate.begin()
                name, seconds = f"mining, generation {generation} epoch {epoch}", REFRESH[generation]
                for i in range(4):
                    self.work(seconds / 4, self.estimate.task, name, i + 1, 4)
            self.work(4 * TUPLE[generation], self.estimate.step, generation, epoch, done, QUERIES)
            left = (self.estimate.epoch_left(), self.estimate.run_left())
            self.seen.append(((generation, epoch, done), self.now, *left))


def epoch_seconds(generation):
    return 3 * REFRESH[generation] + QUERIES * TUPLE[generation] + VALIDATION


@pytest.fixture(scope="module")
def run():
    run = Run()
    run.whole()
    return run


def test_known_parts_add_up_to_what_it_takes():
    run = Run()
    run.whole()
    assert run.now == pytest.approx(CACHE + 50 + VALIDATION + epoch_seconds(1) + 2 * epoch_seconds(2))


def test_the_estimate_is_right_once_a_part_of_each_kind_has_been_seen(run):
    at = {where: (now, epoch, whole) for where, now, epoch, whole in run.seen}
    for where in ((2, 1, 8), (2, 1, 16), (2, 2, 8), (2, 2, 20)):
        now, _, whole = at[where]
        assert whole.whole
        assert whole.seconds == pytest.approx(run.now - now)
    now, epoch, _ = at[1, 1, 8]
    assert epoch.seconds == pytest.approx(epoch_seconds(1) - REFRESH[1] - 8 * TUPLE[1])
    assert at[2, 2, 8][1] == at[2, 2, 8][2]


def test_what_has_not_been_seen_makes_it_a_lower_bound(run):
    at = {where: (now, epoch, whole) for where, now, epoch, whole in run.seen}
    now, epoch, whole = at[1, 1, 8]
    assert epoch.whole  # its kind of steps, mining and (before training) validation are known
    assert not whole.whole  # generation 2 is not
    assert epoch.seconds < whole.seconds < run.now - now


def test_nothing_is_estimated_before_the_first_step():
    run = Run()
    assert run.estimate.run_left() is None
    run.work(3, run.estimate.task, "trunk outputs, train", 10, 10)
    run.work(3, run.estimate.task, "mining, generation 1 epoch 1", 3, 4)
    assert run.estimate.epoch_left() is None


def test_the_time_a_refresh_has_taken_is_not_counted_again():
    during = Run()
    during.train_epoch(2, 1)
    during.work(0, during.estimate.task, "validation", 3, 3)
    during.work(0, during.estimate.validated)
    start = during.estimate.epoch_left().seconds
    during.work(2, during.estimate.task, "mining, generation 2 epoch 2", 1, 4)
    assert during.estimate.epoch_left().seconds == pytest.approx(start - 2)


def test_epochs_are_counted_over_all_generations(run):
    assert run.estimate.epochs == run.estimate.epoch_of_run == 3
    assert run.estimate.run_left().seconds == 0
    fresh = Run()
    assert fresh.estimate.epoch_of_run == 1
    fresh.train_epoch(2, 1)
    assert fresh.estimate.epoch_of_run == 2
