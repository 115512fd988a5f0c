"""Train and evaluate image localisation by retrieval with SFRS on fused operators."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfrs.models.describer import Describer


def load(path: str | Path, whitening: str | Path | None = None, *, whiten: bool = True) -> "Describer":
    """Load a trained network as one module: RGB images in 0..1 ``[B, 3, H, W]`` -> unit descriptors.

    Args:
        path: what ``sfrs export`` or ``sfrs train`` wrote, or a network of other origin; see
            :func:`sfrs.models.network.load_network`.
        whitening: a file of its own with the PCA whitening. By default the one in ``path`` is applied,
            if there is one.
        whiten: False leaves out any whitening.

    Returns:
        :class:`sfrs.models.describer.Describer`, on the CPU and in evaluation mode.

    Raises:
        WeightsError: a file cannot be read, NetVLAD is missing, or the whitening does not fit the network.
    """
    from sfrs.models.describer import load_describer  # torch: too slow for `sfrs --help`

    return load_describer(path, whitening, whiten=whiten)
