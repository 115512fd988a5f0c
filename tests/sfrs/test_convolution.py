"""The 3x3 convolution is PyTorch's, and so are its gradients."""

import copy

import pytest
import torch
from torch import nn

import sfrs_ext
from sfrs.models.convolution import Convolution3x3


@pytest.fixture
def pair():
    torch.manual_seed(0)
    ours = Convolution3x3(32, 40).to(memory_format=torch.channels_last)
    theirs = nn.Conv2d(32, 40, kernel_size=3, padding=1).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def error(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("size", [(2, 8, 10), (1, 7, 9), (3, 1, 5), (1, 1, 1)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_output_and_all_gradients_are_those_of_the_convolution(pair, size, layout):
    ours, theirs = pair
    batch, height, width = size
    x = torch.randn(batch, 32, height, width).contiguous(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    towards = torch.randn(batch, 40, height, width)
    y, expected = ours(x), theirs(exact)
    y.backward(towards)
    expected.backward(towards.double())
    assert error(y, expected) < 1e-6
    assert error(x.grad, exact.grad) < 1e-6
    for name, parameter in theirs.named_parameters():
        assert error(ours.get_parameter(name).grad, parameter.grad) < 2e-6, name


def test_the_gradient_lies_in_memory_as_the_weight_does(pair):
    ours, _ = pair
    ours(torch.randn(1, 32, 5, 6)).sum().backward()
    assert ours.weight.grad.stride() == ours.weight.stride()


def test_only_what_is_trained_has_a_gradient(pair):
    ours, _ = pair
    x = torch.randn(1, 32, 5, 6, requires_grad=True)
    ours.bias.requires_grad_(False)
    ours(x).sum().backward()
    assert ours.bias.grad is None and x.grad is not None and ours.weight.grad is not None
    ours(x.detach()).sum().backward()  # as behind a frozen trunk


def test_elsewhere_it_is_the_plain_convolution(pair, monkeypatch):
    ours, _ = pair
    x = torch.randn(1, 32, 5, 6)

    def refused(*arguments, **options):
        raise AssertionError("not the plain convolution")

    monkeypatch.setattr(sfrs_ext, "conv3x3", refused)
    with pytest.raises(AssertionError, match="not the plain"):
        ours(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    copy.deepcopy(ours).double()(x.double())
    Convolution3x3(24, 40)(x[:, :24])  # too narrow to gain
    torch.export.export(ours, (x,))
    chosen = sfrs_ext.kernels()
    sfrs_ext.use_kernels("portable")  # whose convolution is slower than torch's
    try:
        ours(x)
    finally:
        sfrs_ext.use_kernels(chosen)
