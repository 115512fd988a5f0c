"""Fused NetVLAD aggregation, query-to-region similarity and nearest neighbours for PyTorch."""

from . import _compiled  # noqa: F401  before what imports compiled modules
from ._convolution import conv3x3, conv3x3_weight
from ._nearest import Nearest, nearest
from ._operators import netvlad, region_similarity, region_vlad
from ._version import __version__
from .reference import REGIONS

from . import nn, reference  # isort: skip  (nn calls the operators above)
from .compat import accelerate, restore  # isort: skip

__all__ = [
    "Nearest",
    "REGIONS",
    "__version__",
    "accelerate",
    "conv3x3",
    "conv3x3_weight",
    "nearest",
    "netvlad",
    "nn",
    "reference",
    "region_similarity",
    "region_vlad",
    "restore",
]
