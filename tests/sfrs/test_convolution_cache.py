"""The transformed weights that a 3x3 convolution keeps are those of its weight, and stay where they are."""

import copy
import pickle

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrs.models.convolution import Convolution3x3


def plain(layer: Convolution3x3, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=1)


def test_a_changed_weight_is_noticed():
    torch.manual_seed(0)
    layer, x = Convolution3x3(32, 40), torch.randn(2, 32, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)
        layer.load_state_dict(Convolution3x3(32, 40).state_dict())
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)


def test_a_step_of_a_fused_optimizer_is_noticed():
    torch.manual_seed(0)
    layer, x = Convolution3x3(32, 40), torch.randn(2, 32, 6, 7)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, fused=True)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)
        layer(x).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)


def test_they_are_neither_saved_nor_copied():
    layer, x = Convolution3x3(32, 40), torch.randn(2, 32, 6, 7)
    with torch.inference_mode():
        expected = layer(x)
    assert set(layer.state_dict()) == {"weight", "bias"}
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._packed is None
        with torch.no_grad():
            assert torch.equal(other(x), expected)


def test_a_frozen_layer_hands_gradients_through():
    torch.manual_seed(0)
    layer, x = Convolution3x3(32, 40).requires_grad_(False), torch.randn(2, 32, 6, 7, requires_grad=True)
    grad = torch.randn(2, 40, 6, 7)
    found, expected = (torch.autograd.grad(y, x, grad)[0] for y in (layer(x), plain(layer, x)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
