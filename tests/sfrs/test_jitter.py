import colorsys

import pytest
import torch

from sfrs.jitter import ColorJitter, luminance, shift_hue


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


def test_jitter_draws_from_its_own_generator(image):
    paper = dict(brightness=0.7, contrast=0.7, saturation=0.7, hue=0.5)
    torch.manual_seed(0)
    first = [ColorJitter(**paper, seed=5)(image) for _ in range(2)]
    assert torch.equal(first[0], first[1])
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(0)).item()
    jitter = ColorJitter(**paper, seed=5)
    state = jitter.generator.get_state()
    once = jitter(image)
    assert not torch.equal(once, jitter(image))
    jitter.generator.set_state(state)
    assert torch.equal(once, jitter(image))


def test_each_image_of_a_batch_gets_its_own_draw(image):
    batch = ColorJitter(0.7, 0.7, 0.7, 0.5)(torch.stack([image] * 3))
    assert batch.shape == (3, 3, 9, 11) and not torch.equal(batch[0], batch[1])
    assert 0 <= batch.min() and batch.max() <= 1


def test_no_jitter_leaves_the_image_alone(image):
    assert torch.equal(ColorJitter()(image), image)


@pytest.mark.parametrize("wrong", [{"brightness": -0.1}, {"hue": 0.6}, {"contrast": -1}])
def test_impossible_amounts_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ColorJitter(**wrong)
