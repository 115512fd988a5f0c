"""Fused NetVLAD aggregation and query-to-region similarity for PyTorch."""

from ._convolution import conv3x3, conv3x3_weight
from ._operators import netvlad, region_similarity, region_vlad
from ._version import __version__
from .reference import REGIONS

from . import nn, reference  # isort: skip  (nn calls the operators above)
from .compat import accelerate, restore  # isort: skip

__all__ = [
    "REGIONS",
    "__version__",
    "accelerate",
    "conv3x3",
    "conv3x3_weight",
    "netvlad",
    "nn",
    "reference",
    "region_similarity",
    "region_vlad",
    "restore",
]
