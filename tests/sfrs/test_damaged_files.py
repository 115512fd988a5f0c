"""Damaged files of ours: the smallest inputs that once ended in a traceback or took all memory."""

import json
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from report_data import evaluated
from test_runs import whole_run, write_run
from tiny_training import SIZE, network_of_seed, tiny_config

from sfrs.models.backbones import REGISTRY
from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.retrieval.index import Index, quantised, summarise
from sfrs.retrieval.index.derive import derive
from sfrs.retrieval.index.store import TABLE, Entry, Store
from sfrs.runtime.errors import UserError
from sfrs.runtime.tensor_files import read_safetensors, write_tensors
from sfrs.training.checkpoint import KEY
from sfrs.training.progress import TrainingProgress
from sfrs.training.runs import Run
from sfrs.training.trainer import train
from sfrs.web.report import Overrides
from sfrs.web.report.recorded import read_evaluation

ROWS = 160
CHECKPOINT = "checkpoints/latest.safetensors"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A compressed index of made-up descriptors."""
    monkeypatch.setattr(quantised, "FEWEST", 100)
    path = tmp_path / "i"
    path.mkdir()
    with closing(Store.create(path, Model(network_of_seed(), size=SIZE), "ivf")) as store:
        rows = np.random.default_rng(0).normal(size=(ROWS, 24)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        store.add([Entry(b"/made/up/%d.jpg" % i, 9.0 * i, 0.0, 0, 0) for i in range(ROWS)], rows)
        derive(store, None)
    return path


def change(index, statement: str, *values) -> None:
    with closing(sqlite3.connect(index / TABLE)) as database, database:
        database.execute(statement, values)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dim", 10**12, r"dim is 1000000000000, expected 24"),
        ("dim", "24", r'dim is "24", expected a whole number'),
        ("quarters_shape", [4, 4], "quarters_shape is .*, expected a list of 3"),
        ("kind", "pqq", "kind is .*, expected one of exact, float16"),
        ("kind", "exact", "compressed is not null, but kind is exact"),
        ("descriptors", "../../etc/passwd", "descriptors is .*, expected a file in the index"),
        ("descriptors", "x" * 300, "descriptors is .*, expected a file in the index"),
        ("digests", {}, "no architecture, weights, whitening, size in digests"),
        ("size", {"height": 3}, "size is .*, expected a list of 2 or a whole number or null"),
        ("generation", None, "generation is null"),
        ("format", 7, "this index has format 7"),
    ],
)
def test_a_wrong_setting_of_an_index_is_named(index, name, value, message):
    change(index, "UPDATE settings SET value = ? WHERE name = ?", json.dumps(value), name)
    with pytest.raises(UserError, match=message):
        Index.open(index)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE images SET slot = 4611686018427387904 WHERE slot = 159",
            "descriptors-0.float16: this file has",
        ),
        ("UPDATE images SET slot = -1 WHERE slot = 3", "its slots are not in order"),
        ("UPDATE images SET file = x'2f00' WHERE slot = 3", "its names of files are damaged"),
        ("UPDATE images SET file = 'text' WHERE slot = 3", "this table cannot be used"),
        ("UPDATE images SET easting = 'east' WHERE slot = 3", "this table cannot be used"),
        ("DELETE FROM settings WHERE name = 'zone'", "no zone in it"),
        ("UPDATE settings SET value = '{' WHERE name = 'zone'", "index.sqlite, zone: this is not JSON"),
        ("DROP TABLE images", "this table cannot be used"),
    ],
)
def test_a_wrong_row_of_an_index_is_named_before_memory_is_taken(index, statement, message):
    change(index, statement)
    with pytest.raises(UserError, match=message):
        Index.open(index)


def test_a_descriptor_that_is_no_unit_vector_is_damage(index):
    opened = Index.open(index)
    query = opened.descriptors(np.arange(1))
    assert opened.search(query, 3)[1][0, 0] == 0
    rows = np.fromfile(index / "descriptors-0.float16", np.float16).reshape(ROWS, 24)
    rows[0] *= 2
    rows.tofile(index / "descriptors-0.float16")
    with pytest.raises(UserError, match="its descriptors are damaged .they are no unit vectors.; build it"):
        Index.open(index).search(query, 3)
    rows[0, 0] = np.nan
    rows.tofile(index / "descriptors-0.float16")
    with pytest.raises(UserError, match="its descriptors are damaged .one holds values that are not finite"):
        Index.open(index).descriptors(np.arange(1))


def test_an_architecture_that_is_none_is_named(index):
    settings = json.dumps({"architecture": "[]", "weights": "", "whitening": "", "size": "null"})
    change(index, "UPDATE settings SET value = ? WHERE name = 'digests'", settings)
    with pytest.raises(UserError, match="architecture: the whole of it is .*, expected a list of 3"):
        summarise(index)


def test_a_compressed_copy_is_checked_before_it_is_read(index):
    file = index / "ivf-1.faiss"
    whole = file.read_bytes()
    for at in range(4, 44, 5):
        file.write_bytes(whole[:at] + b"\x7f" + whole[at + 1 :])
        with pytest.raises(UserError, match="ivf-1.faiss: this file is missing or damaged"):
            Index.open(index)
    file.write_bytes(whole)
    assert len(Index.open(index)) == ROWS


class Stop(TrainingProgress):
    def step(self, generation, epoch, report):
        if (generation, epoch, report.step) == (2, 1, 2):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def interrupted(places, tmp_path_factory):
    """A run that was stopped within generation 2."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(REGISTRY, "tiny", "tiny_backbone:TinyBackbone")
        train(places, CONFIG, folder, network=network_of_seed(), progress=Stop())
    return folder


CONFIG = tiny_config(epochs=(1, 1), checkpoint_minutes=0)


@pytest.mark.parametrize("name", ["initial.safetensors", "generation_1/best.safetensors", CHECKPOINT])
def test_a_run_does_not_go_on_without_a_network_of_it(places, interrupted, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(interrupted, run)
    (run / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{name}: this is (no|not)"):
        train(places, CONFIG, run, resume=True)
    if name != CHECKPOINT:  # without one it begins again
        (run / name).unlink()
        with pytest.raises(UserError, match=f"{name}: there is no such"):
            train(places, CONFIG, run, resume=True)


@pytest.mark.parametrize(
    ("tensor", "wrong", "message"),
    [
        ("student.vlad.centroids", lambda t: t[:2], r"student.vlad.centroids is float32 \[2, 6\], expected"),
        ("student.vlad.centroids", lambda t: t * np.nan, "holds values that are NaN"),
        ("momentum.0", lambda t: t.double(), "momentum.0 is float64"),
        ("momentum.0", lambda t: None, "momentum.0 is missing"),
        ("miner.previous_hardest", lambda t: t + 10**9, "holds .*, expected less than 30 rows"),
        ("miner.generator", lambda t: t * 0 + 255, "the state of a random generator is damaged"),
        ("tuples.negatives", lambda t: t - 10**9, "tuples.negatives holds"),
        ("tuples.queries", lambda t: t[:1], r"tuples.queries is int64 \[1\], expected int64"),
        ("epoch.sums", lambda t: None, "epoch.sums is missing"),
    ],
)
def test_a_wrong_tensor_of_a_checkpoint_is_named(places, interrupted, tmp_path, tensor, wrong, message):
    run = tmp_path / "run"
    shutil.copytree(interrupted, run)
    tensors, facts = read_safetensors(run / CHECKPOINT, KEY)
    if (changed := wrong(tensors.pop(tensor))) is not None:
        tensors[tensor] = changed
    write_tensors(run / CHECKPOINT, tensors, {KEY: json.dumps(facts)})
    with pytest.raises(UserError, match=f"latest.safetensors: .*{message}"):
        train(places, CONFIG, run, resume=True)


def test_a_run_that_is_too_long_is_refused_and_damaged_lines_are_counted(tmp_path):
    lines = whole_run()
    bad = [{"kind": "step", "generation": 1}, {"kind": "start", "host": 1}]
    path = write_run(tmp_path / "run", [*lines[:3], *bad, *lines[3:]])
    with pytest.warns(UserWarning, match="2 damaged lines are left out, the first is line 4: no epoch"):
        assert len(Run.read(path).lines) == len(lines)
    config = json.loads((path / "config.json").read_text())
    config["config"]["generations"] = 10**12
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json: generations is 10+, expected at least 1, at most"):
        Run.read(path)
    (path / "config.json").write_text(json.dumps(config | {"config": config["config"] | {"generations": 1}}))
    with pytest.raises(UserError, match="metrics.jsonl: a line is of generation 2, but the run has 1"):
        Run.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recalls": []}, "results.json: recalls is .*, expected an object"),
        ({"recalls": {"0": 1.0}}, "results.json: recalls are of .*, expected depths from 1"),
        ({"radius_m": 1e-9}, "none of the .* queries has a database image within 1e-09 m"),
        ({"radius_m": "far"}, "results.json: radius_m is .*, expected a number"),
        ({"skipped": [None]}, r"results.json: skipped\[0\] is null, expected an object"),
        ({"data": 7}, "results.json: data is 7, expected a text"),
        ({"split": "x" * 300}, "a name in it has more bytes than a file system takes"),
        ({"reading": {"zones": 3}}, "results.json: reading.zones is unknown, expected positions, track"),
        ({"reading": {"zone": 3}}, "results.json: reading.zone is 3, expected a text"),
    ],
)
def test_a_wrong_value_of_an_evaluation_is_named(tiny_network, tmp_path, changes, message):
    folder = evaluated(tmp_path, tiny_network)
    found = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(found | changes))
    with pytest.raises(UserError, match=message):
        read_evaluation(folder, Overrides())


def test_weights_that_say_half_of_how_they_were_trained_are_reported_on(tiny_network, tmp_path):
    folder = evaluated(tmp_path, tiny_network)
    save_network(tmp_path / "half.safetensors", tiny_network, {"generation": 2})
    subject = read_evaluation(folder, Overrides(weights=tmp_path / "half.safetensors"))
    assert "trained" not in subject.facts


@pytest.mark.parametrize(
    ("wrong", "message"), [(",one,", "rank is 'one', expected"), (",", "is not in town/test")]
)
def test_a_wrong_cell_of_predictions_is_named(tiny_network, tmp_path, wrong, message):
    folder = evaluated(tmp_path, tiny_network)
    text = (folder / "predictions.csv").read_text()
    (folder / "predictions.csv").write_text(text.replace(",1,", wrong, 1))
    with pytest.raises(UserError, match=f"predictions.csv, line 2: .*{message}"):
        read_evaluation(folder, Overrides())


def test_a_photograph_of_a_single_column_is_shown(tmp_path, tiny_network):
    for east in (0, 50):
        Image.new("RGB", (64, 48), (east, 0, 0)).save(tmp_path / f"@{east}@0@.png")
    index = Index.build(tmp_path, Model(tiny_network, size=SIZE), out=tmp_path / "i", regions=True)
    assert "<figure" in index.locate(Image.new("RGB", (1, 400)), rerank="regions")._repr_html_()
