"""Drives CMake. The package is described in pyproject.toml, the build in CMakeLists.txt.

``SFRS_CUDA`` and ``SFRS_CUDA_ARCHS`` in the environment choose the GPU library: csrc/cuda/CMakeLists.txt.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds with CMake and ninja; setuptools copies the results where they belong.

    The GPU library is left out where CMake has not built it.
    """

    def build_extensions(self) -> None:
        target = Path(self.get_ext_fullpath("sfrs_ext._C")).resolve().parent
        build = ROOT / "build" / sys.implementation.cache_tag
        options = [
            f"-DPYTHON={sys.executable}",
            f"-DOUTPUT_DIR={target}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        quiet = {"stdout": subprocess.DEVNULL} if self.distribution.verbose < 1 else {}
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options], check=True, **quiet)
        subprocess.run(["cmake", "--build", build], check=True)
        skipped = [ext for ext in self.extensions if not os.path.exists(self.get_ext_fullpath(ext.name))]
        self.extensions = [ext for ext in self.extensions if ext not in skipped]
        # A library left in place by an earlier build would not fit the new _C.
        for ext in skipped:
            (ROOT / self.get_ext_filename(self.get_ext_fullname(ext.name))).unlink(missing_ok=True)


setup(
    ext_modules=[Extension("sfrs_ext._C", sources=[]), Extension("sfrs_ext._C_cuda", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
