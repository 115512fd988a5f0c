"""Drives CMake. The package is described in pyproject.toml, the build in CMakeLists.txt."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds with CMake and ninja; setuptools copies the result where it belongs."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / sys.implementation.cache_tag
        options = [
            f"-DPYTHON={sys.executable}",
            f"-DOUTPUT_DIR={target}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        quiet = {"stdout": subprocess.DEVNULL} if self.distribution.verbose < 1 else {}
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options], check=True, **quiet)
        subprocess.run(["cmake", "--build", build], check=True)


setup(ext_modules=[Extension("sfrs_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
