"""The formats, what each is for, and how far it may be from the original."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfrs.models.export.onnx_graph import open_onnx, write_onnx
from sfrs.models.export.programs import open_package, open_program, write_package, write_program
from sfrs.models.export.shapes import ImageShape
from sfrs.models.model import Model
from sfrs.models.network import save_network
from sfrs.runtime.errors import UserError


class ExportError(UserError, RuntimeError):
    """A file was written, but does not describe images as the original does; it was not put in place."""


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its names.
        title: for people.
        write: (model, path, shape, description, device) -> None.
        open: path -> function of RGB images in 0..1 on ``device`` (ONNX: on the CPU) to descriptors.
        tolerance: largest :attr:`Agreement.relative_error` in float32, without whitening.
        on_device: whether the file runs on the device it was written for; otherwise on the CPU.
    """

    suffix: str
    title: str
    write: Callable[[Model, Path, ImageShape, dict, str], None]
    open: Callable[[Path], Callable[[Tensor], Tensor]]
    tolerance: float
    on_device: bool


WHITENED = 10.0
"""How much more error is allowed behind a whitening, which magnifies the directions that vary least."""


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
"""Name -> format."""


def choose_format(name: str | None, out: Path) -> str:
    """The format the user asked for, by name or by the file's suffix.

    Raises:
        UserError: there is no such format, or the file is named otherwise.
    """
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
