"""Whole small runs: what they leave, what they share, and what they need beforehand."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_training import SIZE, cache_of, network_of_seed, tiny_config

from sfrs.data.jitter import ColorJitter
from sfrs.features.on_the_fly import OnTheFlyFeatures
from sfrs.features.source import describe_features
from sfrs.models.fitting import kmeans
from sfrs.models.model import Model
from sfrs.runtime.errors import UserError
from sfrs.training.epoch import Epoch
from sfrs.training.preparation import build_features, build_network
from sfrs.training.progress import TrainingProgress
from sfrs.training.trainer import train

pytestmark = pytest.mark.slow

SPOTS = (16, 8)


def test_a_run_leaves_its_configuration_metrics_and_networks(places, tmp_path):
    config = tiny_config(jitter=(0.4, 0.4, 0.4, 0.1))
    result = train(places, config, tmp_path / "run", network=network_of_seed())
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["config"] == config.to_dict()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [(line["generation"], line["epoch"]) for line in epochs] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert {line["kind"] for line in lines} == {"start", "initial", "step", "epoch"}
    assert lines[0]["processes"] == 1 and all(line["time"] > 0 for line in lines)
    assert all(line["images_per_second"] > 0 and line["peak_bytes"] > 1e6 for line in epochs)
    assert all(math.isfinite(line["total"]) for line in epochs)
    assert [line["soft"] > 0 for line in epochs] == [False, False, True, True]
    for number, generation_result in enumerate(result.generations, start=1):
        of_generation = [line for line in epochs if line["generation"] == number]
        best = max(of_generation, key=lambda line: (line["recalls"]["5"], -line["epoch"]))
        assert generation_result.epoch == best["epoch"]
        assert generation_result.recalls == {int(n): r for n, r in best["recalls"].items()}
        assert result.network(number).meta["generation"] == number
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert (tmp_path / "run/recall.png").stat().st_size > 1000


def test_a_generations_student_starts_from_the_initial_weights_and_its_teacher_is_the_best_before(
    places, tmp_path, monkeypatch
):
    seen = {}

    def spy(pair, epoch, *args):
        if epoch == 1:
            states = [pair.student.state_dict()]
            states += [pair.teacher.state_dict()] if pair.teacher else []
            seen[pair.generation] = [{k: v.clone() for k, v in state.items()} for state in states]
        return Epoch(pair, epoch, *args)

    monkeypatch.setattr("sfrs.training.trainer.Epoch", spy)
    result = train(
        places, tiny_config(generations=3, epochs=(2, 1)), tmp_path / "run", network=network_of_seed()
    )
    initial = result.network(0).state_dict()
    for number in (1, 2, 3):
        assert all(torch.equal(value, initial[name]) for name, value in seen[number][0].items())
    for number in (2, 3):
        teacher = result.network(number - 1).state_dict()
        assert all(torch.equal(value, teacher[name]) for name, value in seen[number][1].items())


def test_the_last_epochs_network_teaches_if_asked_even_where_an_earlier_one_is_better(
    places, tmp_path, monkeypatch
):
    students, teachers = {}, {}

    def spy(pair, *args):
        students[pair.generation], teachers[pair.generation] = pair.student, pair.teacher
        return Epoch(pair, *args)

    monkeypatch.setattr("sfrs.training.trainer.Epoch", spy)
    alike = dict.fromkeys((1, 5, 10, 20), 0.5)  # the first epoch is the best
    monkeypatch.setattr("sfrs.training.trainer._Run._validate", lambda self, network: alike)
    config = tiny_config(epochs=(2, 1), teacher="last")
    result = train(places, config, tmp_path / "run", network=network_of_seed())
    teacher, last = teachers[2].state_dict(), students[1].state_dict()
    assert all(torch.equal(value, last[name]) for name, value in teacher.items())
    assert result.generations[0].epoch == 1
    best = result.network(1).state_dict()
    assert not all(torch.equal(value, last[name]) for name, value in best.items())


def test_kmeans_gives_the_initial_network_its_clusters_and_given_leaves_them(places, tmp_path, monkeypatch):
    asked = []

    def spy(*args, iterations, **options):
        asked.append(iterations)
        return kmeans(*args, iterations=iterations, **options)

    monkeypatch.setattr("sfrs.models.fitting.kmeans", spy)
    network = network_of_seed()
    one = dict(generations=1, epochs=(1,))
    given = train(places, tiny_config(init="given", **one), tmp_path / "given", network=network)
    clustered = train(places, tiny_config(init_iterations=7, **one), tmp_path / "kmeans", network=network)
    assert asked == [7]
    assert torch.equal(given.network(0).vlad.centroids, network.vlad.centroids)
    centres = clustered.network(0).vlad.centroids
    assert not torch.equal(centres, network.vlad.centroids)
    assert (centres.norm(dim=1) <= 1 + 1e-5).all()  # means of unit vectors


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(places, tmp_path):
    settings = dict(generations=1, epochs=(1,), jitter=(0.4, 0.4, 0.4, 0.1))
    states = []
    for name, seed, workers in (("a", 0, 1), ("b", 0, 4), ("c", 1, 1)):
        config = tiny_config(seed=seed, workers=workers, **settings)
        states.append(train(places, config, tmp_path / name).network().state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_variants_can_share_generation_one(places, tmp_path):
    config = tiny_config(epochs=(2, 1), teacher="last")
    whole = train(places, config, tmp_path / "whole", network=network_of_seed())
    shared = train(places, config, tmp_path / "shared", first_generation=tmp_path / "whole")
    assert shared.generations[0].recalls == whole.generations[0].recalls
    ours, theirs = shared.network().state_dict(), whole.network().state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(UserError, match="whole: the run was made with other images"):
        train(places[::-1], config, tmp_path / "x", first_generation=tmp_path / "whole")
    with pytest.raises(UserError, match="generations is 1"):
        train(places, config.changed(generations=1), tmp_path / "x", first_generation=tmp_path / "whole")
    (tmp_path / "whole/generation_1/last.safetensors").unlink()
    with pytest.raises(UserError, match="whole: teacher is last, but the run did not keep that network"):
        train(places, config, tmp_path / "x", first_generation=tmp_path / "whole")


def test_a_generation_one_that_is_not_finished_is_not_taken_over(places, tmp_path):
    class Stop(TrainingProgress):
        def epoch(self, *rest):
            raise KeyboardInterrupt

    config, other = tiny_config(epochs=(2, 1)), tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        train(places, config, other, network=network_of_seed(), progress=Stop())
    assert (other / "generation_1/best.safetensors").exists()
    for _ in range(2):
        with pytest.raises(UserError, match="other: the run has not finished generation 1 yet"):
            train(places, config, tmp_path / "x", first_generation=other)
        (other / "generation_1/best.safetensors").unlink(missing_ok=True)
    assert not (tmp_path / "x/config.json").exists()


def test_runs_can_share_frozen_features_and_the_global_generator_is_left_alone(places, tmp_path):
    config = tiny_config(generations=1, epochs=(1,))
    network = network_of_seed()
    features = build_features(config, network, places)
    before = torch.get_rng_state()
    shared = train(places, config, tmp_path / "a", network=network, features=features)
    assert torch.equal(before, torch.get_rng_state())
    alone = train(places, config, tmp_path / "b", network=network)
    theirs = alone.network().state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in shared.network().state_dict().items())


def test_a_directory_that_holds_a_run_is_not_overwritten(places, tmp_path):
    config = tiny_config(generations=1, epochs=(1,))
    train(places, config, tmp_path / "run", network=network_of_seed())
    with pytest.raises(UserError, match="there is a run here already"):
        train(places, config, tmp_path / "run", network=network_of_seed())


def test_progress_is_told_of_tasks_steps_and_epochs(places, tmp_path):
    class Record(TrainingProgress):
        def __init__(self):
            self.tasks, self.steps, self.epochs = [], 0, []

        def task(self, name):
            self.tasks.append(name)
            return super().task(name)

        def step(self, *args):
            self.steps += 1

        def epoch(self, generation, epoch, report, recalls, best):
            self.epochs.append((generation, epoch, best))

    record = Record()
    config = tiny_config(generations=1, epochs=(2,))
    train(places, config, tmp_path / "run", network=network_of_seed(), progress=record)
    assert record.tasks[:2] == ["frozen features, train", "frozen features, val"]
    assert record.steps == 2 * 5  # 16 queries in chunks of 7, 7 and 2, up to four to a step
    assert [entry[:2] for entry in record.epochs] == [(1, 1), (1, 2)]
    assert record.epochs[0][2] is True


@pytest.mark.parametrize("cache", ["ram", "disk", "off"])
def test_every_kind_of_cache_gives_the_trunks_features(places, tmp_path, cache):
    config = tiny_config(trunk_cache=cache, cache_dtype="float32")
    network = network_of_seed()
    features = build_features(config, network, places, directory=tmp_path)
    numbers = torch.tensor([3, 0, 20])
    files = places[0].queries.files + places[0].database.files
    expected = OnTheFlyFeatures(network, [files[i] for i in numbers], SIZE)(torch.arange(3))
    torch.testing.assert_close(features.train(numbers), expected)
    assert features.train(numbers).dtype == torch.float32
    assert (tmp_path / "trunk_train.bin").exists() == (cache == "disk")


def test_a_trunk_cache_that_would_overflow_names_the_image(places):
    network = network_of_seed()
    network.backbone.std = (1e-6, 1e-6, 1e-6)
    with pytest.raises(UserError, match=r"train_0_3\.png.*float16.*--cache-dtype float32"):
        cache_of(network, places[0].queries.files, SIZE)


def test_descriptors_from_the_cache_are_those_of_the_images(places):

    network, files = network_of_seed(), places[0].database.files
    cache = cache_of(network, files, SIZE, dtype=torch.float32)
    described = describe_features(network, cache, torch.arange(len(files)), batch_size=5)
    np.testing.assert_allclose(described.numpy(), Model(network, size=SIZE).encode(files), atol=1e-6)


def test_jitter_draws_do_not_depend_on_workers(places):
    found = []
    for workers in (1, 3):
        jitter = ColorJitter(0.7, 0.7, 0.7, 0.5, seed=5)
        source = OnTheFlyFeatures(
            network_of_seed(), places[0].database.files, SIZE, jitter=jitter, workers=workers, batch_size=4
        )
        found.append(source(torch.arange(20)))
    assert torch.equal(*found)
    plain = OnTheFlyFeatures(network_of_seed(), places[0].database.files, SIZE)(torch.arange(20))
    assert (plain - found[0]).abs().mean() > 0.05


def test_a_network_that_is_not_the_configurations_is_refused(places, tmp_path):
    with pytest.raises(UserError, match="clusters is 5, but the network given has 4"):
        train(places, tiny_config(clusters=5), tmp_path / "run", network=network_of_seed())
    assert not (tmp_path / "run").exists()


def test_build_network_refuses_weights_of_another_backbone(tmp_path):
    from sfrs.models.network import save_network

    save_network(tmp_path / "w.safetensors", network_of_seed())
    weights = str(tmp_path / "w.safetensors")
    assert build_network(tiny_config(weights=weights)).backbone.name == "tiny"
    assert build_network(tiny_config(weights=weights, clusters=7)).vlad.num_clusters == 7
    with pytest.raises(UserError, match="backbone is vgg16, but the network given has tiny"):
        build_network(tiny_config(weights=weights, backbone="vgg16"))
    with pytest.raises(UserError, match="clusters is 7, but the network given has 4"):
        build_network(tiny_config(weights=weights, clusters=7, init="given"))
