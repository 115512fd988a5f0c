"""Exporting a model: a file is written, compared with the original, and only then put in place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import sfrs_ext
from sfrs.models.export.onnx_graph import open_onnx, write_onnx
from sfrs.models.export.programs import open_package, open_program, write_package, write_program
from sfrs.models.export.shapes import ImageShape
from sfrs.models.model import Model
from sfrs.models.network import network_description, save_network
from sfrs.runtime.atomic_io import replaced
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, silent


class ExportError(UserError, RuntimeError):
    """A file was written, but does not describe images as the original does; it was not put in place."""


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    suffix: str
    title: str
    write: Callable[[Model, Path, ImageShape, dict, str], None]
    # Path -> function of RGB images in 0..1 on device (ONNX: on the CPU) to descriptors.
    open: Callable[[Path], Callable[[Tensor], Tensor]]
    tolerance: float  # largest `Agreement.relative_error` in float32, without whitening
    on_device: bool  # whether the file runs on the device it was written for; otherwise on the CPU


WHITENED = 10.0
"""Factor of the error allowed after a whitening, which magnifies the directions that vary least."""


def _write_weights(model: Model, path: Path, shape: ImageShape, description: dict, device: str) -> None:
    save_network(path, model.network, description["meta"], model.whitening)


FORMATS = {
    # The same numbers in the same code; a matrix product may round otherwise at another address in memory.
    "safetensors": Format(".safetensors", "weights", _write_weights, Model.load, 1e-6, False),
    # The same operators in the same order; a convolution may choose another kernel for another layout.
    "torch": Format(".pt2", "torch.export program", write_program, open_program, 1e-6, True),
    # Other kernels around the fused operator, and other orders of summation: float32 rounding, through
    # thirteen convolutions and a softmax.
    "aoti": Format(".pt2", "AOTInductor package", write_package, open_package, 1e-5, True),
    "onnx": Format(".onnx", "ONNX", write_onnx, open_onnx, 1e-5, False),
}


def choose_format(name: str | None, out: Path) -> str:
    """Choose a format by its name or the file's suffix. Raises `UserError` where they do not fit."""
    if name is None:
        by_suffix = {kind.suffix: name for name, kind in reversed(FORMATS.items())}
        if out.suffix not in by_suffix:
            raise UserError(f"--out is {out}; expected a name that ends in {', '.join(sorted(by_suffix))}.")
        return by_suffix[out.suffix]
    if name not in FORMATS:
        raise UserError(f"--format is {name!r}; expected one of {', '.join(FORMATS)}.")
    if out.suffix != FORMATS[name].suffix:
        raise UserError(
            f"--out is {out}; expected a name that ends in {FORMATS[name].suffix} for --format {name}."
        )
    return name


@dataclass(frozen=True)
class Agreement:
    """How far a file's descriptors are from the original's: the largest difference of two numbers, the
    largest length of a difference of descriptors in parts of theirs, the smallest cosine.
    """

    images: int
    largest_difference: float
    relative_error: float
    cosine: float

    def __str__(self) -> str:
        return (
            f"{self.images} images, largest difference {self.largest_difference:.1e}, relative error "
            f"{self.relative_error:.1e}, smallest cosine {self.cosine:.9f}"
        )


@torch.no_grad()
def compare(
    original: Callable[[Tensor], Tensor],
    exported: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    progress: Progress = silent,
) -> Agreement:
    """Describe all batches both ways and compare in float64; NaN or another shape is an infinite error."""
    images, largest, error, cosine = 0, 0.0, 0.0, 1.0
    for done, batch in enumerate(batches, start=1):
        expected, found = original(batch).double().cpu(), exported(batch).double().cpu()
        images += len(batch)
        if found.shape != expected.shape or not (found.isfinite() & expected.isfinite()).all():
            return Agreement(images, float("inf"), float("inf"), 0.0)
        difference = found - expected
        largest = max(largest, difference.abs().max().item())
        error = max(error, (difference.norm(dim=1) / expected.norm(dim=1)).max().item())
        cosine = min(cosine, torch.cosine_similarity(found, expected).min().item())
        progress(done, len(batches))
    return Agreement(images, largest, error, cosine)


def export(
    model: Model,
    path: str | Path,
    format: str,
    shape: ImageShape,
    *,
    photos: Sequence[str | Path] = (),
    device: str = "cpu",
    source: str | None = None,
    progress: Progress = silent,
) -> Agreement:
    """Write ``model`` to ``path``, which the file replaces once its descriptors are the original's.

    Args:
        format: a key of `FORMATS`.
        shape: the images the file takes; of ``safetensors``, which takes all, the one it recommends.
        photos: images to compare on, besides made-up ones.
        device: where ``torch`` and ``aoti`` will run, and are compared.
        source: the name of the file it was made from, to be kept in it.

    Raises:
        ExportError: the file's descriptors are farther from the original's than the format's tolerance.
        UserError: the format needs what is not installed, or the backbone one size, or ``path`` is a folder.
    """
    path, kind = Path(path), FORMATS[format]
    if path.is_dir():
        raise UserError(f"{path}: this is a folder; expected the name of a file to write")
    backbone = model.network.backbone
    if shape.dynamic and format != "safetensors" and not backbone.exports_any_size:
        raise UserError(
            f"--size is dynamic, but {backbone.name} is written as {kind.title} for one size; give "
            "--size HxW."
        )
    device = device if kind.on_device else "cpu"
    with replaced(path, suffix=f".partial{kind.suffix}") as partial:  # torch insists on the suffix
        kind.write(model, partial, shape, describe_file(model, shape, source), device)
        opened, batches = kind.open(partial), [batch.to(device) for batch in shape.batches(photos)]
        # On CUDA convolutions may round to TF32 by default, which is no property of the file.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            agreement = compare(model.to(device), opened, batches, progress)
        limit = kind.tolerance * (1.0 if model.whitening is None else WHITENED)
        if not agreement.relative_error <= limit:
            raise ExportError(
                f"{path}: not written, its descriptors are not the network's: {agreement}; at most "
                f"{limit:g} is expected of --format {format}."
            )
    return agreement


def describe_file(model: Model, shape: ImageShape, source: str | None) -> dict:
    """Describe a file as every format keeps it, in JSON: see docs/export.md."""
    exported = {
        "source": source,
        "input": f"images float32 [B, 3, H, W], RGB in 0..1, {shape}",
        "dim": model.dim,
        "versions": {"torch": torch.__version__, "sfrs_ext": sfrs_ext.__version__},
    }
    size = {} if shape.dynamic else {"image_size": [shape.height, shape.width]}
    meta = {**model.network.meta, **size, "exported": exported}
    return network_description(model.network, meta, model.whitening)
