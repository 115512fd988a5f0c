"""ONNX: the network with NetVLAD as two matrix products, as ``sfrs_ext`` writes itself into such files."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfrs.models.export.shapes import ImageShape
from sfrs.models.model import Model
from sfrs.models.network import METADATA_KEY
from sfrs.runtime.errors import UserError

OPSET = 20
LARGEST_FILE = 2**31 - 2**24  # bytes of weights; a protobuf file ends at 2 GiB, the graph included


def write_onnx(model: Model, path: Path, shape: ImageShape, description: dict, device: str) -> None:
    """Write one ``.onnx`` file with input ``images`` and output ``descriptors``; always from the CPU.

    Raises `UserError` if onnx or onnxscript is not installed, or the weights do not fit into one file.
    """
    require("onnx", "onnxscript", "onnxruntime")
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if size > LARGEST_FILE:
        raise UserError(
            f"--format onnx: the weights are {size / 2**30:.1f} GiB, but an ONNX file holds 2 GiB at most. "
            "Fit a whitening to fewer numbers (sfrs whiten --dim), or take another format."
        )
    frozen = copy.deepcopy(model).requires_grad_(False).cpu()
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            frozen,
            (shape.example(),),
            dynamo=True,
            dynamic_shapes=shape.dynamic_shapes(),
            input_names=["images"],
            output_names=["descriptors"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            custom_translation_table={torch.ops.prims.hypot.default: _hypot},
        )
    assert program is not None  # with dynamo=True
    for node in program.model.graph:
        node.metadata_props.clear()  # paths of this machine
    program.model.metadata_props[METADATA_KEY] = json.dumps(description)
    program.save(path, external_data=False)


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Open a file with ONNX Runtime on the CPU."""
    require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def describe(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["descriptors"], {"images": images.cpu().numpy()})[0])

    return describe


def require(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {' and '.join(missing)}, not installed here: pip install "
            f"{' '.join(missing)}, or this package with its extra, [export]."
        )


def _hypot(a: Any, b: Any) -> Any:
    from onnxscript import opset20

    op: Any = opset20  # whose operators are typed by their inputs
    return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of the exporter about packages it does not need."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)
