"""Frozen features: what is kept, what is computed, and that both are the same."""

import os

import pytest
import torch
from tiny_training import SIZE, cache_of, network_of_seed, tiny_config

from sfrs.data.images import BadImageError, load_image
from sfrs.data.jitter import ColorJitter, hashed
from sfrs.features.cache import CachePlan, JitteredFeatures
from sfrs.features.on_the_fly import FrozenTrunk, OnTheFlyFeatures
from sfrs.features.source import Draw, describe_features, step_number
from sfrs.runtime.distributed import Processes
from sfrs.runtime.errors import UserError
from sfrs.training.config import TrainConfig
from sfrs.training.preparation import build_features, training_images
from sfrs.training.progress import TrainingProgress
from sfrs.training.trainer import train

pytestmark = pytest.mark.slow

PAPER = (0.7, 0.7, 0.7, 0.5)
ROW = 6 * 8 * 3  # numbers in a trunk output of the tiny backbone


class Heard(TrainingProgress):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def computed(monkeypatch):
    """The sizes of all batches that go through a trunk from now on."""
    sizes, run = [], FrozenTrunk.__call__

    def counting(self, images):
        sizes.append(len(images))
        return run(self, images)

    monkeypatch.setattr(FrozenTrunk, "__call__", counting)
    return sizes


def expected(file, network, jitter=None, key=()):
    """What the trunk gives for one image, step by step."""
    image = load_image(file, SIZE)
    if jitter is not None:
        image = jitter(image, *key)
    return network.trunk(((image - 0.5) / 0.25)[None])[0]


@pytest.mark.parametrize("workers", [1, 3])
def test_fresh_outputs_are_jittered_by_step_and_image_only(files, workers):
    network, jitter = network_of_seed(), ColorJitter(*PAPER, seed=5)
    numbers, step = torch.tensor([7, 2, 30]), step_number(3, 11)
    right = torch.stack([expected(files[n], network, jitter, (step, n)) for n in (7, 2, 30)])
    source = OnTheFlyFeatures(network, files, SIZE, jitter=jitter, workers=workers, batch_size=2)
    torch.testing.assert_close(source(numbers, step=step), right, rtol=0, atol=1e-6)
    source(torch.arange(20), step=1)  # what was asked in between does not matter
    assert torch.equal(source(numbers.flip(0), step=step).flip(0), source(numbers, step=step))
    assert not torch.equal(source(numbers, step=step + 1), source(numbers, step=step))
    assert source(numbers).is_contiguous(memory_format=torch.channels_last)


def test_loading_ahead_changes_nothing_and_decodes_nothing_twice(files, monkeypatch):
    read = []

    def counting(path, size):
        read.append(path)
        return load_image(path, size)

    monkeypatch.setattr("sfrs.features.on_the_fly.load_image", counting)
    jitter = ColorJitter(*PAPER)
    source = OnTheFlyFeatures(network_of_seed(), files, SIZE, jitter=jitter, batch_size=4)
    parts = torch.arange(36).split(12)
    plain = [source(part, step=step) for step, part in enumerate(parts)]
    read.clear()
    source.prefetch(parts[0], step=0)
    for step, part in enumerate(parts):
        if step < 2:
            source.prefetch(parts[step + 1], step=step + 1)
        assert torch.equal(source(part, step=step), plain[step])
    assert sorted(read) == sorted(files[:36])
    assert not source.ahead


def test_what_is_announced_and_never_asked_for_is_forgotten(files):
    source = OnTheFlyFeatures(network_of_seed(), files, SIZE)
    for step in range(50):
        source.prefetch(torch.tensor([step % 7]), step=step)
    assert len(source.ahead) <= 4


def test_a_bad_image_is_named_in_the_step_that_needs_it(files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    source = OnTheFlyFeatures(network_of_seed(), [*files[:4], bad], SIZE)
    source.prefetch(torch.tensor([4]))
    source(torch.tensor([0, 1]))
    with pytest.raises(BadImageError, match=r"bad\.png"):
        source(torch.tensor([4]))
    with pytest.raises(BadImageError, match=r"bad\.png"):
        cache_of(network_of_seed(), [*files[:4], bad], SIZE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_cache_holds_the_images_and_their_variants(files, dtype):
    network, jitter = network_of_seed(), ColorJitter(*PAPER, seed=3)
    cache = cache_of(network, files, SIZE, dtype=dtype, variants=3, jitter=jitter, batch_size=7)
    assert cache.features.nbytes == len(files) * 4 * ROW * dtype.itemsize
    draws = [Draw(12), Draw(12, 0), Draw(39, 2), Draw(0, 1), Draw(12, 2)]
    right = [expected(files[n], network, None if key is None else jitter, (key, n)) for n, key in draws]
    read = cache.read(draws)
    assert torch.equal(read, torch.stack([cache.read([draw])[0] for draw in draws]))
    torch.testing.assert_close(read, torch.stack(right).to(dtype).float(), rtol=0.01, atol=1e-5)
    assert read.dtype == torch.float32 and read.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(cache(torch.tensor([12, 5])), cache.read([Draw(12), Draw(5)]))


def test_training_steps_draw_variants_evenly_by_seed_step_and_image(files):
    jitter = ColorJitter(*PAPER)
    cache = cache_of(network_of_seed(), files, SIZE, variants=4, jitter=jitter)
    source = JitteredFeatures(cache, seed=9)
    numbers = torch.arange(40)
    drawn = torch.tensor([[d.key for d in source.draws(numbers, step)] for step in range(100)])
    counts = drawn.flatten().bincount(minlength=4)
    assert (counts - 1000).abs().max() < 120  # 4.4 standard deviations
    assert (drawn.float().mean(0) - 1.5).abs().max() < 0.5  # no image has a favourite
    assert source.draws(torch.tensor([3]), 17) == [Draw(3, hashed(9, 17, 3) % 4)]
    assert torch.equal(source(numbers, step=5), cache.read(source.draws(numbers, 5)))
    with pytest.raises(ValueError, match="no jittered variants"):
        JitteredFeatures(cache_of(network_of_seed(), files[:2]), 0)


def test_variants_have_the_distribution_of_colour_jitter(make_image):
    """Brightness only, on a grey image: an output's ratio to the plain one is the factor."""
    image = make_image("grey.png", height=8, width=8)
    from PIL import Image

    Image.new("RGB", (8, 8), (120, 120, 120)).save(image)
    network = network_of_seed()
    network.backbone.mean = (0.0, 0.0, 0.0)
    jitter = ColorJitter(brightness=0.7, seed=1)
    cache = cache_of(
        network, [image], (8, 8), variants=1000, jitter=jitter, dtype=torch.float32, batch_size=1001
    )
    values = cache.read([Draw(0), *(Draw(0, key) for key in range(1000))])[:, 0, 0, 0]
    ranks = ((values[1:] / values[0]).sort().values - 0.3) / 1.4
    # Kolmogorov-Smirnov: 1.95 / sqrt(1000) is passed once in a thousand.
    assert (ranks - torch.arange(1000) / 1000).abs().max() < 1.95 / 1000**0.5


@pytest.mark.parametrize("rows", [0, 1, 25, 40, 41, 90, 119, 120])
def test_a_budget_changes_what_is_kept_but_not_what_is_read(files, rows):
    network, jitter = network_of_seed(), ColorJitter(*PAPER)
    whole = cache_of(network, files, SIZE, variants=2, jitter=jitter, batch_size=9)
    budget = rows * ROW * 2 + 5
    part = cache_of(network, files, SIZE, variants=2, jitter=jitter, batch_size=9, budget=budget)
    assert part.features.nbytes <= budget and len(part.features) >= rows - 1
    draws = [Draw(image, key) for image in (39, 0, 24, 3, 25) for key in (None, 0, 1)]
    part.prefetch_draws(draws)
    # A convolution may sum up in another order in a batch of another size.
    torch.testing.assert_close(part.read(draws), whole.read(draws), rtol=1e-3, atol=1e-6)


def test_a_budget_is_spent_on_training_images_first_and_said_with_figures(places, tmp_path):
    heard = Heard()
    config = tiny_config(trunk_cache="disk,jitter=2", jitter=PAPER, cache_gigabytes=50 * ROW * 2 / 1e9)
    features = build_features(config, network_of_seed(), places, directory=tmp_path, progress=heard)
    assert (features.train.plan.plain, features.train.plan.varied, len(features.val.features)) == (40, 5, 0)
    assert "40 images and 2 jittered variants of each: 0.00 GB in" in heard.messages[0]
    assert heard.messages[1].startswith("--cache-gigabytes holds 50 of 120 features (42 %; all would be")
    assert "holds 0 of 24 features" in heard.messages[3]


def test_places_of_a_cache_that_cannot_be_are_refused(files):
    with pytest.raises(UserError, match="trunk_cache is gpu, but the device is cpu"):
        cache_of(network_of_seed(), files, SIZE, place="gpu")
    with pytest.raises(UserError, match="there are no images"):
        cache_of(network_of_seed(), [], SIZE)


def test_more_than_the_memory_is_refused_before_it_is_taken(files, monkeypatch):
    monkeypatch.setattr("sfrs.features.filling._available_memory", lambda: 1000)
    with pytest.raises(
        UserError, match=r"GB are needed in the memory of cpu.*--cache-gigabytes or --trunk-cache disk"
    ):
        cache_of(network_of_seed(), files, SIZE)


def test_processes_of_a_machine_share_its_memory(files, monkeypatch):
    needed = cache_of(network_of_seed(), files).features.nbytes
    monkeypatch.setattr("sfrs.features.filling._available_memory", lambda: 2 * needed)
    two, three = (Processes(count=1, local_count=count) for count in (2, 3))
    cache_of(network_of_seed(), files, SIZE, processes=two)
    with pytest.raises(UserError, match="memory of cpu in each of 3 processes"):
        cache_of(network_of_seed(), files, SIZE, processes=three)


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="Linux tells the memory that is left")
def test_the_memory_that_is_left_is_known():
    from sfrs.features.filling import _available_memory

    assert 10**7 < _available_memory() < 10**14


def test_every_row_of_a_plan_is_used_once():
    for images, variants, rows in ((5, 0, 3), (5, 3, 20), (5, 3, 12), (5, 2, 4), (1, 1, 0)):
        plan = CachePlan.within(images, variants, 10, 10 * rows)
        kept = [draw for block in plan.blocks(2) for draw in plan.draws(block)]
        assert sorted(map(plan.row, kept)) == list(range(plan.rows))
        everything = [Draw(i, key) for i in range(images) for key in (None, *range(variants))]
        assert {draw for draw in everything if plan.row(draw) >= 0} == set(kept)
        assert plan.wanted == len(everything)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ram", ("ram", 0)),
        ("jitter=4", ("ram", 4)),
        ("disk,jitter=12", ("disk", 12)),
        ("gpu, jitter=1", ("gpu", 1)),
        ("off", ("off", 0)),
    ],
)
def test_the_text_of_a_cache(text, spec):
    assert TrainConfig(trunk_cache=text).cache == spec


@pytest.mark.parametrize(
    "text",
    ["", "rom", "ram,", ",jitter=2", "ram,jitter=0", "off,jitter=2", "ramjitter=2", "jitter=x", "disk,ram"],
)
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match=r"expected one of ram, gpu, disk, off"):
        TrainConfig(trunk_cache=text)


def test_a_run_with_cached_jitter_is_deterministic_and_needs_no_trunk(places, tmp_path, monkeypatch):
    config = tiny_config(trunk_cache="ram,jitter=2", jitter=PAPER, generations=2, epochs=(1,))
    sizes = computed(monkeypatch)
    first = train(places, config, tmp_path / "a", network=network_of_seed()).network().state_dict()
    assert sum(sizes) == 40 * 3 + 24
    config = config.changed(trunk_cache="disk,jitter=2", workers=1)
    second = train(places, config, tmp_path / "b", network=network_of_seed()).network().state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = config.changed(seed=1)
    third = train(places, other, tmp_path / "c", network=network_of_seed()).network().state_dict()
    assert any(not torch.equal(value, third[name]) for name, value in first.items())


def test_trunks_without_the_variants_a_run_wants_are_refused(places):
    network = network_of_seed()
    plain = build_features(tiny_config(), network, places)
    config = tiny_config(trunk_cache="jitter=2", jitter=PAPER)
    with pytest.raises(ValueError, match="trunk_cache is jitter=2, but features was built otherwise"):
        training_images(config, network, places[0], plain.train)


def test_descriptors_do_not_depend_on_where_outputs_come_from(files):
    network = network_of_seed()
    numbers = torch.tensor([4, 39, 0, 17, 3])
    cache = cache_of(network, files, SIZE, dtype=torch.float32, budget=20 * ROW * 4)
    fresh = OnTheFlyFeatures(network, files, SIZE)
    described = [describe_features(network, source, numbers, batch_size=2) for source in (cache, fresh)]
    torch.testing.assert_close(*described)
