"""An operator that runs out of memory raises, and the next call computes what it should."""

import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import sfrs_ext
from sfrs_ext import _C

pytestmark = pytest.mark.slow

FAILING = hasattr(ctypes.CDLL(_C.__file__), "sfrs_fail_allocation")


@pytest.mark.skipif(not FAILING, reason="built without -DSFRS_FAILING_MEMORY=ON")
def test_any_allocation_may_fail():
    script = Path(__file__).with_name("failing_memory.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("3 threads: ") == 15, done.stdout  # eight calls forward, seven backward


@pytest.mark.skipif(not FAILING, reason="built without -DSFRS_FAILING_MEMORY=ON")
def test_scratch_that_is_not_to_be_had_is_a_memory_error_with_its_size():
    fail_allocation = ctypes.CDLL(_C.__file__).sfrs_fail_allocation
    x, weight = torch.randn(1, 30, 5, 5), torch.randn(7, 30)
    messages = []

    def call():
        for count in range(100):
            fail_allocation(count)
            try:
                sfrs_ext.netvlad(x, weight)
                break
            except MemoryError as error:
                messages.append(str(error))
            except RuntimeError:
                pass  # of torch, which had no memory for a result
            finally:
                fail_allocation(-1)

    thread = threading.Thread(target=call)  # which has no scratch from earlier calls
    thread.start()
    thread.join()
    assert any("sfrs_ext: out of memory" in text and "bytes of scratch" in text for text in messages), (
        messages
    )


def test_sizes_that_cannot_be_multiplied_are_refused():
    empty = torch.empty(0, 2**40, 1, 1)
    with pytest.raises(RuntimeError, match="sfrs_ext: .* result of 2\\^44 elements or more"):
        sfrs_ext.netvlad(empty, logits=torch.empty(0, 1, 2**30))
    with pytest.raises(RuntimeError, match="sfrs_ext: weight has sizes that make 2\\^44 elements or more"):
        sfrs_ext.conv3x3_weight(torch.empty(2**50, 0, 3, 3))
