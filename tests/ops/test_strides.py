"""Operators read any strides: the result is that of a contiguous copy, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sfrs_ext

properties = settings(derandomize=True, database=None, deadline=None, max_examples=40)
DTYPES = st.sampled_from([torch.float64, torch.float32])


@st.composite
def lying(draw: st.DrawFn, *sizes: int, dtype: torch.dtype) -> Tensor:
    """A tensor of ``sizes`` whose dimensions lie in any order and with gaps."""
    order = draw(st.permutations(range(len(sizes))))
    steps = [draw(st.integers(1, 2)) for _ in sizes]
    before = [draw(st.integers(0, 2)) for _ in sizes]
    storage = [before[i] + sizes[i] * steps[i] for i in order]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    whole = torch.randn(storage, dtype=dtype, generator=generator).permute(
        [order.index(i) for i in range(len(sizes))]
    )
    return whole[tuple(slice(b, b + n * s, s) for b, n, s in zip(before, sizes, steps, strict=True))]


def assert_strides_change_nothing(operator, *tensors: Tensor) -> None:
    results = []
    for arguments in (tensors, [t.clone(memory_format=torch.contiguous_format) for t in tensors]):
        leaves = [t.detach().requires_grad_() for t in arguments]
        value = operator(*leaves)
        weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
        results.append([value, *torch.autograd.grad((value * weights).sum(), leaves)])
    close = 1e-10 if tensors[0].dtype == torch.float64 else 1e-4
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=close, atol=close)


@properties
@given(st.data(), DTYPES)
@pytest.mark.parametrize("operator", [sfrs_ext.netvlad, sfrs_ext.region_vlad])
def test_maps_of_any_strides(operator, data, dtype):
    b, d, h, w, k = (data.draw(st.integers(1, high)) for high in (3, 19, 6, 6, 9))
    x, weight = data.draw(lying(b, d, h, w, dtype=dtype)), data.draw(lying(k, d, dtype=dtype))
    centroids, bias = data.draw(lying(k, d, dtype=dtype)), data.draw(lying(k, dtype=dtype))
    assert_strides_change_nothing(operator, x, weight, centroids, bias)


@properties
@given(st.data(), DTYPES)
def test_tokens_of_any_strides(data, dtype):
    b, n, d, k = (data.draw(st.integers(1, high)) for high in (3, 21, 19, 9))
    x, weight = data.draw(lying(b, n, d, dtype=dtype)), data.draw(lying(k, d, dtype=dtype))
    assert_strides_change_nothing(sfrs_ext.netvlad, x, weight)


@properties
@given(st.data(), DTYPES)
def test_similarities_of_any_strides(data, dtype):
    q, g, k, d = (data.draw(st.integers(1, high)) for high in (4, 4, 5, 19))
    query, lists = data.draw(lying(q, k * d, dtype=dtype)), data.draw(st.booleans())
    gallery = (q, g) if lists else (g,)
    quarters = data.draw(lying(*gallery, 4, k, d, dtype=dtype))
    assert_strides_change_nothing(sfrs_ext.region_similarity, query, quarters)
