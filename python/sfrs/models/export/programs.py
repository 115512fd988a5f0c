"""torch.export programs, and packages that AOTInductor compiles from them; both call the fused operators.

Custom operators stay what they are in both, so whoever runs such a file imports ``sfrs_ext`` first. Nothing
in a program is pickled.
"""

import copy
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sfrs.models.export.shapes import ImageShape
from sfrs.models.model import Model
from sfrs.models.network import METADATA_KEY
from sfrs.runtime.errors import UserError

DESCRIPTION_FILE = f"{METADATA_KEY}.json"
"""Where a program keeps its description; ``extra_files`` of ``torch.export.load`` brings it back."""


def trace(model: Model, shape: ImageShape, device: str) -> torch.export.ExportedProgram:
    """Trace the model for images of ``shape`` on ``device``."""
    frozen = copy.deepcopy(model).requires_grad_(False).to(device)
    with torch.no_grad():
        program = torch.export.export(frozen, (shape.example(device),), dynamic_shapes=shape.dynamic_shapes())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def write_program(model: Model, path: Path, shape: ImageShape, description: dict, device: str) -> None:
    """Write ``.pt2``, which ``torch.export.load`` reads."""
    program = trace(model, shape, device)
    with warnings.catch_warnings():
        # Weights in channels_last are saved with their strides; torch warns as if they were parts of others.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        torch.export.save(program, path, extra_files={DESCRIPTION_FILE: json.dumps(description)})


def open_program(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def write_package(model: Model, path: Path, shape: ImageShape, description: dict, device: str) -> None:
    """Write ``.pt2`` of machine code, which ``torch._inductor.aoti_load_package`` and C++ read.

    Raises `UserError` if there is no C++ compiler.
    """
    compiler = cxx()
    if shutil.which(compiler) is None:
        raise UserError(
            f"--format aoti compiles the network, but there is no C++ compiler {compiler!r}. Install one, "
            "name yours in CXX, or take --format torch."
        )
    program = trace(model, shape, device)
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)  # torch's own
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": {METADATA_KEY: json.dumps(description)}},
        )


def open_package(path: Path) -> Callable[[Tensor], Tensor]:
    package = torch._inductor.aoti_load_package(str(path))
    # Compiled code takes for granted that images are contiguous.
    return lambda images: package(images.contiguous())


def cxx() -> str:
    """Name the C++ compiler that torch's inductor would call."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
