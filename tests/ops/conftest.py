"""Tests with a ``device`` run on the CPU, and on CUDA with the mark ``cuda``: ``pytest -m cuda``."""

import os

import pytest
import torch

from sfrs_ext import _cuda


@pytest.fixture(params=("cpu", pytest.param("cuda", marks=pytest.mark.cuda)))
def device(request) -> str:
    return request.param


def pytest_collection_modifyitems(config, items):
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
