"""Colour jitter: what it does to an image, and what its draws depend on."""

import colorsys

import numpy as np
import pytest
import torch

from sfrs.data.jitter import ColorJitter, hashed, luminance, shift_hue

PAPER = (0.7, 0.7, 0.7, 0.5)


@pytest.fixture
def image():
    return torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.3, 0.5])
def test_hue_shift_is_a_turn_in_hsv(image, turns):
    image[:, 0, 0] = 0.4  # a grey pixel has no hue
    image[:, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    shifted = shift_hue(image, turns).flatten(1).T
    for before, after in zip(image.flatten(1).T.tolist(), shifted.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), abs=1e-5)


def test_brightness_scales_all_pixels_by_one_factor(image):
    jittered = ColorJitter(brightness=0.7, seed=3)(0.5 * image)
    factors = jittered / (0.5 * image)
    assert factors.std() < 1e-5 and 0.3 <= factors.mean() <= 1.7 and abs(factors.mean() - 1) > 1e-3


def test_contrast_keeps_the_mean_luminance(image):
    low = 0.3 + 0.2 * image  # far from clipping
    jittered = ColorJitter(contrast=0.7, seed=3)(low)
    assert luminance(jittered).mean() == pytest.approx(luminance(low).mean().item(), abs=1e-3)
    assert not torch.allclose(jittered, low)


def test_saturation_keeps_luminance_and_moves_colours_away_from_grey(image):
    low = 0.3 + 0.2 * image
    jittered = ColorJitter(saturation=0.7, seed=3)(low)
    assert torch.allclose(luminance(jittered), luminance(low), atol=1e-3)
    grey = low.mean(0, keepdim=True).expand(3, -1, -1)
    assert torch.allclose(ColorJitter(saturation=0.7)(grey), grey, atol=1e-3)


def test_a_draw_depends_on_the_seed_and_the_key_only(image):
    keys = [(step, number) for step in (0, 1, 2**33 + 7) for number in (0, 1, 17_319)]
    first = {key: ColorJitter(*PAPER, seed=5)(image, *key) for key in keys}
    jitter = ColorJitter(*PAPER, seed=5)
    torch.manual_seed(7)
    for key in reversed(keys + keys):
        assert torch.equal(jitter(image, *key), first[key])
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(7)).item()
    different = [*first.values(), ColorJitter(*PAPER, seed=6)(image, *keys[0])]
    for i, ours in enumerate(different):
        assert not any(torch.equal(ours, other) for other in different[:i])


def test_jitter_leaves_the_image_it_was_given_alone(image):
    before = image.clone()
    for key in range(10):
        ColorJitter(*PAPER)(image, key)
    assert torch.equal(image, before)


def test_hashes_are_the_same_on_every_machine_and_spread_evenly():
    assert hashed(0, 2**33, 17) == 7955000296009956603
    drawn = np.array([hashed(0, step, 3) % 4 for step in range(4000)])
    counts = np.bincount(drawn, minlength=4)
    assert abs(counts - 1000).max() < 120  # 4.4 standard deviations
    assert all(0 <= hashed(step) < 2**63 for step in range(100))


def test_factors_are_uniform_over_their_range():
    """Of 2,000 consecutive keys: no bias from seeding a generator for every image."""
    half = torch.full((3, 1, 1), 0.5)
    factors = torch.tensor([ColorJitter(brightness=0.7)(half, 1, n)[0, 0, 0] / 0.5 for n in range(2000)])
    ranks = (factors.sort().values - 0.3) / 1.4
    # Kolmogorov-Smirnov: 1.95 / sqrt(2000) is passed once in a thousand.
    assert (ranks - torch.arange(2000) / 2000).abs().max() < 1.95 / 2000**0.5


def test_no_jitter_leaves_the_image_alone(image):
    assert torch.equal(ColorJitter()(image), image)


@pytest.mark.parametrize("wrong", [{"brightness": -0.1}, {"hue": 0.6}, {"contrast": -1}])
def test_impossible_amounts_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ColorJitter(**wrong)
