"""The model: everything between a photograph and its descriptor, as one object."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrs.data.images import Photograph, Photographs, Size, batches
from sfrs.models.backbones import is_backbone
from sfrs.models.foreign import read_weights
from sfrs.models.network import DescriptorNetwork, network_of, pretrained_network, save_network
from sfrs.models.weights_file import WeightsError
from sfrs.models.whitening import Whitening
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, silent
from sfrs.runtime.records import Positive, as_record, parse_json

DEFAULT = "efficientnet-lite0"  # backbone of a model that nobody trained
TRAINED: Literal["trained"] = "trained"
EPS = 1e-12


class Digests(TypedDict):
    """What a descriptor depends on: the architecture and the size in JSON, else SHA-256, "" for none."""

    architecture: str
    weights: str
    whitening: str
    size: str


def read_architecture(text: str, where: object) -> tuple[str, dict, int]:
    """Return backbone, its options and K. Raises `RecordError`, which begins with ``where``."""
    where = f"{where}, architecture"
    return as_record(parse_json(text, where), tuple[str, dict[str, Any], Positive], where)


class Model(nn.Module):
    """RGB images -> unit descriptors, in evaluation mode: resizing, normalisation, network, whitening.

        model = sfrs.load("sfrs.safetensors")
        descriptors = model.encode(["query.jpg", *database])  # float32 [n, dim]

    Args:
        network: taken over, and brought into evaluation mode.
        whitening: applied to the network's descriptors.
        size: what images are resized to, see `sfrs.data.images.Size`; "trained" is the size the
            network was trained at, else the backbone's.

    Attributes:
        projection, bias: the whitening's ``[dim, K * D]`` and ``[dim]``, or None.

    Raises:
        WeightsError: the whitening was fitted to descriptors of another length.
    """

    mean: Tensor
    std: Tensor
    projection: Tensor | None
    bias: Tensor  # where there is a projection

    def __init__(
        self,
        network: DescriptorNetwork,
        whitening: Whitening | None = None,
        *,
        size: Size | Literal["trained"] = TRAINED,
    ):
        super().__init__()
        self.network = network
        size = network.image_size if size == TRAINED else size
        self.size: Size = (size[0], size[1]) if isinstance(size, list) else size
        for name in ("mean", "std"):
            value = torch.tensor(getattr(network.backbone, name)).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.whitening = whitening
        self.eval().to(next(network.parameters()).device)

    @classmethod
    def load(
        cls,
        source: str | Path = DEFAULT,
        whitening: str | Path | None = None,
        *,
        whiten: bool = True,
        size: Size | Literal["trained"] = TRAINED,
        ignore_keys: Sequence[str] = (),
        device: str | torch.device = "cpu",
    ) -> "Model":
        """Load a model from a file of weights, by a published name, or a backbone with its published weights.

        Args:
            source: a file (see `sfrs.models.network.load_network`), a published network such as
                "sfrs/pitts30k" (`sfrs.models.published.PUBLISHED`), or the name of a backbone (see
                `sfrs.models.backbones.build_backbone`), whose clusters `fit_clusters` makes.
            whitening: a file with the PCA whitening; by default the one in ``source``, if any.
            whiten: False leaves out any whitening.
            size: see `Model`.
            ignore_keys: see `sfrs.models.network.load_network`.

        Raises:
            WeightsError: a file cannot be read, or the whitening does not fit the network.
            DownloadError: a published network cannot be downloaded.
        """
        found = None
        if isinstance(source, str) and is_backbone(source):
            network = pretrained_network(source)
        else:
            weights = read_weights(source, ignore_keys)
            network, found = network_of(weights), Whitening.of(weights)
        if whitening is not None and whiten:
            found = Whitening.load(whitening, ignore_keys=ignore_keys)
        return cls(network, found if whiten else None, size=size).to(device)

    def save(self, path: str | Path) -> None:
        """Write network, whitening and size to one safetensors file, from which `load` rebuilds it."""
        size = {} if self.size is None else {"image_size": self.size}
        save_network(path, self.network, self.network.meta | size, self.whitening)

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return self.network.dim if self.projection is None else len(self.projection)

    @property
    def quarters_shape(self) -> tuple[int, int, int]:
        """Shape ``(4, K, D)`` of the quarter VLADs of an image."""
        return 4, self.network.vlad.num_clusters, self.network.vlad.dim

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def whitening(self) -> Whitening | None:
        """Whitening that it applies."""
        return None if self.projection is None else Whitening(self.projection, self.bias)

    @whitening.setter
    def whitening(self, whitening: Whitening | None) -> None:
        if whitening is not None:
            whitening.check(self.network.dim)
        device = self.mean.device
        for name in ("projection", "bias"):
            value = None if whitening is None else getattr(whitening, name).to(device)
            self.register_buffer(name, value)

    @property
    def has_clusters(self) -> bool:
        """Whether NetVLAD's clusters were trained or made; nothing is described without."""
        return not self.network.meta.get("untrained_vlad")

    def at(self, size: Size) -> "Model":
        """Return the same model, which shares its weights, for images resized to ``size``."""
        other = copy.copy(self)
        other.size = size
        return other

    def forward(self, images: Tensor) -> Tensor:
        """Describe RGB ``[B, 3, H, W]`` in 0..1, floating: unit descriptors ``[B, dim]``.

        Raises:
            UserError: images of another shape, or in integers, which are 0..255.
            WeightsError: NetVLAD has no clusters yet.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}; expected RGB [B, 3, H, W] in 0..1, floating"
            )
        return self._aggregate(self._features(images))

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Photograph],
        *,
        batch_size: int = 8,
        workers: int = 2,
        progress: Progress = silent,
        out: np.ndarray | None = None,
        quarters: np.ndarray | None = None,
    ) -> np.ndarray:
        """Describe images, float32 ``[n, dim]``, rows in the order of ``images``.

        Args:
            batch_size: images of equal size per batch.
            workers: threads that decode files.
            progress: called with (done, n).
            out: where to write, for example a memory map; made here if absent.
            quarters: where to write the quarter VLADs from the same pass, float16 ``[n, 4, K, D]``.

        Raises:
            BadImageError: an image cannot be read.
            UserError: an image's descriptor is not finite.
            WeightsError: NetVLAD has no clusters yet.
        """
        shape = (len(images), self.dim)
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        elif out.shape != shape:
            raise ValueError(f"encode: out is {out.shape}, but the descriptors are {shape}")
        described = self.encode_batches(
            images, regions=quarters is not None, batch_size=batch_size, workers=workers
        )
        for rows, descriptors, regions in described:
            there = slice(rows[0], rows[-1] + 1)
            out[there] = descriptors.cpu().numpy()
            if quarters is not None and regions is not None:
                quarters[there] = regions.cpu().numpy()
            progress(rows[-1] + 1, len(images))
        return out

    @torch.no_grad()
    def encode_batches(
        self, images: Sequence[Photograph], *, regions: bool = False, batch_size: int = 8, workers: int = 2
    ) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
        """Yield (rows, descriptors ``[B, dim]``, compact quarter VLADs ``[B, 4, K, D]`` if wanted).

        A batch depends on the images from its first one on alone, so a list that is begun again where a
        batch ended gives the same numbers, bit for bit.
        """
        self.check_clusters()
        for rows, batch in batches(self._photographs(images), batch_size, workers=workers):
            features = self._features(batch.to(self.device))
            quarters = self._quarters(features) if regions else None
            descriptors = self._aggregate(features).float()
            for row in (~descriptors.isfinite().all(1)).nonzero().flatten().tolist():
                image = images[rows[row]]
                name = image if isinstance(image, str | Path) else f"image {rows[row]}"
                raise UserError(f"{name}: its descriptor is not finite; the network's values overflow.")
            yield rows, descriptors, quarters

    @torch.no_grad()
    def quarters(self, images: Sequence[Photograph], *, batch_size: int = 8) -> Tensor:
        """Compute quarter VLADs, float32 ``[n, 4, K, D]`` on the CPU, un-whitened, `compact`.

        Raises `BadImageError` if an image cannot be read.
        """
        self.check_clusters()
        found = torch.empty(len(images), *self.quarters_shape)
        for rows, batch in batches(self._photographs(images), batch_size):
            found[rows] = self._quarters(self._features(batch.to(self.device))).float().cpu()
        return found

    @torch.no_grad()
    def features(self, image: Photograph) -> Tensor:
        """Compute local features ``[1, D, h, w]`` of an image. Raises `BadImageError`."""
        return self._features(self._photographs([image])[0][None].to(self.device))

    def fit_clusters(
        self, files: Sequence[Path], *, images: int = 500, per_image: int = 100, seed: int = 0, **options
    ) -> None:
        """Make NetVLAD's clusters from local features of images: the off-the-shelf descriptor.

        See `sfrs.models.fitting.init_vlad_from_images` for ``options`` and errors.
        """
        from sfrs.models.fitting import init_vlad_from_images  # faiss: not needed to describe

        init_vlad_from_images(self, files, images=images, per_image=per_image, seed=seed, **options)
        self.network.meta.pop("untrained_vlad", None)
        self.network.meta["clusters_from"] = len(files)

    def digests(self) -> Digests:
        """Compute digests of what a descriptor depends on."""
        backbone = self.network.backbone
        architecture = [backbone.name, backbone.options, self.network.vlad.num_clusters]
        parts = {} if self.projection is None else {"projection": self.projection, "bias": self.bias}
        return {
            "architecture": json.dumps(architecture, sort_keys=True),
            "weights": _digest(self.network.state_dict()),
            "whitening": _digest(parts) if parts else "",
            "size": json.dumps(self.size),
        }

    def fingerprint(self) -> str:
        """Compute SHA-256 over `digests`: equal for models that give equal descriptors."""
        return hashlib.sha256(json.dumps(self.digests(), sort_keys=True).encode()).hexdigest()

    def _photographs(self, images: Sequence[Photograph]) -> Photographs:
        return Photographs(images, self.size, self.network.backbone.stride)  # with room for a local feature

    def _features(self, images: Tensor) -> Tensor:
        return self.network.features(self.network.trunk((images - self.mean) / self.std))

    def _aggregate(self, features: Tensor) -> Tensor:
        self.check_clusters()
        descriptors = self.network.vlad(features)
        if self.projection is None:
            return descriptors
        return F.normalize(F.linear(descriptors, self.projection, self.bias), dim=1)

    def _quarters(self, features: Tensor) -> Tensor:
        return compact(self.network.vlad.quarters(features).float())

    def check_clusters(self) -> None:
        """Raise `WeightsError` if NetVLAD has no clusters."""
        if not self.has_clusters:
            source = self.network.meta.get("source", "network")
            raise WeightsError(
                f"{source}: there is no NetVLAD in it, so it describes no image. See sfrs train, or "
                "fit_clusters."
            )


def compact(quarters: Tensor) -> Tensor:
    """Convert quarter VLADs ``[..., 4, K, D]`` to float16, for keeping them.

    Every cluster is scaled to a largest value of 1 over the four quarters: regions are normalised cluster by
    cluster, so this changes none of them, and neither do values overflow nor whole clusters vanish. What is
    lost is a cluster's part in a quarter where it is 10^-7 of its largest value: nearly no local feature of
    that quarter belongs to it, yet normalised it would weigh as much as any other.
    """
    largest = quarters.abs().amax(dim=(-3, -1), keepdim=True)
    return torch.where(largest > EPS, quarters / largest.clamp_min(EPS), 0).half()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
