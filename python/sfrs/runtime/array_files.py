"""Read MATLAB and HDF5 files in a child process: one flipped byte can kill the C code that reads them."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sfrs.runtime.errors import UserError

HDF5 = (".h5", ".hdf5")
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from sfrs.runtime.array_files import convert; convert(*sys.argv[2:])"
)


class ArrayFileError(UserError, ValueError):
    """A file cannot be read; the message names it."""


def read_arrays(path: str | Path, *variables: str) -> dict[str, Any]:
    """Read a ``.mat`` file up to version 7, by default all its variables, or an HDF5 file; nothing in it can
    run.

    Structs and groups come as dicts, cells and arrays of structs as lists, texts as ``str``, numbers as
    arrays in the shape they are stored in; None for objects of MATLAB classes. Raises `ArrayFileError` if it
    is no such file or a damaged one, or h5py is not installed.
    """
    path = Path(path)
    kind = "HDF5" if path.suffix in HDF5 else "MATLAB"
    if kind == "HDF5" and find_spec("h5py") is None:
        raise ArrayFileError(f'{path}: reading HDF5 needs h5py: pip install "sfrs-ext[hdf5]".')
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "arrays.npz")
        if why := run_child(str(path), str(out), *variables):
            raise ArrayFileError(f"{path}: this {kind} file cannot be read ({why}).")
        with np.load(out, allow_pickle=False) as arrays:
            return _joined(json.loads(arrays["tree"].item()), arrays)


def run_child(*arguments: str) -> str:
    """Run `convert` in a process of its own; return why it failed, "" if it did not."""
    paths = [str(Path(__file__).resolve().parents[2]), *sys.path]  # an editable package is found by its .pth
    command = [sys.executable, "-S", "-c", CHILD, json.dumps(paths), *arguments]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if child.returncode < 0:
        return f"damaged, it kills its reader with signal {-child.returncode}"
    return child.stderr.strip().splitlines()[-1] if child.returncode else ""


def convert(path: str, out: str, *variables: str) -> None:
    """Write a file as ``.npz``: its arrays, and in JSON a tree whose leaves are texts and arrays' numbers."""
    try:
        arrays: list[np.ndarray] = []
        tree = _plain(_hdf5(path) if path.endswith(HDF5) else _matlab(path, variables), arrays)
    except Exception as error:  # what the readers raise depends on where the file is damaged
        sys.exit(str(error) or type(error).__name__)
    numbered: dict[str, Any] = {str(number): array for number, array in enumerate(arrays)}
    np.savez(out, tree=json.dumps(tree), **numbered)


def _matlab(path: str, variables: tuple[str, ...]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        return loadmat(path, struct_as_record=False, variable_names=variables or None)
    except NotImplementedError:
        sys.exit("it is of version 7.3, MATLAB's save with -v7.3; save it in MATLAB with -v7")


def _hdf5(path: str) -> dict[str, Any]:
    import h5py

    def content(group: Any) -> dict[str, Any]:
        return {k: content(v) if isinstance(v, h5py.Group) else v[...] for k, v in group.items()}

    with h5py.File(path, "r") as file:
        return content(file)


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    if hasattr(value, "_fieldnames"):
        return {name: _plain(getattr(value, name), arrays) for name in value._fieldnames}
    if isinstance(value, dict):
        return {name: _plain(v, arrays) for name, v in value.items() if not name.startswith("__")}
    if type(value) is not np.ndarray:  # objects of MATLAB classes come as classes of their own
        return None
    if value.dtype == object:
        items = [_plain(item, arrays) for item in value.flat]
        is_struct = value.size == 1 and hasattr(value.item(), "_fieldnames")
        return items[0] if is_struct else items
    if value.dtype.kind in "US":
        texts = [str(text) for text in value.flat]
        return texts if len(texts) > 1 else "".join(texts)
    arrays.append(value)
    return len(arrays) - 1


def _joined(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(tree, int):
        return arrays[str(tree)]
    if isinstance(tree, list):
        return [_joined(item, arrays) for item in tree]
    return {name: _joined(v, arrays) for name, v in tree.items()} if isinstance(tree, dict) else tree
