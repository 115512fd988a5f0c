"""``python -m sfrs_ext``: what this build is and what it runs on."""

import platform
from pathlib import Path

import torch

from . import _C, __version__, _cuda, available_kernels, kernels


def main() -> None:
    facts = {
        "sfrs_ext": f"{__version__} in {Path(_C.__file__).parent}",
        "torch": f"{torch.__version__} (built against {_C.torch_version()}, runs with 2.11 and newer)",
        "CPU kernels": f"{kernels()} of {', '.join(available_kernels())} on {platform.machine()}",
        "threads": torch.get_num_threads(),
        "CUDA": _cuda.facts(),
    }
    for name, value in facts.items():
        print(f"{name:12} {value}")


if __name__ == "__main__":
    main()
