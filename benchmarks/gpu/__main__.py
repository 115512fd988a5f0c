"""``python -m benchmarks.gpu [--quick] [--case PATTERN ...] [--seconds N]``: the operators on a GPU.

Writes benchmarks/results/<gpu>.json and .md after every case, each as a whole. Times are of the device: calls
are replayed as CUDA graphs, between CUDA events, with a cold L2; what a call from Python takes stands beside
them. No time is taken of a contender that differs from the float64 reference, and the command fails if
that is ours. ``--device cpu`` rehearses the whole on small sizes.
"""

import argparse
import datetime
import fnmatch
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import sfrs_ext

from ..cases import OURS
from ..record import RESULTS, ROOT, commit, write_json, write_text
from .cases import EAGER, TINY, Case, Sizes, registry
from .report import markdown

LONGEST = 180.0  # seconds for one contender, compilation included
PATIENCE = 10.0  # seconds for a process that has nothing more to say to end
GRACE = 20.0  # seconds for what is under way when the time is over
CRASHED = "crashed or hung"
WORKER = [sys.executable, "-m", "benchmarks.gpu.worker"]


def facts(arguments: list[str]) -> dict:
    try:
        from sfrs_ext import _C_cuda

        kernels = f"{_C_cuda.architectures()}, nvcc {_C_cuda.compiler()}"
    except ImportError:
        kernels = "none"
    return {
        "torch": torch.__version__,
        "sfrs_ext": sfrs_ext.__version__,
        "kernels": kernels,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks.gpu", *arguments]),
    }


QUICK_CASES, QUICK_TURNS = 12, 1


def order(cases: dict[str, Case], quick: bool) -> list[tuple[str, str]]:
    """(case, contender) by turns; a quick run has the first cases and turns only, and few peers."""
    chosen = list(cases.values())[: QUICK_CASES if quick else None]
    work = [(contender.turn, case, name) for case in chosen for name, contender in case.contenders.items()]
    if quick:
        first = chosen[0]
        work = [
            (turn, case, name)
            for turn, case, name in work
            if name in (OURS, EAGER) or (case is first and turn <= QUICK_TURNS)
        ]
    return [(case.name, name) for _, case, name in sorted(work, key=lambda item: item[0])]


def lines(pipe: int, deadline: float) -> Iterator[str]:
    """Lines of a pipe until it is closed, or silent for too long or until the deadline."""
    buffer = b""

    def patience() -> float:
        return max(0.0, min(LONGEST, deadline - time.time()))

    while select.select([pipe], [], [], patience())[0] and (data := os.read(pipe, 1 << 16)):
        *complete, buffer = (buffer + data).split(b"\n")
        yield from (line.decode() for line in complete)


class Session:
    """Runs workers until the work or the time is over; keeps the files up to date."""

    def __init__(self, arguments: argparse.Namespace, command: list[str]):
        self.arguments = arguments
        self.cases = registry(TINY if arguments.tiny else Sizes())
        patterns = arguments.case or ["*"]
        self.cases = {n: c for n, c in self.cases.items() if any(fnmatch.fnmatch(n, p) for p in patterns)}
        if not self.cases:
            raise SystemExit(f"benchmarks: no case is called {' or '.join(patterns)}; see --list")
        chosen = arguments.contender or ["*"]
        self.waiting = [
            (case, name)
            for case, name in order(self.cases, arguments.quick)
            if any(fnmatch.fnmatch(name, pattern) for pattern in chosen)
        ]
        self.recorded: dict = {"machine": facts(command), "ceilings": None, "results": {}}
        self.deadline = time.time() + arguments.seconds
        self.log = tempfile.TemporaryFile("w+")

    def run(self) -> bool:
        """Whether all that was asked of ours and could be done in time is right and measured."""
        while self.waiting and time.time() < self.deadline:
            before = len(self.waiting)
            self.one_worker()
            if len(self.waiting) == before:
                break
        for case, contender in self.waiting:
            self.keep(case, contender, {"status": "not measured: out of time"})
        self.write()
        ours = [r[OURS]["status"] for r in self.recorded["results"].values() if OURS in r]
        return self.recorded["ceilings"] is not None and not {"refused", "failed", CRASHED} & set(ours)

    def one_worker(self) -> None:
        reading, writing = os.pipe()
        request = {
            "pipe": writing,
            "device": self.arguments.device,
            "tiny": self.arguments.tiny,
            "repeat": 0.3 if self.arguments.quick or self.arguments.tiny else 1.0,
            "ceilings": self.recorded["ceilings"] is None,
            "items": self.waiting,
            "deadline": self.deadline,
        }
        worker = subprocess.Popen(
            WORKER,
            cwd=ROOT.parent,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            pass_fds=[writing],
            text=True,
        )
        os.close(writing)
        try:
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.close()
            current = self.listen(reading)
            code = worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = "none"
        finally:
            worker.kill()
            worker.wait()
            os.close(reading)
        if time.time() > self.deadline + GRACE:
            return
        if current in self.waiting:
            self.done(*current, {"status": CRASHED, "error": self.last_words(code)})
        elif code:
            print(f"benchmarks: the measuring process ended: {self.last_words(code)}", file=sys.stderr)

    def listen(self, reading: int) -> tuple[str, str] | None:
        """Follows a worker to its end; returns what it was at when it stopped in the middle."""
        current = None
        for line in lines(reading, self.deadline + GRACE):
            message = json.loads(line)
            if "begin" in message:
                current = tuple(message["begin"])
            elif "ceilings" in message:
                self.recorded["ceilings"], current = message["ceilings"], None
                self.recorded["machine"] = message["facts"] | self.recorded["machine"]
            else:
                self.done(*message["done"], message["record"])
                current = None
        return current

    def last_words(self, code: int | str) -> str:
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return f"exit {code}: {lines[-1][:300] if lines else 'no output'}"

    def done(self, case: str, contender: str, record: dict) -> None:
        self.waiting.remove((case, contender))
        self.keep(case, contender, record)
        took = f"{record['device']['median']:10.1f} us" if "device" in record else " " * 13
        print(f"{took}  {case}  {contender}  {record['status']} {record.get('error', '')}", flush=True)
        self.write()

    def keep(self, name: str, contender: str, record: dict) -> None:
        case = self.cases[name]
        described = {"about": case.about, "precision": case.precision, "shapes": case.shapes}
        counted = {"bytes": case.bytes, "flops": case.flops, "backward": case.backward}
        self.recorded["results"].setdefault(name, {"case": described | counted})[contender] = record

    def write(self) -> None:
        name = self.recorded["machine"].get("gpu", self.arguments.device)
        slug = re.sub(r"[^a-z0-9]+", "-", name.split(":")[0].lower()).strip("-")
        stem = self.arguments.out or RESULTS / slug
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_json(stem.with_name(stem.name + ".json"), self.recorded)
        write_text(stem.with_name(stem.name + ".md"), markdown(self.recorded))
        self.written = stem


def main(command: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--case", action="append", metavar="PATTERN", help="only these, * matches anything")
    parser.add_argument("--contender", action="append", metavar="PATTERN", help="only these, likewise")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="the first cases, fewer repetitions")
    parser.add_argument("--seconds", type=float, default=280.0, help="start nothing new after so long")
    parser.add_argument("--out", type=Path, help="where to write, without the ending")
    parser.add_argument("--list", action="store_true", help="print the names of all cases")
    arguments = parser.parse_args(command)
    arguments.tiny = arguments.device == "cpu"
    if arguments.list:
        print("\n".join(registry(Sizes())))
        return
    if arguments.tiny and not arguments.out:
        parser.error("--device cpu is a rehearsal: name a place for its files with --out")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks: stopped"))  # ends the worker, too
    session = Session(arguments, command)
    good = session.run()
    print(f"wrote {session.written}.json and .md")
    if not good:
        raise SystemExit("benchmarks: not every figure of ours could be taken; see the lines above")


if __name__ == "__main__":
    main(sys.argv[1:])
