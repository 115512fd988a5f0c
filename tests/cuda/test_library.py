"""The GPU library loads beside a torch without CUDA and holds what it should; needs nvcc, but no GPU.

``make cuda`` builds it for every architecture and runs these tests on it; otherwise they take the package's.
"""

import os
import re
import struct
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TORCH = Path(torch.__file__).resolve().parent
OPERATORS = ("aggregate", "aggregate_backward", "region_similarity", "region_similarity_backward")
CPU_ONLY = ("conv3x3", "conv3x3_relu_backward", "conv3x3_weight")
"""On a GPU torch's own convolution takes their place."""
FOLDER = Path(os.environ.get("SFRS_CUDA_LIBRARY", ROOT / "sfrs_ext"))
LIBRARY = next(FOLDER.glob(f"_C_cuda.*{sys.version_info.major}{sys.version_info.minor}-*.so"), None)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=f"no GPU library in {FOLDER}: `make cuda` makes one")

LOAD = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("sfrs_ext._C_cuda", sys.argv[1])
library = importlib.util.module_from_spec(spec)
sys.modules["sfrs_ext._C_cuda"] = library
spec.loader.exec_module(library)
import sfrs_ext
NAMES = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sfrs_ext::")]
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
"""


def with_library(code: str) -> list[str]:
    """Lines that ``code`` prints in a process of its own that has loaded the library."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD + code, LIBRARY], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_every_operator_has_a_cuda_kernel():
    has = "torch._C._dispatch_has_kernel_for_dispatch_key(name, key)"
    lines = with_library(f"for name in NAMES:\n  print(name, *({has} for key in ('CPU', 'CUDA')))")
    expected = [f"sfrs_ext::{name} True {name not in CPU_ONLY}" for name in (*OPERATORS, *CPU_ONLY)]
    assert sorted(lines) == sorted(expected)


def test_every_kernel_belongs_to_a_schema():
    code = "print([name for name in torch._C._dispatch_find_dangling_impls() if 'sfrs_ext' in str(name)])"
    assert with_library(code) == ["[]"]


def test_it_tells_nothing_of_the_python_and_torch_it_was_compiled_beside():
    assert LIBRARY is not None
    code = LIBRARY.read_bytes()
    for place in (TORCH, Path(sysconfig.get_path("include"))):
        assert bytes(place) not in code


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_kernels_take_the_arguments_of_their_schemas_and_ask_for_a_torch_with_cuda():
    code = f"""
NAMES = [f"sfrs_ext::{{name}}" for name in {OPERATORS}]
VALUES = {{"Tensor": torch.ones(1, 1, 1, 1), "Optional[Tensor]": None, "int": 1, "bool": False}}
for name in NAMES:
    operator = getattr(torch.ops.sfrs_ext, name.split("::")[1]).default
    arguments = [VALUES[str(argument.type)] for argument in operator._schema.arguments]
    try:
        operator.redispatch(CUDA, *arguments)
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
    lines = with_library(code)
    ask = "sfrs_ext: this torch was built without CUDA"
    assert len(lines) == len(OPERATORS) and all(ask in line for line in lines)


def test_fake_cuda_tensors_have_shapes():
    code = """
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    x, weight = torch.empty(2, 16, 5, 6, device="cuda"), torch.empty(8, 16, device="cuda")
    quarters = sfrs_ext.region_vlad(x, weight)
    similarity = sfrs_ext.region_similarity(sfrs_ext.netvlad(x, weight), quarters)
    print(quarters.device.type, *quarters.shape, *similarity.shape)
"""
    assert with_library(code) == ["cuda 2 4 8 16 2 2 9"]


def test_no_symbol_is_missing_but_those_of_the_interpreter():
    paths = os.environ | {"LD_LIBRARY_PATH": str(TORCH / "lib")}  # in Python torch has loaded them before
    done = subprocess.run(["ldd", "-r", LIBRARY], env=paths, capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).splitlines()
    missing = [line for line in lines if "not found" in line or "undefined symbol" in line]
    assert not [line for line in missing if not re.search("symbol: _?Py", line)]


def test_it_tells_nothing_of_the_place_where_it_was_compiled():
    done = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True)
    assert re.findall(r"R(?:UN)?PATH.*\[(.*)\]", done.stdout) == ["$ORIGIN/../torch/lib"]
    code = LIBRARY.read_bytes()
    assert bytes(TORCH.parent) not in code
    if FOLDER == ROOT / "sfrs_ext":  # what make cuda compiles keeps line numbers, which name the sources
        assert bytes(ROOT) not in code


def test_neither_a_driver_nor_a_cuda_runtime_is_needed_to_load_it():
    done = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True)
    needed = [line for line in done.stdout.splitlines() if "(NEEDED)" in line]
    assert needed and not [line for line in needed if "cuda" in line]


def test_the_runtime_inside_is_not_seen_by_others():
    done = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert "PyInit__C_cuda" in names and not [name for name in names if name.startswith("cu")]


def device_code(library: bytes) -> Counter:
    """How often each architecture is in the library: ``{("machine code", 90): 3, ("PTX", 80): 3}``."""
    kinds, found = {1: "PTX", 2: "machine code"}, Counter()
    magic, position = struct.pack("<IHH", 0xBA55ED50, 1, 16), 0  # of a container, its version, its header
    while (position := library.find(magic, position)) >= 0:
        size = struct.unpack_from("<Q", library, position + 8)[0]
        entry = position + 16
        position = entry + size
        while entry < position:
            kind, header, payload = struct.unpack_from("<H2xIQ", library, entry)
            found[kinds[kind], struct.unpack_from("<I", library, entry + 28)[0]] += 1
            entry += header + payload
    return found


def test_every_kernel_file_is_there_for_every_architecture():
    architectures = [int(name) for name in with_library("print(library.architectures())")[0].split()]
    found = device_code(LIBRARY.read_bytes())
    assert set(found) == {("machine code", a) for a in architectures} | {("PTX", min(architectures))}
    assert len(set(found.values())) == 1
    if "SFRS_CUDA_LIBRARY" in os.environ and os.environ.get("SFRS_CUDA_ARCHS") == "all":
        assert architectures == [80, 90, 100, 120]
