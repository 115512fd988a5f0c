"""Fused NetVLAD aggregation, query-to-region similarity and 3x3 convolution for PyTorch."""

from . import _compiled  # noqa: F401  before what imports compiled modules
from ._convolution import conv3x3, conv3x3_weight
from ._operators import netvlad, region_similarity, region_vlad
from ._version import __version__
from .reference import REGIONS

from ._C import available_kernels, kernels, use_kernels  # isort: skip  (links to what torch has loaded)
from . import nn, reference  # isort: skip  (nn calls the operators above)
from .compat import accelerate, restore  # isort: skip

__all__ = [
    "REGIONS",
    "__version__",
    "accelerate",
    "available_kernels",
    "conv3x3",
    "conv3x3_weight",
    "kernels",
    "netvlad",
    "nn",
    "reference",
    "region_similarity",
    "region_vlad",
    "restore",
    "use_kernels",
]
