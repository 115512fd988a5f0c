"""Everything between pixels and a descriptor in one module: normalisation, network, whitening."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrs.data.images import Size
from sfrs.models.foreign import WeightsError
from sfrs.models.network import DescriptorNetwork, load_network
from sfrs.models.whitening import Whitening
from sfrs.runtime.errors import UserError


class Describer(nn.Module):
    """RGB images in 0..1 -> unit descriptors, in evaluation mode.

    Who calls it needs to know neither mean nor deviation nor whitening::

        images = torch.stack([sfrs.data.images.load_image(file, (480, 640)) for file in files])
        descriptors = describer(images)

    Args:
        network: taken over, and brought into evaluation mode.
        whitening: applied to the network's descriptors; the network's own are the result without it.

    Attributes:
        network: :class:`sfrs.models.network.DescriptorNetwork`.
        projection, bias: the whitening's ``[dim, K * D]`` and ``[dim]``, or None.
    """

    def __init__(self, network: DescriptorNetwork, whitening: Whitening | None = None):
        super().__init__()
        if whitening is not None and whitening.input_dim != network.dim:
            raise WeightsError(
                f"whitening: fitted to descriptors of {whitening.input_dim} numbers, but this network's have "
                f"{network.dim}. Whitening belongs to the network it was fitted with."
            )
        self.network = network
        backbone = network.backbone
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)
        self.register_buffer("projection", None if whitening is None else whitening.projection)
        self.register_buffer("bias", None if whitening is None else whitening.bias)
        self.eval().to(next(network.parameters()).device)

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return self.network.dim if self.projection is None else len(self.projection)

    @property
    def whitening(self) -> Whitening | None:
        """The whitening it applies."""
        return None if self.projection is None else Whitening(self.projection, self.bias)

    @property
    def image_size(self) -> Size:
        """Size of the images the network was trained on, as far as its file says; see :data:`Size`."""
        size = self.network.meta.get("image_size")
        return tuple(size) if isinstance(size, list) else size

    def forward(self, images: Tensor) -> Tensor:
        """RGB ``[B, 3, H, W]`` in 0..1, floating -> unit descriptors ``[B, dim]``.

        Raises:
            UserError: images of another shape, or in integers, which are 0..255.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}; expected RGB [B, 3, H, W] in 0..1, floating"
            )
        trunk = self.network.trunk((images - self.mean) / self.std)
        descriptors = self.network.vlad(self.network.features(trunk))
        if self.projection is None:
            return descriptors
        return F.normalize(F.linear(descriptors, self.projection, self.bias), dim=1)


def load_describer(
    path: str | Path, whitening: str | Path | None = None, *, whiten: bool = True
) -> Describer:
    """Load what turns images into descriptors from a file of weights; see :func:`sfrs.load`.

    Raises:
        WeightsError: a file cannot be read, NetVLAD is missing, or the whitening does not fit the network.
    """
    network = load_network(path)
    if network.meta.get("untrained_vlad"):
        raise WeightsError(f"{path}: there is no NetVLAD in it, so it describes no image. See sfrs train.")
    if not whiten or (whitening is None and not network.meta.get("has_pca")):
        return Describer(network)
    return Describer(network, Whitening.load(path if whitening is None else whitening))
