"""``python tests/fuzz/fuzz_files.py [--minutes N] [--seed N]``: damaged files of every format that is read.

Every seed damages one file and reads it as the commands do. Allowed are an answer and a message of ours: no
other exception, no death, no half-written file, and no more memory than `MEMORY` beyond what a process holds
that has read the undamaged files. What failed is printed with the command that repeats it.
"""

import argparse
import io
import resource
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random

from children import run_children, work

MEMORY = 2 * 2**30
"""Bytes of address space that a damaged file may make a process take."""
IN_MEMORY = Path("/dev/shm")
"""Where writing is fast, if there is such a folder."""
FRAMES = 3
"""Of a traceback, that a report shows."""


class Readers:
    """Subjects in a folder, made when their turn comes."""

    def __init__(self, folder: Path):
        from subjects import SUBJECTS

        self.folder, self.ready = folder, set()
        self.subjects, self.shares = SUBJECTS, [subject.share for subject in SUBJECTS]

    def fault(self, seed: int) -> str:
        """Damage a file and read it; return what is wrong, or nothing."""
        random = Random(seed)
        subject = random.choices(self.subjects, self.shares)[0]
        folder = self.folder / subject.name
        if subject.name not in self.ready:
            self._prepare(subject, folder)
        file = random.choice(subject.damageable())
        if subject.name not in self.ready:
            self._read_undamaged(subject, folder, file)
        how = damaged(file, random)
        try:
            wrong = attempt(subject, folder, file)
            left = [path.name for path in folder.rglob("*.partial*")]
            wrong = wrong or (f"{', '.join(left)} left" if left else "")
        finally:
            subject.restore(folder)
        return wrong and f"{subject.name}, {file.relative_to(folder)}: {how}: {wrong}"

    def _prepare(self, subject, folder: Path) -> None:
        unlimited = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            subject.prepare(folder)

    def _read_undamaged(self, subject, folder: Path, file: Path) -> None:
        if wrong := attempt(subject, folder, file, refusals=False):
            raise RuntimeError(f"{subject.name}, {file.name}, undamaged: {wrong}")
        subject.restore(folder)
        self.ready.add(subject.name)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        unlimited = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, unlimited))


def damaged(file: Path, random: Random) -> str:
    from damage import damage

    if random.random() < 0.02:
        file.unlink()
        return "removed"
    return damage(file, random)


def attempt(subject, folder: Path, file: Path, *, refusals: bool = True) -> str:
    """Read a file; return an exception and where it was raised, nothing if it is a refusal of ours."""
    from sfrs.runtime.errors import UserError

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            subject.read(folder, file)
    except Exception as error:
        if refusals and isinstance(error, UserError):
            return ""
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        where = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})"
    return ""


def fuzz(seed: int, step: int, seconds: float) -> None:
    """Damage and read files, from a seed on."""
    from subjects import array_files, convert_in_fork

    array_files.run_child = convert_in_fork
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        readers = Readers(Path(folder))
        work(seed, step, seconds, lambda at: (1, readers.fault(at)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="how long; a single seed without")
    parser.add_argument("--seed", type=int, default=int(time.time()) * 1000, help="the first one")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        seed, step, seconds = options.child
        fuzz(int(seed), int(step), float(seconds))
        return 0
    read, failed = run_children([__file__], options.seed, 1, 60 * options.minutes)
    print(f"{read} damaged files, {failed} failed seeds")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
