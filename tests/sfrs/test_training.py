"""Training steps and whole small runs."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from tiny_training import SIZE, network_of_seed, tiny_config, tiny_places

import sfrs_ext
from sfrs.checkpoint import load_momentum, momentum_state
from sfrs.errors import UserError
from sfrs.fresh_trunk import FreshTrunk
from sfrs.generations import train
from sfrs.jitter import ColorJitter
from sfrs.losses import sare_ind, soft_loss
from sfrs.mining import Miner, Tuples
from sfrs.neighbourhood import Neighbourhood
from sfrs.preparation import build_network, build_trunks, init_clusters
from sfrs.progress import Silent
from sfrs.training import learning_rate, sgd, train_epoch
from sfrs.trunk_cache import TrunkCache
from sfrs.trunk_source import describe_trunk, step_number
from sfrs.tuple_losses import DivergedError, Generation, TrainingImages, tuple_losses


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    return tiny_places(folder, "train", spots=16, seed=0), tiny_places(folder, "val", spots=8, seed=1)


@pytest.fixture
def images(places):
    train_places, _ = places
    files = train_places.queries.files + train_places.database.files
    cache = TrunkCache.build(network_of_seed(), files, SIZE, dtype=torch.float32)
    names = tuple(str(file) for file in files)
    return TrainingImages(len(train_places.queries), len(train_places.database), cache, cache, names)


def generation(places, config, number=2, seed=0):
    student = network_of_seed(seed)
    teacher = network_of_seed(seed + 1).eval().requires_grad_(False) if number > 1 else None
    optimizer = sgd(student, config)
    miner = Miner(Neighbourhood.of_places(places[0], config), config, seed=seed)
    return Generation(number, student, teacher, optimizer, miner)


TUPLES = Tuples(
    torch.tensor([4, 0]),
    torch.tensor([12, 1]),
    torch.tensor([[1, 7, 20], [12, 30, 7]]),
    torch.tensor([[13, 12], [2, -1]]),
)


def test_a_step_computes_the_losses_of_every_tuple_by_itself(places, images):
    """Images shared between tuples go through the network once; the losses must not notice."""
    config = tiny_config(teacher_temperatures=(0.07, 0.05), soft_negatives=True)
    both = generation(places, config)
    losses = tuple_losses(both, TUPLES, images, config)
    hard, soft = losses.hard, losses.soft
    gradients = torch.autograd.grad(hard + 0.5 * soft, list(both.student.trained_parameters()))
    expected_hard, expected_soft = 0, 0
    for t in range(2):
        difficult = TUPLES.difficult[t][TUPLES.difficult[t] >= 0]
        gallery = torch.cat((TUPLES.positives[t : t + 1], TUPLES.negatives[t], difficult))
        similarity = []
        for network in (both.student, both.teacher):
            query = network.descriptor(images.steps(TUPLES.queries[t : t + 1]))
            quarters = network.quarters(images.steps(gallery + images.queries))
            similarity.append(sfrs_ext.region_similarity(query, quarters[None]))
        ours, theirs = similarity
        negatives = ours[:, 1:4].max(dim=2).values
        expected_hard = expected_hard + sare_ind(ours[:, 0, 0], negatives) / 2
        soft_part = soft_loss(ours[:, 4:], theirs[:, 4:], 0.05, 0.07, negatives=ours[:, 1:4])
        expected_soft = expected_soft + soft_part / 2
    torch.testing.assert_close(hard, expected_hard)
    torch.testing.assert_close(soft, expected_soft)
    expected = torch.autograd.grad(
        expected_hard + 0.5 * expected_soft, list(both.student.trained_parameters())
    )
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_every_distinct_image_is_asked_for_once(places, images):
    asked = []

    def source(numbers, *, step=0):
        asked.append(numbers)
        return images.mining(numbers)

    config = tiny_config()
    counting = TrainingImages(images.queries, images.database, source, images.mining, images.names)
    tuple_losses(generation(places, config), TUPLES, counting, config)
    expected = [0, 4] + [16 + i for i in (1, 2, 7, 12, 13, 20, 30)]
    assert [numbers.tolist() for numbers in asked] == [expected]


def test_generation_one_uses_whole_images_and_no_teacher(places, images):
    config = tiny_config()
    first = generation(places, config, number=1)
    first.student.vlad.quarters = None  # computing a region would fail
    losses = tuple_losses(first, TUPLES, images, config)
    hard, soft = losses.hard, losses.soft
    positives = first.student.descriptor(images.steps(TUPLES.positives + images.queries))
    negatives = first.student.descriptor(images.steps((TUPLES.negatives + images.queries).flatten()))
    queries = first.student.descriptor(images.steps(TUPLES.queries))
    similarity = torch.einsum("td,tnd->tn", queries, negatives.unflatten(0, (2, 3)))
    torch.testing.assert_close(hard, sare_ind((queries * positives).sum(1), similarity))
    assert soft.item() == 0


def test_image_level_options_compute_no_regions(places, images):
    config = tiny_config(region_negatives=False, soft_level="image")
    second = generation(places, config)
    second.student.vlad.quarters = second.teacher.vlad.quarters = None
    soft = tuple_losses(second, TUPLES, images, config).soft
    assert soft.item() > 0


def test_image_level_labels_with_region_negatives_are_those_of_whole_images(places, images):
    plain = tiny_config(region_negatives=False, soft_level="image", soft_negatives=True)
    mixed = plain.changed(region_negatives=True)
    second = generation(places, plain)
    soft = tuple_losses(second, TUPLES, images, plain).soft
    same = tuple_losses(second, TUPLES, images, mixed).soft
    torch.testing.assert_close(soft, same)


def test_only_the_head_and_netvlad_of_the_student_learn(places, images):
    config = tiny_config()
    second = generation(places, config)
    before = {name: value.clone() for name, value in second.student.state_dict().items()}
    taught = {name: value.clone() for name, value in second.teacher.state_dict().items()}
    train_epoch(second, 1, images, config)
    for name, value in second.student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone.trunk.")
    assert all(torch.equal(value, taught[name]) for name, value in second.teacher.state_dict().items())


def test_an_epoch_trains_every_query_once_and_reports_means(places, images):
    config = tiny_config(tuples_per_step=3, refresh_every=7)
    reports, mined = [], []
    summary = train_epoch(
        generation(places, config),
        1,
        images,
        config,
        on_step=reports.append,
        on_mining=lambda done, total: mined.append((done, total)),
    )
    assert [report.done for report in reports] == [3, 6, 7, 10, 13, 14, 16]
    assert summary.of == summary.done == 16
    weights = [3, 3, 1, 3, 3, 1, 2]
    mean = sum(w * r.total for w, r in zip(weights, reports, strict=True)) / 16
    assert summary.total == pytest.approx(mean)
    assert summary.total == pytest.approx(summary.hard + 0.5 * summary.soft)
    assert mined.count((64, 64)) == 3  # three refreshes of all 64 images


def test_steps_on_the_same_tuples_lower_both_losses(places, images):
    config = tiny_config()
    second = generation(places, config)
    init_clusters(config, second.student, images)
    history = []
    for _ in range(60):
        losses = tuple_losses(second, TUPLES, images, config)
        hard, soft = losses.hard, losses.soft
        history.append((hard.item(), soft.item()))
        second.optimizer.zero_grad()
        (hard + config.soft_weight * soft).backward()
        second.optimizer.step()
    assert history[-1][0] < 0.7 * history[0][0]
    assert history[-1][1] < history[0][1]


def test_the_linear_schedule_falls_to_zero_over_a_generation():
    config = tiny_config(lr_schedule="linear", learning_rate=0.1)
    rates = [learning_rate(config, step, 4) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert learning_rate(config.changed(lr_schedule="constant"), 3, 4) == 0.1


def test_the_schedule_runs_on_over_the_epochs_of_a_generation(places, images):
    config = tiny_config(lr_schedule="linear", epochs=(2, 2), tuples_per_step=16, refresh_every=100)
    second = generation(places, config)
    rates = [train_epoch(second, epoch, images, config).learning_rate for epoch in (1, 2)]
    assert rates == pytest.approx([0.01, 0.005])


def learned(generation):
    """What a step changes."""
    state = {**generation.student.state_dict(), **momentum_state(generation.optimizer)}
    return {name: value.clone() for name, value in state.items()}


class Breaking:
    """Trunk outputs that are not finite from a step on, for one image; counts the steps."""

    def __init__(self, source, image, from_call):
        self.source, self.image, self.from_call, self.calls = source, image, from_call, 0

    def __call__(self, numbers, *, step=0):
        self.calls += 1
        outputs = self.source(numbers).clone()
        if self.calls >= self.from_call:
            outputs[numbers == self.image] = torch.nan
        return outputs


@pytest.mark.parametrize("looks", ["at every step", "at the end, as on a GPU"])
def test_a_loss_that_is_not_finite_names_its_tuple_and_neither_its_step_nor_one_after_it_is_taken(
    places, images, monkeypatch, looks
):
    config = tiny_config(tuples_per_step=2, refresh_every=100)
    # What the steps before the broken one make of the student.
    expected, states = generation(places, config), []
    broken_query = expected.miner.draw_queries()[6].item()  # in the fourth step
    expected = generation(places, config)
    train_epoch(expected, 1, images, config, on_step=lambda report: states.append(learned(expected)))
    if looks != "at every step":
        monkeypatch.setattr("sfrs.training._Epoch._should_look", lambda self, now: False)
    broken = Breaking(images.mining, broken_query, from_call=1)
    ours = generation(places, config)
    reports = []
    with pytest.raises(
        DivergedError, match=rf"the hard loss of the tuple of query {broken_query} .*not finite"
    ):
        train_epoch(ours, 1, with_steps(images, broken), config, on_step=reports.append)
    assert len(reports) == 3
    assert broken.calls == (4 if looks == "at every step" else 8)
    for name, value in learned(ours).items():
        assert torch.equal(value, states[2][name]), name


def with_steps(images, source):
    return TrainingImages(images.queries, images.database, source, images.mining, images.names)


def test_soft_losses_and_gradients_that_are_not_finite_stop_the_run_too(places, images, monkeypatch):
    config = tiny_config(region_negatives=False, soft_level="image")
    second = generation(places, config)
    before = learned(second)
    teacher = second.teacher.vlad.centroids
    with torch.no_grad():
        teacher.fill_(torch.nan)
    with pytest.raises(DivergedError, match="the soft loss of the tuple of query .* The step was not taken"):
        train_epoch(second, 1, images, config)
    first = generation(places, config, number=1)
    first.student.vlad.centroids.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(DivergedError, match="the gradient of the step that begins with that of the tuple"):
        train_epoch(first, 1, images, config)
    for broken in (first, second):
        state = learned(broken)
        assert all(torch.equal(state[name], value) for name, value in before.items())


def test_an_epoch_goes_on_from_any_of_its_states(places, images):
    """Within and between refreshes; the state went through a checkpoint file or not, no matter."""
    config = tiny_config(tuples_per_step=3, refresh_every=7, checkpoint_minutes=0, negative_pool=8)
    whole, kept = generation(places, config), []

    def keep(state):
        parts = (learned(whole), whole.miner.state(), copy.deepcopy(state))
        kept.append(parts)

    summary = train_epoch(whole, 2, images, config, save=keep)
    assert [state.done for _, _, state in kept] == [3, 6, 7, 10, 13, 14, 16]
    assert [state.tuples is None for _, _, state in kept] == [False, False, True, False, False, True, True]
    for parts, miner, state in kept:
        other = generation(places, config)
        other.student.load_state_dict({k: v for k, v in parts.items() if not k.isdigit()})
        load_momentum(other.optimizer, {k: v for k, v in parts.items() if k.isdigit()})
        other.miner.load_state(miner)
        again = train_epoch(other, 2, images, config, state=state)
        assert (again.step, again.hard, again.soft) == (summary.step, summary.hard, summary.soft)
        theirs = learned(whole)
        assert all(torch.equal(value, theirs[name]) for name, value in learned(other).items())


def test_images_of_the_next_step_are_loaded_while_one_is_taken(places, images):
    told = []

    class Ahead:
        def __call__(self, numbers, *, step=0):
            told.append(("take", numbers.tolist(), step))
            return images.mining(numbers)

        def load_ahead(self, numbers, *, step=0):
            told.append(("load", numbers.tolist(), step))

    config = tiny_config(tuples_per_step=3, refresh_every=7, epochs=(1,))
    train_epoch(generation(places, config), 1, with_steps(images, Ahead()), config)
    loads, takes = ([rest for kind, *rest in told if kind == which] for which in ("load", "take"))
    assert loads == takes
    assert [kind for kind, *_ in told[:4]] == ["load", "load", "take", "load"]
    assert [step for _, step in takes] == [step_number(2, step) for step in range(1, 8)]


def test_a_run_leaves_its_configuration_metrics_and_networks(places, tmp_path):
    config = tiny_config(jitter=(0.4, 0.4, 0.4, 0.1))
    result = train(config, *places, tmp_path / "run", network=network_of_seed())
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

    def spy(generation, epoch, *args, **kwargs):
        if epoch == 1:
            states = [generation.student.state_dict()]
            states += [generation.teacher.state_dict()] if generation.teacher else []
            seen[generation.number] = [{k: v.clone() for k, v in state.items()} for state in states]
        return train_epoch(generation, epoch, *args, **kwargs)

    monkeypatch.setattr("sfrs.generations.train_epoch", spy)
    result = train(
        tiny_config(generations=3, epochs=(2, 1)), *places, tmp_path / "run", network=network_of_seed()
    )
    initial = result.network(0).state_dict()
    for number in (1, 2, 3):
        assert all(torch.equal(value, initial[name]) for name, value in seen[number][0].items())
    for number in (2, 3):
        teacher = result.network(number - 1).state_dict()
        assert all(torch.equal(value, teacher[name]) for name, value in seen[number][1].items())


def test_kmeans_gives_the_initial_network_its_clusters_and_given_leaves_them(places, tmp_path):
    network = network_of_seed()
    one = dict(generations=1, epochs=(1,))
    given = train(tiny_config(init="given", **one), *places, tmp_path / "given", network=network)
    clustered = train(tiny_config(**one), *places, tmp_path / "kmeans", network=network)
    assert torch.equal(given.network(0).vlad.centroids, network.vlad.centroids)
    centres = clustered.network(0).vlad.centroids
    assert not torch.equal(centres, network.vlad.centroids)
    assert (centres.norm(dim=1) <= 1 + 1e-5).all()  # means of unit vectors


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(places, tmp_path):
    settings = dict(generations=1, epochs=(1,), jitter=(0.4, 0.4, 0.4, 0.1))
    states = []
    for name, seed, workers in (("a", 0, 1), ("b", 0, 4), ("c", 1, 1)):
        config = tiny_config(seed=seed, workers=workers, **settings)
        states.append(train(config, *places, tmp_path / name).network().state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_variants_can_share_generation_one(places, tmp_path):
    config = tiny_config(epochs=(2, 1))
    whole = train(config, *places, tmp_path / "whole", network=network_of_seed())
    shared = train(config, *places, tmp_path / "shared", first_generation=tmp_path / "whole")
    assert shared.generations[0].recalls == whole.generations[0].recalls
    ours, theirs = shared.network().state_dict(), whole.network().state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(UserError, match="whole: the run was made with other images"):
        train(config, places[1], places[0], tmp_path / "x", first_generation=tmp_path / "whole")
    with pytest.raises(UserError, match="generations is 1"):
        train(config.changed(generations=1), *places, tmp_path / "x", first_generation=tmp_path / "whole")


def test_a_generation_one_that_is_not_finished_is_not_taken_over(places, tmp_path):
    class Stop(Silent):
        def epoch(self, *rest):
            raise KeyboardInterrupt

    config, other = tiny_config(epochs=(2, 1)), tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        train(config, *places, other, network=network_of_seed(), progress=Stop())
    assert (other / "generation_1/best.safetensors").exists()
    for _ in range(2):
        with pytest.raises(UserError, match="other: the run has not finished generation 1 yet"):
            train(config, *places, tmp_path / "x", first_generation=other)
        (other / "generation_1/best.safetensors").unlink(missing_ok=True)
    assert not (tmp_path / "x/config.json").exists()


def test_runs_can_share_trunk_outputs_and_the_global_generator_is_left_alone(places, tmp_path):
    config = tiny_config(generations=1, epochs=(1,))
    network = network_of_seed()
    trunks = build_trunks(config, network, *places)
    before = torch.get_rng_state()
    shared = train(config, *places, tmp_path / "a", network=network, trunks=trunks)
    assert torch.equal(before, torch.get_rng_state())
    alone = train(config, *places, tmp_path / "b", network=network)
    theirs = alone.network().state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in shared.network().state_dict().items())


def test_a_directory_that_holds_a_run_is_not_overwritten(places, tmp_path):
    config = tiny_config(generations=1, epochs=(1,))
    train(config, *places, tmp_path / "run", network=network_of_seed())
    with pytest.raises(UserError, match="there is a run here already"):
        train(config, *places, tmp_path / "run", network=network_of_seed())


def test_progress_is_told_of_tasks_steps_and_epochs(places, tmp_path):
    class Record(Silent):
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
    train(config, *places, tmp_path / "run", network=network_of_seed(), progress=record)
    assert record.tasks[:2] == ["trunk outputs, train", "trunk outputs, val"]
    assert record.steps == 2 * 5  # 16 queries in chunks of 7, 7 and 2, up to four to a step
    assert [entry[:2] for entry in record.epochs] == [(1, 1), (1, 2)]
    assert record.epochs[0][2] is True


@pytest.mark.parametrize("cache", ["ram", "disk", "off"])
def test_every_kind_of_trunk_cache_gives_the_trunks_outputs(places, tmp_path, cache):
    config = tiny_config(trunk_cache=cache, cache_dtype="float32")
    network = network_of_seed()
    trunks = build_trunks(config, network, *places, directory=tmp_path)
    numbers = torch.tensor([3, 0, 20])
    files = places[0].queries.files + places[0].database.files
    expected = FreshTrunk(network, [files[i] for i in numbers], SIZE)(torch.arange(3))
    torch.testing.assert_close(trunks.train(numbers), expected)
    assert trunks.train(numbers).dtype == torch.float32
    assert (tmp_path / "trunk_train.bin").exists() == (cache == "disk")


def test_a_trunk_cache_that_would_overflow_names_the_image(places):
    network = network_of_seed()
    network.backbone.std = (1e-6, 1e-6, 1e-6)
    with pytest.raises(UserError, match=r"train_0_3\.png.*float16.*--cache-dtype float32"):
        TrunkCache.build(network, places[0].queries.files, SIZE)


def test_descriptors_from_the_cache_are_those_of_the_images(places):
    from sfrs.descriptor import describe

    network, files = network_of_seed(), places[0].database.files
    cache = TrunkCache.build(network, files, SIZE, dtype=torch.float32)
    described = describe_trunk(network, cache, torch.arange(len(files)), batch_size=5)
    np.testing.assert_allclose(described.numpy(), describe(network, files, size=SIZE), atol=1e-6)


def test_jitter_draws_do_not_depend_on_threads(places):
    outputs = []
    for threads in (0, 3):
        jitter = ColorJitter(0.7, 0.7, 0.7, 0.5, seed=5)
        source = FreshTrunk(
            network_of_seed(), places[0].database.files, SIZE, jitter=jitter, threads=threads, batch_size=4
        )
        outputs.append(source(torch.arange(20)))
    assert torch.equal(*outputs)
    plain = FreshTrunk(network_of_seed(), places[0].database.files, SIZE)(torch.arange(20))
    assert (plain - outputs[0]).abs().mean() > 0.05


def test_a_network_that_is_not_the_configurations_is_refused(places, tmp_path):
    with pytest.raises(UserError, match="clusters is 5, but the network given has 4"):
        train(tiny_config(clusters=5), *places, tmp_path / "run", network=network_of_seed())
    assert not (tmp_path / "run").exists()


def test_build_network_refuses_weights_of_another_backbone(tmp_path):
    from sfrs.descriptor import save_network

    save_network(tmp_path / "w.safetensors", network_of_seed())
    weights = str(tmp_path / "w.safetensors")
    assert build_network(tiny_config(weights=weights)).backbone.name == "tiny"
    assert build_network(tiny_config(weights=weights, clusters=7)).vlad.num_clusters == 7
    with pytest.raises(UserError, match="backbone is vgg16, but the network given has tiny"):
        build_network(tiny_config(weights=weights, backbone="vgg16"))
    with pytest.raises(UserError, match="clusters is 7, but the network given has 4"):
        build_network(tiny_config(weights=weights, clusters=7, init="given"))
