"""Writing safetensors files: whole or not at all, readable by whom the process's umask says."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from sfrs.runtime.atomic_io import replaced


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, of any device and layout, to a safetensors file that replaces ``path`` in one step.

    The file has reached the disk before it takes the place of the previous one, so that there is always a
    good one. Folders are made as needed.

    Raises:
        WriteError: the disk is full, or another fault of it; the message names the file.
    """
    whole = _apart(tensors)
    size = sum(value.nbytes for value in whole.values())
    with replaced(Path(path), size=size) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors would leave a file that nobody else may read
        save_file(whole, partial, metadata=metadata)
        partial.chmod(mode)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` in the host's memory; safetensors refuses those that share it."""
    apart, seen = {}, set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return apart
