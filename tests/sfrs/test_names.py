"""Whatever a file is called, every command shows its name as it is, on one line and without markup."""

import os
import subprocess
import sys

import pytest
from report_data import evaluated
from test_runs import whole_run, write_run

from sfrs.runtime.errors import counted
from sfrs.runtime.terminal import plain, progress_tasks, say, show, show_error

NAME = "x][bold]b[1]\n\x1b[31m\udcff"
SHOWN = r"[/x][bold]b[1]\n\x1b[31m\xff"
"""The end of the folder's path, and how it is printed."""


@pytest.fixture
def folder(tmp_path, tiny_network, monkeypatch):
    """A folder whose name holds markup, a line break, an escape sequence and a byte that is no text."""
    monkeypatch.setenv("COLUMNS", "400")
    path = tmp_path / "[" / NAME
    path.mkdir(parents=True)
    evaluated(path, tiny_network)
    write_run(path / "runs/a", whole_run())
    write_run(path / "runs/b", whole_run(), data=str(path))
    return path


def test_every_command_shows_names_as_they_are(folder, run):
    town, network, index = folder / "town", folder / "tiny.safetensors", folder / "i"
    photos, whitening = town / "images/test/database", folder / "w.safetensors"
    for arguments in (
        ("data", "check", town),
        ("index", photos, "--weights", network, "--out", index),
        ("index", "--out", index, "--info"),
        ("locate", photos, "--index", index, "--geojson", folder / "x.geojson"),
        ("describe", photos, "--weights", network, "--out", folder / "x.npy"),
        ("evaluate", "--data", town, "--weights", network, "--out", folder / "e"),
        ("report", folder / "evaluation", "--out", folder / "page", "--cases", "1"),
        ("runs", folder / "runs"),
        ("export", network, "--out", folder / "y.safetensors"),
        ("whiten", "--data", town, "--split", "test", "--weights", network, "--dim", 4, "--out", whitening),
        # Commands that refuse it name it, too.
        ("city", "--out", folder),
        ("train", "--data", town, "--preset", "demo", "--out", folder / "r"),
        ("train", "--resume", folder / "nowhere"),
        ("serve", "--index", folder / "nowhere"),
        ("locate", photos, "--index", folder / "nowhere"),
    ):
        _, out, err = run(*arguments)
        assert SHOWN in out + err, (arguments, out, err)
        assert "\x1b" not in out + err and "\udcff" not in out + err and "Traceback" not in err, arguments


def test_results_are_one_line_each(folder, run):
    out = run("locate", folder / "town/images/test/queries", "--index", make_index(folder, run))[1]
    assert sum(line.startswith(plain(folder)) for line in out.splitlines()) == 12


def make_index(folder, run):
    photos = folder / "town/images/test/database"
    code, _, err = run("index", photos, "--weights", folder / "tiny.safetensors", "--out", folder / "i")
    assert code == 0, err
    return folder / "i"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a[bold]b[1].jpg", "a[bold]b[1].jpg"),
        ("[/x] :smile: <a>", "[/x] :smile: <a>"),
        ("a\nb\tc\x1b[2J", r"a\nb\tc\x1b[2J"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("Kødbyen 東京", "Kødbyen 東京"),
        ("\u202egpj.exe\u2028", r"\u202egpj.exe\u2028"),
    ],
)
def test_a_name_is_shown_alike_wherever_it_is_printed(name, shown, capsys):
    show(name)
    say(name, ("styled", "red"))
    show_error(ValueError(f"{name}: wrong:\n  second line"))
    with progress_tasks() as tasks:
        tasks(name)(1, 2)
    out, err = capsys.readouterr()
    assert out == f"{shown}\n"
    assert err.startswith(f"{shown}styled\nError: {shown}: wrong:\n  second line\n")


def test_names_that_the_output_cannot_encode_are_escaped(tmp_path):
    code = "from sfrs.runtime.terminal import *; encode_anything(); show('ø[b]')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\\xf8[b]\n")


def test_counts_are_singular_or_plural():
    assert [counted(n, "query", "queries") for n in (0, 1, 2000)] == ["0 queries", "1 query", "2,000 queries"]
    assert [counted(n, "image") for n in (1, 2)] == ["1 image", "2 images"]


def test_progress_shows_one_time(capsys):
    with progress_tasks() as tasks:
        report = tasks("describing")
        report(1, 2)
        report(2, 2)
    err = capsys.readouterr().err
    assert err.startswith("describing") and "2 of 2" in err
    assert err.count(":") == 1 and err.split()[-1] == "00:00"
