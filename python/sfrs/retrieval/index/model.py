"""What turns photographs into the descriptors of an index: network, whitening and image size."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfrs.data.images import ImageFiles, Size, batches, image_tensor
from sfrs.models.network import DescriptorNetwork, describe, load_network, save_network
from sfrs.models.whitening import Whitening
from sfrs.retrieval.quarters import compact
from sfrs.runtime.progress import Progress

NETWORK, WHITENING = "network.safetensors", "whitening.safetensors"


@dataclass(frozen=True)
class Model:
    """A network with its whitening, if any, and the size images are brought to.

    Attributes:
        device: torch device everything runs on.
    """

    network: DescriptorNetwork
    whitening: Whitening | None = None
    size: Size = None
    device: str = "cpu"

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return self.network.dim if self.whitening is None else self.whitening.dim

    @property
    def quarters_shape(self) -> tuple[int, int, int]:
        """``(4, K, D)``, of the quarter VLADs of an image."""
        return 4, self.network.vlad.num_clusters, self.network.vlad.dim

    def save(self, folder: Path) -> None:
        """Write :data:`NETWORK` and, if there is one, :data:`WHITENING`, each in one step."""
        save_network(folder / NETWORK, self.network)
        if self.whitening is not None:
            self.whitening.to("cpu").save(folder / WHITENING)

    @classmethod
    def load(cls, folder: Path, size: Size, *, whitened: bool, device: str = "cpu") -> "Model":
        """Read :meth:`save`'s files.

        Raises:
            WeightsError: a file is missing or damaged.
        """
        network = load_network(folder / NETWORK).to(device)
        whitening = Whitening.load(folder / WHITENING).to(device) if whitened else None
        return cls(network, whitening, tuple(size) if isinstance(size, list) else size, device)

    def digests(self) -> dict[str, str]:
        """What a descriptor depends on, part by part: architecture, weights, whitening, size."""
        backbone = self.network.backbone
        architecture = [backbone.name, backbone.options, self.network.vlad.num_clusters]
        whitening = self.whitening
        parts = {} if whitening is None else {"projection": whitening.projection, "bias": whitening.bias}
        return {
            "architecture": json.dumps(architecture, sort_keys=True),
            "weights": _digest(self.network.state_dict()),
            "whitening": _digest(parts) if parts else "",
            "size": json.dumps(self.size),
        }

    def fingerprint(self) -> str:
        """SHA-256 over :meth:`digests`: equal for models that give equal descriptors."""
        return hashlib.sha256(json.dumps(self.digests(), sort_keys=True).encode()).hexdigest()

    def describe(self, files: Sequence[Path], progress: Progress | None = None, **options) -> np.ndarray:
        """Descriptors of files, float32 ``[n, dim]``; see :func:`sfrs.models.network.describe`."""
        settings = dict(size=self.size, device=self.device, whitening=self.whitening, progress=progress)
        return describe(self.network, files, **settings, **options)

    @torch.no_grad()
    def describe_batches(
        self, files: Sequence[Path], *, regions: bool, batch_size: int, threads: int
    ) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
        """Yield (numbers of the files, descriptors ``[B, dim]``, quarter VLADs ``[B, 4, K, D]`` if wanted).

        Quarter VLADs are float16, see :func:`sfrs.retrieval.quarters.compact`.

        A batch depends on the files from its first one on alone, so a list that is begun again where a
        batch ended gives the same numbers, bit for bit.
        """
        for rows, batch in batches(self._images(files), batch_size, workers=threads):
            features = self._features(batch)
            descriptors = self._whitened(self.network.vlad(features))
            yield rows, descriptors, self._quarters(features) if regions else None

    @torch.no_grad()
    def describe_image(self, image: Image.Image) -> np.ndarray:
        """Descriptor of an image in memory, float32 ``[1, dim]``."""
        features = self._features(self._normalised(image))
        return self._whitened(self.network.vlad(features)).float().cpu().numpy()

    @torch.no_grad()
    def quarters(self, images: Sequence[Path | Image.Image], batch_size: int = 8) -> Tensor:
        """Quarter VLADs float32 ``[n, 4, K, D]`` on the CPU; image by image where they are in memory.

        Rounded as those that an index stores, so that it makes no difference whether it does.
        """
        found = torch.empty(len(images), *self.quarters_shape)
        if all(isinstance(image, Image.Image) for image in images):
            loaded = (([i], self._normalised(image)) for i, image in enumerate(images))
        else:
            loaded = batches(self._images(images), batch_size)
        for rows, batch in loaded:
            found[rows] = self._quarters(self._features(batch)).float().cpu()
        return found

    def _images(self, files: Sequence[Path]) -> ImageFiles:
        return ImageFiles(files, self.size, self.network.backbone.mean, self.network.backbone.std)

    def _normalised(self, image: Image.Image) -> Tensor:
        backbone = self.network.backbone
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
        return image_tensor(image, self.size).sub_(mean).div_(std).unsqueeze(0)

    def _features(self, batch: Tensor) -> Tensor:
        return self.network.features(self.network.trunk(batch.to(self.device)))

    def _quarters(self, features: Tensor) -> Tensor:
        return compact(self.network.vlad.quarters(features).float())

    def _whitened(self, descriptors: Tensor) -> Tensor:
        return (descriptors if self.whitening is None else self.whitening.apply(descriptors)).float()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
