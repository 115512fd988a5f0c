"""Loads the CUDA kernels. Where there are none, CUDA tensors meet an error that says how to get them."""

import importlib

import torch

from . import _C  # noqa: F401  declares the operators

OPERATORS = ("aggregate", "aggregate_backward", "region_similarity", "region_similarity_backward")

HOW_TO_BUILD = (
    "with the CUDA toolkit's nvcc on the PATH, install again from the sources beside this torch: "
    "`SFRS_CUDA=ON pip install --no-build-isolation --no-deps --force-reinstall .`, or in a checkout "
    "`make build SFRS_CUDA=ON`"
)

missing: str | None = None
"""Why there are no CUDA kernels; None if there are."""

try:
    library = importlib.import_module("sfrs_ext._C_cuda")
except ModuleNotFoundError:
    library, missing = None, "it was built without nvcc or with SFRS_CUDA=OFF"
except ImportError as error:
    library, missing = None, f"their library does not load: {error}"


def _refuse(*arguments: object) -> None:
    raise NotImplementedError(
        f"sfrs_ext: CUDA tensors, but this build has no CUDA kernels: {missing}; {HOW_TO_BUILD}"
    )


if library is None:
    for operator in OPERATORS:
        torch.library.impl(f"sfrs_ext::{operator}", "cuda")(_refuse)


def facts() -> str:
    """One line for people."""
    if library is None:
        return f"no kernels: {missing}; CUDA tensors raise NotImplementedError"
    kernels = f"kernels for {library.architectures()}, compiled by nvcc {library.compiler()}"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{kernels}; on {', '.join(devices)}" if devices else f"{kernels}; no device here"
