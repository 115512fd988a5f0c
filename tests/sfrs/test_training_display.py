"""What a training run shows on a terminal of 80 columns, and in a log file."""

import io
import re

import pytest
from rich.console import Console
from tiny_training import tiny_config

from sfrs.runtime.terminal import duration
from sfrs.training.display import training_display
from sfrs.training.progress import StepReport

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def report(done, *, of=7320, generation=2):
    soft = 0.2346 if generation > 1 else 0.0
    return StepReport(
        step=done // 4,
        done=done,
        of=of,
        hard=0.1234,
        soft=soft,
        total=0.1234 + 0.5 * soft,
        learning_rate=0.001,
        tuples_per_second=4.25,
        images_per_second=93.0,
        peak_bytes=3_000_000_000,
    )


class Shown:
    """A display on a console of 80 columns, with a clock that stands still between the tests' steps."""

    def __init__(self, *, terminal):
        self.now, self.out = 0.0, io.StringIO()
        console = Console(file=self.out, width=80, force_terminal=terminal)
        config = tiny_config(generations=4, epochs=(1, 5), refresh_every=1000)
        self.context = training_display(config, console, lambda: self.now)

    def __enter__(self):
        self.display = self.context.__enter__()
        return self

    def __exit__(self, *error):
        return self.context.__exit__(*error)

    def mine(self, generation, seconds=173.2):
        task = self.display.task(f"mining, generation {generation} epoch 1")
        for done in range(1732, 17321, 1732):
            self.now += seconds / 10
            task(done, 17320)

    def train(self, generation, until, first=4):
        for done in range(first, until + 1, 4):
            self.now += 1.0
            self.display.step(generation, 1, report(done, generation=generation))

    def bars(self):
        """The lines of the bars as they stand."""
        paper = Console(file=io.StringIO(), width=80)  # not the console that redraws the bars by itself
        paper.print(self.display.bars.get_renderable())
        return paper.file.getvalue().rstrip("\n").split("\n")

    def text(self):
        return self.out.getvalue()


def test_bars_tell_rates_losses_memory_and_what_is_left_in_80_columns():
    with Shown(terminal=True) as shown:
        shown.mine(2)
        shown.train(2, 1000)
        task = shown.display.task("mining, generation 2 epoch 1")
        shown.now += 10
        task(1, 17320)
        lines = shown.bars()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert re.match(r"generation 2, epoch 1 .* 1,000 of 7,320 +at least 46:22 left", lines[0])
    assert re.match(r"mining, generation 2 epoch 1 .* 1 of 17,320", lines[1])
    assert lines[2].strip() == "loss 0.2407 = hard 0.1234 + 0.5 x soft 0.2346, learning rate 0.001"
    assert re.fullmatch(r"  4\.2 tuples/s, 93 images/s; memory \d+\.\d GB", lines[3])
    assert re.fullmatch(r"  whole run: epoch 2 of 16, at least \d+:\d\d:\d\d left", lines[4])


def test_an_epoch_leaves_its_recalls_on_the_terminal():
    with Shown(terminal=True) as shown:
        shown.mine(1)
        shown.train(1, 1000)
        shown.now += 60
        shown.display.epoch(1, 1, report(7320, generation=1), {1: 0.806, 5: 0.876}, True)
        assert shown.display.bars.task_ids == []
        whole = shown.bars()[-1]
    assert "whole run: epoch 2 of 16" in whole
    text = CONTROL.sub("", shown.text())
    assert "generation 1, epoch 1: loss 0.1234 (hard)" in text
    # 173.2 s of mining from its first report on, 250 steps of a second, a minute of validation
    assert "validation recall@1/5 80.6/87.6 %, best so far; 7:46" in text


def test_a_log_file_gets_a_line_every_half_minute_and_no_control_character():
    with Shown(terminal=False) as shown:
        assert shown.display.bars is None
        cache = shown.display.task("frozen features, train")
        for done in range(0, 17321, 100):
            shown.now += 1.0
            cache(done, 17320)
        shown.mine(2)
        shown.train(2, 400)
        shown.display.epoch(2, 1, report(7320), {1: 0.806, 5: 0.876}, False)
    lines = shown.text().splitlines()
    # Each half minute of 174 s of cache, 173 s of mining, 100 s of steps; then the epoch.
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", shown.text())
    assert len(lines) == 5 + 5 + 3 + 2
    assert lines[0] == "frozen features, train: 2,900 of 17,320, 100.0/s, 2:24 left"
    assert lines[5] == "mining, generation 2 epoch 1: 1,732 of 17,320"
    assert re.match(
        r"generation 2, epoch 1: \d+ of 7,320, at least \d\d:\d\d left; loss .*; whole run: ", lines[-3]
    )
    assert lines[-2:] == [
        "generation 2, epoch 1: loss 0.2407 = hard 0.1234 + 0.5 x soft 0.2346",
        "  validation recall@1/5 80.6/87.6 %; 4:16",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (65.4, "1:05"), (3599.7, "1:00:00"), (7389, "2:03:09"), (273_600, "3 d 4:00")],
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text
