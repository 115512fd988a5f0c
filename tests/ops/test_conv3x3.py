"""The 3x3 convolution agrees with torch's in float64, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sfrs_ext

pytestmark = pytest.mark.slow

SIZES = ((1, 1), (1, 5), (5, 1), (2, 2), (7, 9), (15, 20))
CHANNELS = ((1, 1), (3, 8), (5, 3), (64, 64), (65, 17), (32, 130), (128, 96))


def problem(
    batch: int, channels: int, outputs: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(channels * 1000 + outputs)
    x = torch.randn(batch, channels, height, width).to(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
    return x, weight, torch.randn(outputs)


def error(found: Tensor, expected: Tensor) -> float:
    largest = expected.abs().max().clamp(min=0.1)  # a ReLU may leave nothing
    return ((found.double() - expected).abs().max() / largest).item()


@pytest.mark.parametrize("relu", (False, True))
@pytest.mark.parametrize(("channels", "outputs"), CHANNELS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_convolution(size, channels, outputs, relu):
    for batch in (1, 3):
        x, weight, bias = problem(batch, channels, outputs, *size)
        expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
        expected = expected.relu() if relu else expected
        packed = sfrs_ext.conv3x3_weight(weight)
        y = sfrs_ext.conv3x3(x, weight, bias, relu=relu, packed=packed)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert error(y, expected) < 3e-6
        assert torch.equal(y, sfrs_ext.conv3x3(x, weight, bias, relu=relu))


def test_512_channels_are_as_exact_as_the_direct_form_has_to_be():
    x, weight, bias = problem(2, 512, 512, 15, 20)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert error(sfrs_ext.conv3x3(x, weight, bias), expected) < 3e-6


def test_a_large_map_and_no_bias():
    x, weight, _ = problem(2, 64, 32, 60, 80)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert error(sfrs_ext.conv3x3(x, weight), expected) < 3e-6


def layouts(x: Tensor) -> dict[str, Tensor]:
    wide = torch.full((x.shape[0], x.shape[1] + 1, x.shape[2] + 2, x.shape[3] + 3), torch.nan)
    crop = wide.to(memory_format=torch.channels_last)[:, 1:, 1:-1, 2:-1]
    return {"planes": x.contiguous(), "crop": crop.copy_(x), "expanded": x[:1].expand_as(x)}


@pytest.mark.parametrize("layout", ("planes", "crop", "expanded"))
def test_any_layout_is_read(layout):
    x, weight, bias = problem(2, 6, 10, 5, 8)
    x = layouts(x)[layout]
    rows = x.clone(memory_format=torch.channels_last)
    backwards = weight.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(sfrs_ext.conv3x3(x, backwards, bias), sfrs_ext.conv3x3(rows, weight, bias))


@pytest.mark.parametrize("shape", ((0, 8, 4, 5), (2, 8, 0, 5), (2, 0, 4, 5)))
def test_nothing_in_gives_what_the_bias_says(shape):
    weight, bias = torch.randn(4, shape[1], 3, 3), torch.randn(4)
    y = sfrs_ext.conv3x3(torch.zeros(shape), weight, bias)
    assert torch.equal(y, bias.view(1, 4, 1, 1).expand(shape[0], 4, *shape[2:]))


def test_threads_and_the_batch_change_no_bit():
    x, weight, bias = problem(3, 96, 80, 15, 21)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(sfrs_ext.conv3x3(x, weight, bias, relu=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], y) for y in found[1:])
    assert torch.equal(found[0][1:2], sfrs_ext.conv3x3(x[1:2], weight, bias, relu=True))


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_what_is_not_finite_stays_near(value):
    x, weight, bias = problem(1, 40, 24, 12, 14)
    clean = sfrs_ext.conv3x3(x, weight, bias, relu=True)
    x[0, 7, 5, 6] = value
    y = sfrs_ext.conv3x3(x, weight, bias, relu=True)
    near = torch.zeros(12, 14, dtype=torch.bool)
    near[4:8, 4:8] = True  # the 2x2 tiles whose patches hold (5, 6)
    assert torch.equal(y[..., ~near], clean[..., ~near])
    assert not y[..., 4:7, 5:8].isfinite().all(1).any()


@pytest.mark.parametrize("relu", (False, True))
@pytest.mark.parametrize(("channels", "outputs", "size"), ((64, 48, (7, 9)), (5, 65, (4, 1))))
def test_gradients_are_those_of_the_convolution(channels, outputs, size, relu):
    x, weight, bias = (t.requires_grad_() for t in problem(2, channels, outputs, *size))
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    y, expected = sfrs_ext.conv3x3(x, weight, bias, relu=relu), F.conv2d(*exact, padding=1)
    expected = expected.relu() if relu else expected
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, weight, bias), grad)
    for got, want in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert error(got, want) < 1e-5


@pytest.mark.parametrize("relu", (False, True))
def test_it_passes_opcheck(relu):
    x, weight, bias = (t.requires_grad_() for t in problem(2, 6, 10, 5, 4))
    for save in (False, True) if not relu else (True,):
        torch.library.opcheck(torch.ops.sfrs_ext.conv3x3, (x, weight, bias, None, relu, save))
    with torch.no_grad():
        _, passes = torch.ops.sfrs_ext.conv3x3(x, weight, bias, None, True, True)
        backward = torch.ops.sfrs_ext.conv3x3_relu_backward
        torch.library.opcheck(backward, (torch.randn(2, 10, 5, 4), passes))
        torch.library.opcheck(torch.ops.sfrs_ext.conv3x3_weight, (weight.detach(),))


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
def test_other_dtypes_are_left_to_torch(dtype):
    x, weight, bias = (t.to(dtype) for t in problem(2, 6, 10, 5, 4))
    y = sfrs_ext.conv3x3(x, weight, bias, relu=True)
    assert torch.equal(y, F.conv2d(x, weight, bias, padding=1).relu())


def test_autocast_is_left_to_torch():
    x, weight, bias = problem(2, 6, 10, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sfrs_ext.conv3x3(x, weight, bias).dtype == torch.bfloat16


X, WEIGHT = torch.randn(2, 8, 4, 5), torch.randn(3, 8, 3, 3)
WRONG = (
    (dict(x=X[0]), ValueError, r"x is \[8, 4, 5\], but must be a map"),
    (dict(x=X.int()), TypeError, "x must be float32"),
    (dict(weight=WEIGHT[..., :2]), ValueError, r"weight is \[3, 8, 3, 2\], but must be \[O, C, 3, 3\]"),
    (dict(weight=WEIGHT[:, :6]), ValueError, r"weight is \[3, 6, 3, 3\], but x has C = 8"),
    (dict(weight=WEIGHT.double()), TypeError, "weight is torch.float64, but x is torch.float32"),
    (dict(weight=WEIGHT.to("meta")), ValueError, "weight is on meta, but x is on cpu"),
    (dict(bias=torch.randn(2)), ValueError, r"bias is \[2\], but must be \[3\]"),
    (
        dict(packed=torch.randn(16, 3, 8)),
        ValueError,
        r"packed is \[16, 3, 8\], but must be what conv3x3_weight",
    ),
)


@pytest.mark.parametrize(("wrong", "kind", "message"), WRONG)
def test_the_wrong_argument_is_named(wrong, kind, message):
    with pytest.raises(kind, match=f"^conv3x3: {message}"):
        sfrs_ext.conv3x3(**dict(x=X, weight=WEIGHT) | wrong)


@pytest.mark.parametrize("outputs", (1, 3, 70))
def test_packed_weights_of_another_layer_are_noticed(outputs):
    x, weight, bias = problem(1, 6, outputs, 4, 5)
    packed = sfrs_ext.conv3x3_weight(weight)
    sfrs_ext.conv3x3(x, weight, bias, packed=packed)
    with pytest.raises(RuntimeError, match="conv3x3: packed was made of another weight"):
        sfrs_ext.conv3x3(x, weight.flip(2), bias, packed=packed)
    with torch.no_grad():
        weight -= 1e-3 * weight  # a step of training
    with pytest.raises(RuntimeError, match="of other values of this one"):
        sfrs_ext.conv3x3(x, weight, bias, packed=packed)


@pytest.mark.parametrize("outputs", (3, 70))
def test_packed_weights_of_other_kernels_are_noticed(outputs):
    x, weight, _ = problem(1, 6, outputs, 4, 5)
    packed, chosen = sfrs_ext.conv3x3_weight(weight), sfrs_ext.kernels()
    expected = sfrs_ext.conv3x3(x, weight, packed=packed)
    refused = 0
    try:
        for name in sfrs_ext.available_kernels():
            sfrs_ext.use_kernels(name)
            if torch.equal(sfrs_ext.conv3x3_weight(weight), packed):
                torch.testing.assert_close(sfrs_ext.conv3x3(x, weight, packed=packed), expected)
                continue
            with pytest.raises(RuntimeError, match="packed was made .* by other kernels"):
                sfrs_ext.conv3x3(x, weight, packed=packed)
            refused += 1
    finally:
        sfrs_ext.use_kernels(chosen)
    assert refused or len(sfrs_ext.available_kernels()) == 1


def test_only_float32_on_a_cpu_is_packed():
    with pytest.raises(
        TypeError, match="^conv3x3_weight: weight must be float32 on cpu, but is torch.float64"
    ):
        sfrs_ext.conv3x3_weight(WEIGHT.double())


def test_direct_callers_cannot_read_foreign_memory():
    op = torch.ops.sfrs_ext.conv3x3
    for weight, packed in ((WEIGHT[:, :6], None), (WEIGHT, torch.zeros(16, 3, 8))):
        with pytest.raises(RuntimeError, match="sfrs_ext: "):
            op(X, weight, None, packed, False, False)
    with pytest.raises(RuntimeError, match="passes has another shape"):
        torch.ops.sfrs_ext.conv3x3_relu_backward(X, torch.zeros(2, 4, 5, 2, dtype=torch.uint8))
