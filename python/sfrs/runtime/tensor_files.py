"""Safetensors files: written whole or not at all, and read without a fault that is not named."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfrs.runtime.atomic_io import replaced
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import parse_json


class TensorFileError(UserError, ValueError):
    """A file is no safetensors file, or a damaged one; the message names it."""


def read_safetensors(path: Path, key: str) -> tuple[dict[str, Tensor], Any]:
    """Read all tensors, and the JSON that the metadata holds under ``key`` (None if nothing).

    Raises `TensorFileError` if there is no such file, or it is damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _described(file, path, key)  # noqa: SIM118


def read_description(path: Path, key: str) -> Any:
    """Read the JSON that the metadata holds under ``key``, and no tensors; see `read_safetensors`."""
    with _opened(path) as file:
        return _described(file, path, key)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        # By its descriptor, because safetensors takes no names that are not UTF-8.
        with open(path, "rb") as opened, safe_open(f"/dev/fd/{opened.fileno()}", "pt") as file:
            yield file
    except UserError:
        raise
    except FileNotFoundError:
        raise TensorFileError(f"{path}: there is no such file.") from None
    except Exception as error:  # SafetensorError, and what torch raises about types that it does not know
        raise TensorFileError(f"{path}: this is no safetensors file, or a damaged one ({error}).") from error


def _described(file: Any, path: Path, key: str) -> Any:
    return parse_json((file.metadata() or {}).get(key, "null"), f"{path}, {key}")


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, of any device and layout, to a safetensors file that replaces ``path`` in one step.

    Raises `WriteError` if the disk is full, or for another fault of it; the message names the file.
    """
    separate, seen = {}, set()  # safetensors refuses tensors that share memory
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if storage in seen else value
        seen.add(storage)
    with replaced(Path(path), size=sum(value.nbytes for value in separate.values())) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors would leave a file that nobody else may read
        save_file(separate, partial, metadata=metadata)
        partial.chmod(mode)
