"""Training steps and epochs."""

import copy

import pytest
import torch
from tiny_training import cache_of, network_of_seed, tiny_config

import sfrs_ext
from sfrs.data.neighbourhood import Neighbourhood
from sfrs.features.source import FeatureSource, step_number
from sfrs.training.checkpoint import load_momentum, momentum_state
from sfrs.training.epoch import Epoch, learning_rate
from sfrs.training.losses import SOFT_LOSSES, sare_ind, soft_loss
from sfrs.training.mining import Miner, Tuples
from sfrs.training.preparation import init_clusters
from sfrs.training.step import DivergedError, StudentTeacher, TrainingImages, sgd, tuple_losses

SPOTS = (16, 8)


@pytest.fixture
def images(places):
    train_places, _ = places
    files = train_places.queries.files + train_places.database.files
    cache = cache_of(network_of_seed(), files, dtype=torch.float32)
    names = tuple(str(file) for file in files)
    return TrainingImages(len(train_places.queries), len(train_places.database), cache, cache, names)


def generation(places, config, number=2, seed=0):
    student = network_of_seed(seed)
    teacher = network_of_seed(seed + 1).eval().requires_grad_(False) if number > 1 else None
    optimizer = sgd(student, config)
    miner = Miner(
        Neighbourhood.of_places(places[0], config.positive_radius, config.negative_radius), config, seed=seed
    )
    return StudentTeacher(number, student, teacher, optimizer, miner)


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
        expected_hard = expected_hard + sare_ind(ours[:, 0, 0], negatives).mean() / 2
        soft_part = soft_loss(ours[:, 4:], theirs[:, 4:], 0.05, 0.07, negatives=ours[:, 1:4]).mean()
        expected_soft = expected_soft + soft_part / 2
    torch.testing.assert_close(hard, expected_hard)
    torch.testing.assert_close(soft, expected_soft)
    expected = torch.autograd.grad(
        expected_hard + 0.5 * expected_soft, list(both.student.trained_parameters())
    )
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_registered_soft_loss_is_used_by_its_name(places, images, monkeypatch):
    def doubled(*similarities, **options):
        return 2 * soft_loss(*similarities, **options)

    monkeypatch.setitem(SOFT_LOSSES, "doubled", doubled)
    plain, other = tiny_config(), tiny_config(soft_loss="doubled")
    losses = [tuple_losses(generation(places, plain), TUPLES, images, config) for config in (plain, other)]
    assert torch.equal(2 * losses[0].soft, losses[1].soft) and losses[0].soft > 0


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
    torch.testing.assert_close(hard, sare_ind((queries * positives).sum(1), similarity).mean())
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
    Epoch(second, 1, images, config).train()
    for name, value in second.student.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone.trunk.")
    assert all(torch.equal(value, taught[name]) for name, value in second.teacher.state_dict().items())


def test_an_epoch_trains_every_query_once_and_reports_means(places, images):
    config = tiny_config(tuples_per_step=3, refresh_every=7)
    reports, mined = [], []
    summary = Epoch(generation(places, config), 1, images, config).train(
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
    assert learning_rate(config.changed(lr_schedule="constant"), 3, 4, epoch=5) == 0.1


def test_the_halving_schedule_halves_the_rate_in_every_fifth_epoch():
    config = tiny_config(lr_schedule="halving", learning_rate=0.1)
    rates = [learning_rate(config, 0, 1, epoch) for epoch in range(1, 12)]
    assert rates == [0.1] * 4 + [0.05] * 5 + [0.025] * 2


def test_the_schedule_runs_on_over_the_epochs_of_a_generation(places, images):
    config = tiny_config(lr_schedule="linear", epochs=(2, 2), tuples_per_step=16, refresh_every=100)
    second = generation(places, config)
    rates = [Epoch(second, epoch, images, config).train().learning_rate for epoch in (1, 2)]
    assert rates == pytest.approx([0.01, 0.005])


def learned(generation):
    """What a step changes."""
    state = {**generation.student.state_dict(), **momentum_state(generation.optimizer)}
    return {name: value.clone() for name, value in state.items()}


class Breaking(FeatureSource):
    """Frozen features that are not finite from a step on, for one image; counts the steps."""

    def __init__(self, source, image, from_call):
        self.source, self.image, self.from_call, self.calls = source, image, from_call, 0

    def __call__(self, numbers, *, step=0):
        self.calls += 1
        outputs = self.source(numbers).clone()
        if self.calls >= self.from_call:
            outputs[numbers == self.image] = torch.nan
        return outputs


def test_a_loss_that_is_not_finite_names_its_tuple_and_its_step_is_not_taken(places, images):
    config = tiny_config(tuples_per_step=2, refresh_every=100)
    # What the steps before the broken one make of the student.
    expected, states = generation(places, config), []
    broken_query = expected.miner.draw_queries()[6].item()  # in the fourth step
    expected = generation(places, config)
    Epoch(expected, 1, images, config).train(lambda report: states.append(learned(expected)))
    broken = Breaking(images.mining, broken_query, from_call=1)
    ours = generation(places, config)
    reports = []
    with pytest.raises(
        DivergedError, match=rf"the hard loss of the tuple of query {broken_query} .*not finite"
    ):
        Epoch(ours, 1, with_steps(images, broken), config).train(reports.append)
    assert len(reports) == 3
    assert broken.calls == 4
    for name, value in learned(ours).items():
        assert torch.equal(value, states[2][name]), name


def with_steps(images, source):
    return TrainingImages(images.queries, images.database, source, images.mining, images.names)


def test_soft_losses_and_gradients_that_are_not_finite_stop_the_run_too(places, images):
    config = tiny_config(region_negatives=False, soft_level="image")
    second = generation(places, config)
    before = learned(second)
    teacher = second.teacher.vlad.centroids
    with torch.no_grad():
        teacher.fill_(torch.nan)
    with pytest.raises(DivergedError, match="the soft loss of the tuple of query .* The step was not taken"):
        Epoch(second, 1, images, config).train()
    first = generation(places, config, number=1)
    first.student.vlad.centroids.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(DivergedError, match="the gradient of the step that begins with that of the tuple"):
        Epoch(first, 1, images, config).train()
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

    summary = Epoch(whole, 2, images, config).train(save=keep)
    assert [state.done for _, _, state in kept] == [3, 6, 7, 10, 13, 14, 16]
    assert [state.mined is None for _, _, state in kept] == [False, False, True, False, False, True, True]
    for parts, miner, state in kept:
        other = generation(places, config)
        other.student.load_state_dict({k: v for k, v in parts.items() if not k.isdigit()})
        load_momentum(other.optimizer, {k: v for k, v in parts.items() if k.isdigit()})
        other.miner.load_state(miner)
        again = Epoch(other, 2, images, config, state=state).train()
        assert (again.step, again.hard, again.soft) == (summary.step, summary.hard, summary.soft)
        theirs = learned(whole)
        assert all(torch.equal(value, theirs[name]) for name, value in learned(other).items())


def test_images_of_the_next_step_are_loaded_while_one_is_taken(places, images):
    told = []

    class Ahead(FeatureSource):
        def __call__(self, numbers, *, step=0):
            told.append(("take", numbers.tolist(), step))
            return images.mining(numbers)

        def prefetch(self, numbers, *, step=0):
            told.append(("load", numbers.tolist(), step))

    config = tiny_config(tuples_per_step=3, refresh_every=7, epochs=(1,))
    Epoch(generation(places, config), 1, with_steps(images, Ahead()), config).train()
    loads, takes = ([rest for kind, *rest in told if kind == which] for which in ("load", "take"))
    assert loads == takes
    assert [kind for kind, *_ in told[:4]] == ["load", "load", "take", "load"]
    assert [step for _, step in takes] == [step_number(2, step) for step in range(1, 8)]
