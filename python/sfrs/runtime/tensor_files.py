"""Write safetensors files: whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from sfrs.runtime.atomic_io import replaced


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, of any device and layout, to a safetensors file that replaces ``path`` in one step.

    Raises:
        WriteError: the disk is full, or another fault of it; the message names the file.
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
