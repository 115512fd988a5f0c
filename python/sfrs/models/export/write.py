"""Writing a file, comparing it with the original, and only then putting it in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sfrs.models.export.compare import Agreement, compare
from sfrs.models.export.formats import FORMATS, WHITENED, ExportError
from sfrs.models.export.programs import versions
from sfrs.models.export.shapes import ImageShape
from sfrs.models.model import Model
from sfrs.models.network import network_description
from sfrs.runtime.atomic_io import replaced
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress


@dataclass(frozen=True)
class Exported:
    """A file that was put in place.

    Attributes:
        path: the file.
        bytes: its size.
        agreement: with the original.
    """

    path: Path
    bytes: int
    agreement: Agreement


def export(
    model: Model,
    path: str | Path,
    format: str,
    shape: ImageShape,
    *,
    photos: Sequence[str | Path] = (),
    device: str = "cpu",
    source: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write ``model`` to ``path``, which the file replaces once its descriptors are the original's.

    Args:
        format: a key of :data:`FORMATS`.
        shape: the images the file takes; of ``safetensors``, which takes all, the one it recommends.
        photos: images to compare on, besides made-up ones.
        device: what ``torch`` and ``aoti`` are written for, and compared on.
        source: what the file says it was made from.
        progress: called with (done, total) as batches are compared.

    Raises:
        ExportError: the file's descriptors are farther from the original's than the format's tolerance.
        UserError: the format needs what is not installed, or ``path`` is a folder.
        WriteError: the disk is full, or another fault of it.
        BadImageError: a photo cannot be read.
    """
    path, kind = Path(path), FORMATS[format]
    if path.is_dir():
        raise UserError(f"{path}: this is a folder; expected the name of a file to write")
    device = device if kind.on_device else "cpu"
    with replaced(path, suffix=f".partial{kind.suffix}") as partial:  # torch insists on the suffix
        kind.write(model, partial, shape, describe_file(model, shape, source), device)
        agreement = _compare(model, partial, format, shape, photos, device, progress)
        limit = kind.tolerance * (1.0 if model.whitening is None else WHITENED)
        if not agreement.relative_error <= limit:
            raise ExportError(
                f"{path}: not written, its descriptors are not the network's: {agreement}; at most "
                f"{limit:g} is expected of --format {format}."
            )
    return Exported(path, path.stat().st_size, agreement)


def _compare(
    model: Model,
    written: Path,
    format: str,
    shape: ImageShape,
    photos: Sequence[str | Path],
    device: str,
    progress: Progress | None,
) -> Agreement:
    original, exported = model.to(device), FORMATS[format].open(written)
    # On CUDA convolutions may round to TF32 by default, which is no property of the file.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return compare(
            original,
            exported,
            (batch.to(device) for batch in shape.batches(photos)),
            progress,
            total=shape.number_of_batches(photos),
        )


def describe_file(model: Model, shape: ImageShape, source: str | None) -> dict:
    """What every format says about itself, as JSON: see docs/export.md."""
    network, whitening = model.network, model.whitening
    exported = {
        "source": source,
        "input": f"images float32 [B, 3, H, W], RGB in 0..1, {shape}",
        "dim": model.dim,
        "versions": versions(),
    }
    size = {} if shape.dynamic else {"image_size": [shape.height, shape.width]}
    return network_description(network, {**network.meta, **size, "exported": exported}, whitening)
