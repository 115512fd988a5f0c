"""Tests with a ``device`` run on the CPU, and on CUDA with the mark ``cuda``: ``pytest -m cuda``.

Those of `KERNEL_TESTS` run with every set of CPU kernels, as far as a set has code of its own.
"""

import os
import re

import pytest
import torch

import sfrs_ext
from sfrs_ext import _C, _cuda

AGGREGATION = ("test_aggregation", "test_given_logits")
KERNEL_TESTS = (*AGGREGATION, "test_conv3x3", "test_region_similarity")
PAIRED = ("avx512bf16", "amx", "wide_bf16", "wide_amx")
"""Sets with kernels of their own for the aggregation of bfloat16 maps, which leave the rest to others."""
OF_TORCH = "compile|opcheck"
"""Tests of what torch does with an operator, whatever its kernels."""
SLOW = "paper|512|finite_differences"
"""Tests that take minutes at the speed of an emulator."""


@pytest.fixture(params=("cpu", pytest.param("cuda", marks=pytest.mark.cuda)))
def device(request) -> str:
    return request.param


@pytest.fixture
def kernels(request):
    name, _, order = request.param.partition(" ")
    before = sfrs_ext.kernels()
    sfrs_ext.use_kernels(name)
    assert sfrs_ext.kernels() == name
    if order:
        _C.use_emulator_order(order)
    yield
    sfrs_ext.use_kernels(before)
    if order:
        _C.use_emulator_order("forward")


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__ in KERNEL_TESTS:
        others = [name for name in sfrs_ext.available_kernels() if name != sfrs_ext.kernels()]
        names = [sfrs_ext.kernels(), *others, *(["emulated reversed"] if "emulated" in others else [])]
        metafunc.fixturenames.append("kernels")
        metafunc.parametrize("kernels", names if "SFRS_CPU" not in os.environ else names[:1], indirect=True)


def adds_nothing(item: pytest.Item) -> bool:
    """Whether a test with a set of kernels repeats what it says with the best one."""
    kernels = item.callspec.params.get("kernels") if hasattr(item, "callspec") else None
    if kernels in (None, sfrs_ext.kernels()):
        return False
    name = item.name.replace(kernels, "")
    if item.get_closest_marker("cuda") or re.search(OF_TORCH, name):
        return True
    if kernels in PAIRED:
        return item.module.__name__ not in AGGREGATION or not re.search("bfloat16|16_bit", name)
    if kernels == "emulated":
        return bool(re.search(SLOW, name))
    if kernels == "emulated reversed":
        return "odd" not in name or bool(re.search(f"{SLOW}|layout", name))
    return bool(re.search("float64|[.]float16", name))  # which share all but their loads with float32


def pytest_collection_modifyitems(config, items):
    items[:] = [item for item in items if not adds_nothing(item)]
    if not torch.cuda.is_available():
        reason = "torch sees no CUDA device"
    elif _cuda.missing:
        return  # they fail with the error that says how to build the kernels
    else:
        return
    on_cuda = [item for item in items if item.get_closest_marker("cuda")]
    if "cuda" in config.option.markexpr:  # asked for by name
        for item in on_cuda:
            item.add_marker(pytest.mark.skip(reason=reason))
    else:
        config.hook.pytest_deselected(items=on_cuda)
        items[:] = [item for item in items if not item.get_closest_marker("cuda")]


class LostContext:
    """Ends a worker of xdist whose CUDA context a test has lost: the next one gets another process."""

    lost = False

    def pytest_runtest_logreport(self, report):
        self.lost |= report.failed and "CUDA error" in report.longreprtext

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        result = yield
        if self.lost:
            os._exit(1)  # xdist names the test once more, as the one that crashed
        return result


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        config.pluginmanager.register(LostContext())
