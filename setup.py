"""Drives CMake. The package is described in pyproject.toml, the build in CMakeLists.txt.

``SFRS_CUDA`` and ``SFRS_CUDA_ARCHS`` in the environment choose the GPU library: csrc/cuda/CMakeLists.txt.
"""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEEDED = {"torch": "2.11", "setuptools": "77", "cmake": "3.22", "ninja": "1.5"}

# Programs of this interpreter's environment come first, whether it is activated or not.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def version(name: str) -> str:
    """Version of a Python package, or of the program cmake or ninja; empty if there is none that works."""
    try:
        if name not in ("cmake", "ninja"):
            return importlib.metadata.version(name)
        done = subprocess.run([name, "--version"], capture_output=True, text=True)
        return re.search(r"\d[\d.]*|$", done.stdout)[0]
    except (OSError, importlib.metadata.PackageNotFoundError):
        return ""


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def lacks(name: str) -> bool:
    return numbers(version(name)) < numbers(NEEDED[name])


def refuse_without(*names: str) -> None:
    """Leave with one line if one of these is missing or too old: pip and CMake would print a hundred."""
    if any(map(lacks, names)):
        needs = ", ".join(f"{name}>={least}" for name, least in NEEDED.items())
        here = {name: version(name) for name in NEEDED if lacks(name)}
        sees = " and ".join(f"{name} {found}" if found else f"no {name}" for name, found in here.items())
        sys.exit(
            f"sfrs_ext: type `pip install --no-build-isolation .`; it needs {needs}; this build sees {sees}"
        )


refuse_without("setuptools")

from setuptools import Extension, build_meta, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402


class CMakeBuild(build_ext):
    """Configures and builds with CMake and ninja; setuptools copies the results where they belong.

    The GPU library is left out where CMake has not built it.
    """

    def build_extensions(self) -> None:
        target = Path(self.get_ext_fullpath("sfrs_ext._C")).resolve().parent
        build = ROOT / "build" / sys.implementation.cache_tag
        # CMake would go on with the programs and options that it found once, there or not. Without its notes
        # it looks again; objects stay, and ninja compiles those again whose command has changed.
        for notes in [build / "CMakeCache.txt", *build.glob("CMakeFiles/*/CMake*Compiler.cmake")]:
            notes.unlink(missing_ok=True)
        options = [f"-DPYTHON={sys.executable}", f"-DOUTPUT_DIR={target}"]
        options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        quiet = {"stdout": subprocess.DEVNULL} if self.distribution.verbose < 1 else {}
        for command, silent in [
            (["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options], quiet),
            (["cmake", "--build", build], {}),
        ]:
            if subprocess.run(command, **silent).returncode:
                sys.exit("sfrs_ext: not built; what CMake or the compiler says stands above")

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:  # a GPU library of an earlier build would not fit the new _C
            (ROOT / self.get_ext_filename(extension.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()


def __getattr__(name: str):
    """The functions that pip calls: setuptools' own. A source distribution is made without torch."""
    hook = getattr(build_meta, name)
    if name.endswith(("_wheel", "_editable")):
        refuse_without(*NEEDED)  # now: a step later pip has loaded gigabytes of another torch
    return hook


if __name__ == "__main__":
    if {"bdist_wheel", "build", "build_ext", "editable_wheel", "install"} & set(sys.argv):
        refuse_without(*NEEDED)
    if "bdist_wheel" in sys.argv:
        for folder in ROOT.glob("build/lib*"):  # setuptools packs all in it, also what an earlier state left
            shutil.rmtree(folder)
    setup(
        ext_modules=[
            Extension("sfrs_ext._C", sources=[]),
            Extension("sfrs_ext._C_cuda", sources=[], optional=True),
        ],
        cmdclass={"build_ext": CMakeBuild},
    )
