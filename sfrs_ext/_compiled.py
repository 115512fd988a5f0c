"""Finds the compiled modules: a source folder in which nothing is built hides no installed package."""

import sys
from collections.abc import MutableSequence
from importlib.machinery import PathFinder
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _sources(package: Path) -> dict[Path, bytes]:
    return {path.relative_to(package): path.read_bytes() for path in package.rglob("*.py")}


def find(path: MutableSequence[str]) -> None:
    """Let ``path``, the package's ``__path__``, lead to compiled modules.

    Python finds the package of a source folder first in all that is started there. Where nothing is built, an
    installed package takes its place if both have the same sources: a mixture never runs.

    Raises:
        ImportError: nothing is compiled for this Python, or only from other sources.
    """
    if PathFinder.find_spec("sfrs_ext._C", [*path]):
        return
    folders = (Path(entry, "sfrs_ext").resolve() for entry in sys.path)
    installed = next((at for at in folders if PathFinder.find_spec("sfrs_ext._C", [str(at)])), None)
    if installed and _sources(installed) == _sources(HERE):
        path[:] = [str(installed)]
        return
    others = f", and {installed} was installed from other sources" if installed else ""
    raise ImportError(
        f"sfrs_ext: nothing is compiled in {HERE} for this Python, {sys.executable}{others}. In the source "
        "folder type `pip install --no-build-isolation .` or, for an environment of its own, `make build`."
    )


find(sys.modules["sfrs_ext"].__path__)
