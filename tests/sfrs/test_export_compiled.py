"""AOTInductor's package: compiled once, which takes a while, and run in a process of its own."""

import shutil
import subprocess
import sys

import pytest
import torch

from sfrs.models.export import ImageShape, export
from sfrs.models.export.programs import cxx, open_package
from sfrs.models.export.shapes import made_up_images
from sfrs.models.model import Model
from sfrs.models.whitening import Whitening

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, torch, sfrs_ext
sys.modules["sfrs"] = None
package = torch._inductor.aoti_load_package("net.pt2")
assert "sfrs" in package.loader.get_metadata()
batches = torch.load("batches.pt")
with torch.profiler.profile() as profile:
    found = [package(images) for images in batches]
print(sum(event.count for event in profile.key_averages() if event.key == "sfrs_ext::aggregate"))
torch.save(found, "out.pt")
"""


@pytest.mark.skipif(shutil.which(cxx()) is None, reason="no C++ compiler")
def test_a_package_needs_torch_and_the_operators_only_and_calls_them(tiny_network, tmp_path):
    describer = Model(tiny_network, Whitening(torch.randn(5, 24), torch.randn(5)))
    shape = ImageShape(48, 64, 8, dynamic=True)
    assert export(describer, tmp_path / "net.pt2", "aoti", shape).relative_error <= 1e-5
    last = (images := made_up_images(2, 48, 64)).contiguous(memory_format=torch.channels_last)
    opened = open_package(tmp_path / "net.pt2")
    assert torch.equal(opened(last), opened(images)), "photographs lie in channels_last"
    sizes = [(1, 48, 64), (8, 48, 64), (3, 49, 83), (2, 17, 16)]
    batches = [made_up_images(*size) for size in sizes]
    torch.save(batches, tmp_path / "batches.pt")
    ran = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == str(len(batches)), "calls of the fused operator"
    for images, found in zip(batches, torch.load(tmp_path / "out.pt"), strict=True):
        torch.testing.assert_close(found, describer(images).detach(), rtol=1e-5, atol=1e-6)
