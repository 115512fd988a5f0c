"""The fuzzer of files notices what is wrong, and every subject can be read undamaged."""

import tempfile
from pathlib import Path
from random import Random

import fuzz_files
import pytest
from damage import BY_SUFFIX, damage
from fuzz_files import Readers, attempt
from subjects import SUBJECTS, Subject

from sfrs.runtime.errors import UserError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_every_subject_can_be_read_undamaged(subject, tmp_path):
    folder = tmp_path / "subject"
    subject.prepare(folder)
    assert attempt(subject, folder, subject.damageable()[0], refusals=False) == ""
    subject.restore(folder)
    assert sorted(file for file in folder.rglob("*") if file.is_file()) == sorted(subject.files)


@pytest.fixture
def fault_of(tmp_path, monkeypatch):
    """What the fuzzer says of a reader."""

    def call(read) -> str:
        subject = Subject("lines", lambda folder: (folder / "a.txt").write_text("some text"), read)
        readers = Readers.__new__(Readers)
        readers.folder = Path(tempfile.mkdtemp(dir=tmp_path))
        readers.ready, readers.subjects, readers.shares = set(), [subject], [1]
        monkeypatch.setattr(fuzz_files.resource, "setrlimit", lambda *_: None)
        return readers.fault(1)

    return call


def test_a_refusal_is_right_and_any_other_exception_is_a_fault(fault_of):
    def read(error):
        def call(folder: Path, file: Path) -> None:
            if not file.is_file() or file.read_text(errors="replace") != "some text":
                raise error

        return call

    assert fault_of(read(UserError("a.txt: this is no text"))) == ""
    assert "a.txt" in (found := fault_of(read(KeyError("size")))) and "KeyError: 'size' (" in found
    assert "MemoryError" in fault_of(read(MemoryError()))


def test_a_file_that_is_left_half_written_is_a_fault(fault_of):
    assert "b.partial left" in fault_of(lambda folder, file: (folder / "b.partial").write_text("x"))


@pytest.mark.parametrize("suffix", ["", *BY_SUFFIX])
def test_a_seed_is_the_same_damage(suffix, tmp_path):
    names = {"": "images", ".sqlite": "index", ".csv": "data sets"}
    made = next(subject for subject in SUBJECTS if subject.name == names.get(suffix, "run"))
    folder = tmp_path / "subject"
    made.prepare(folder)
    file = next(file for file in made.damageable() if file.name.endswith(suffix))
    found = set()
    for seed in range(12):
        both = []
        for _ in range(2):
            how = damage(file, Random(seed))
            both.append((how, file.read_bytes()))
            made.restore(folder)
        assert both[0] == both[1]
        found.add(both[0][1])
    assert len(found) > 6
