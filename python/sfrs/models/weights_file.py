"""Tensors of a file of weights, by whoever it was written.

Nothing is unpickled but tensors, arrays and plain values: safetensors, ``torch.load(weights_only=True)``,
MATLAB's and HDF5's arrays.
"""

import fnmatch
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfrs.models.matconvnet import read_matconvnet
from sfrs.models.published import PUBLISHED, downloaded, published
from sfrs.runtime.array_files import HDF5, read_arrays
from sfrs.runtime.errors import UserError
from sfrs.runtime.tensor_files import read_safetensors

METADATA_KEY = "sfrs"  # of the description in the metadata of our own safetensors files


class WeightsError(UserError, ValueError):
    """A weights file cannot be used; the message names the file and what is missing."""


def read_tensors(path: Path, ignore_keys: Sequence[str] = ()) -> tuple[dict[str, Tensor], Any]:
    """Read all tensors of a file, and the description in it if it is our own.

    Names are the path through what a checkpoint wraps around its tensors, joined with dots, without
    ``module`` and ``_orig_mod``, which DataParallel and torch.compile put around parts of a model. Raises
    `WeightsError` if there is no such file, or it holds no weights.

    Args:
        path: a file, the folder of a run, or the name of a published network (`network_file`).
        ignore_keys: tensors whose names match one of these patterns (as ``fc.*``) are left out.
    """
    path = network_file(path)
    try:
        content, description = _read(path)
        tensors = list(_named_tensors(content, ()))
    except UserError as error:
        raise WeightsError(str(error)) from error
    except Exception as error:  # a reader that stumbles over a damaged file raises anything
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            # torch's own message suggests to unpickle anything, which would run code from the file.
            raise WeightsError(
                f"{path}: this is no weights file, or it holds objects other than tensors and plain values."
            ) from error
        raise WeightsError(f"{path}: this is no weights file, or a damaged one ({reason(error)}).") from error
    found: dict[str, Tensor] = {}
    for name, value in tensors:
        *path_to, last = name.split(".")
        short = ".".join([part for part in path_to if part not in ("module", "_orig_mod")] + [last])
        found[name if short in found else short] = value
    if not found:
        raise WeightsError(f"{path}: no tensor in it; expected a state dict, or a checkpoint with one.")
    kept = [name for name in found if not any(fnmatch.fnmatchcase(name, p) for p in ignore_keys)]
    return {name: found[name] for name in kept}, description


def network_file(path: Path) -> Path:
    """Return a file of weights: the file itself, the last generation's best network of a run's folder, or the
    downloaded file of a name in `sfrs.models.published.PUBLISHED`.

    Raises `WeightsError` if there is no such file, or no network in the folder; or `DownloadError`.
    """
    if path.is_file():
        return path
    if (network := published(path)) is not None:
        return downloaded(network)
    if not path.is_dir():
        names = "" if path.suffix else f" Published networks are {', '.join(PUBLISHED)}."
        raise WeightsError(f"{path}: there is no such weights file.{names}")
    found = [file for file in path.glob("generation_*/best.safetensors") if _generation(file) is not None]
    if found:
        return max(found, key=lambda file: _generation(file) or 0)
    if (path / "best.safetensors").is_file():
        return path / "best.safetensors"
    raise WeightsError(
        f"{path}: no network in this folder; expected generation_N/best.safetensors of sfrs train."
    )


def _generation(file: Path) -> int | None:
    number = file.parent.name.removeprefix("generation_")
    return int(number) if number.isdecimal() else None


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def listed(keys: Iterable[str], most: int = 6) -> str:
    """List different keys in a message, the first of them if they are many."""
    names = list(dict.fromkeys(keys))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def checked(path: Path, name: str, value: Tensor) -> Tensor:
    """Return the tensor as float32 if it is finite; else raise `WeightsError` that names it."""
    value = value.float()
    if wrong := value.numel() - int(value.isfinite().sum()):
        raise WeightsError(f"{path}: {wrong} of {value.numel()} values of {name} are NaN or infinite.")
    return value


def _read(path: Path) -> tuple[Any, Any]:
    if path.suffix == ".mat":
        return read_matconvnet(path), None
    if path.suffix in HDF5:
        return _read_pca(path), None
    if path.suffix == ".safetensors":
        return read_safetensors(path, METADATA_KEY)
    with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_values()):
        warnings.simplefilter("ignore", UserWarning)  # torch's advice on files that are refused
        return torch.load(path, map_location="cpu", weights_only=True), None


def _read_pca(path: Path) -> dict[str, Tensor]:
    """Read a ``pca_params_*.h5`` of the reference implementation as projection and bias.

    It holds the directions U ``[D, dim]``, their variances lams ``[dim]``, the mean mu ``[D, 1]``, and Utmu,
    which follows from them.
    """
    content = read_arrays(path)
    missing = [name for name in ("U", "lams", "mu") if not isinstance(content.get(name), np.ndarray)]
    if missing:
        found = ", ".join(content) or "nothing"
        raise WeightsError(f"{path}: no {', '.join(missing)}; expected U, lams and mu, but it holds {found}.")
    directions, variances, mean = (content.pop(name).astype(np.float64) for name in ("U", "lams", "mu"))
    if directions.ndim != 2 or (mean.size, variances.size) != directions.shape:
        shapes = ", ".join(str(list(array.shape)) for array in (directions, variances, mean))
        raise WeightsError(f"{path}: U, lams and mu are {shapes}; expected [D, dim], [dim] and [D, 1].")
    projection = (directions / np.sqrt(variances.reshape(-1))).T
    whitening = {"projection": projection, "bias": -projection @ mean.reshape(-1)}
    unread = {name: torch.empty(0) for name in content if name != "Utmu"}
    return {name: torch.from_numpy(array).float() for name, array in whitening.items()} | unread


def _named_tensors(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield ".".join(path), value
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _named_tensors(item, (*path, str(name)))


def _numpy_values() -> list:
    # Checkpoints keep recalls and counts as numpy numbers and arrays beside the weights.
    array = np.empty(0).__reduce__()[0]
    scalar = np.float64().__reduce__()[0]
    return [
        (array, "numpy.core.multiarray._reconstruct"),
        (array, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *{type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]},
        (_encode, "_codecs.encode"),
    ]


def _encode(text: str, encoding: str) -> bytes:
    """Encode as pickle writes bytes in its protocol 2: latin-1 text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")
