"""The compiled libraries for another machine, one with a GPU but without time or tools to compile there.

    python tests/cuda/package.py make FOLDER [--python PYTHON] [--architectures 90] [--torch WHEEL]
    python tests/cuda/package.py use FOLDER

``make`` compiles sfrs_ext for another Python, of which only the headers are needed, against the headers of
this torch or of a wheel of any other: the stable ABI makes one library of all from 2.11. ``use`` puts the
libraries in their place if they are for this Python, this GPU and these sources, and if they load.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRIMITIVES = ROOT / "csrc" / "testing" / "primitives.cu"


def digest() -> str:
    """Of the sources that the libraries are made of."""
    files = sorted(f for f in (ROOT / "csrc").rglob("*") if f.is_file() and "testing" not in f.parts)
    found = hashlib.sha256()
    for file in (*files, ROOT / "CMakeLists.txt", PRIMITIVES):
        found.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def headers(folder: Path, wheel: Path | None) -> str:
    """Lay out what CMake asks a torch for: headers, libraries to link with, a version, which it returns."""
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    package, here = folder / "torch", Path(torch.__file__).parent
    package.mkdir(parents=True)
    (package / "lib").symlink_to(here / "lib")
    version = torch.__version__
    if wheel:
        with zipfile.ZipFile(wheel) as files:
            names = [n for n in files.namelist() if n.startswith("torch/include/")]
            files.extractall(folder, names)
            lines = files.read("torch/version.py").decode().splitlines()
        version = next(line.split("'")[1] for line in lines if line.startswith("__version__"))
    else:
        (package / "include").symlink_to(here / "include")
    (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    return version


def make(folder: Path, python: str, architectures: str, wheel: Path | None) -> None:
    from benchmarks.record import commit

    build, sources = folder.with_name(folder.name + "-build"), digest()
    version = headers(build / "headers", wheel)
    environment = os.environ | {
        "PYTHONPATH": str(build / "headers"), "SFRS_CUDA": "ON", "SFRS_CUDA_ARCHS": architectures
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.so"):
        old.unlink()
    options = [f"-DPYTHON={shutil.which(python) or python}", f"-DOUTPUT_DIR={folder.resolve()}"]
    options += ["-DSFRS_CUDA_OPTIONS=-lineinfo"]
    subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options], check=True, env=environment)
    subprocess.run(["cmake", "--build", build], check=True, env=environment)
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    lowest = architectures.replace(",", " ").split()[0]
    subprocess.run(
        [nvcc, "-std=c++17", f"-arch=sm_{lowest}", "-o", folder / "primitives", PRIMITIVES], check=True
    )
    suffix = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    about = {"suffix": suffix, "architectures": architectures, "torch": version, "sources": sources}
    (folder / "about.json").write_text(json.dumps(about | {"commit": commit()}, indent=1) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {size / 1e6:.0f} MB for {suffix} and sm_{architectures}")


def misfit(about: dict) -> str | None:
    """Why the libraries are not for this machine."""
    suffix, wanted = sysconfig.get_config_var("EXT_SUFFIX"), os.environ.get("SFRS_CUDA_ARCHS")
    if about["suffix"] != suffix:
        return f"it is for {about['suffix']}, this Python takes {suffix}"
    if wanted and wanted not in about["architectures"].replace(",", " ").split():
        return f"it is for sm_{about['architectures']}, this GPU is sm_{wanted}"
    if about["sources"] != digest():
        return "it was made of other sources"
    return None


def use(folder: Path) -> None:
    why = misfit(json.loads((folder / "about.json").read_text()))
    if not why:
        libraries = [Path(shutil.copy(f, ROOT / "sfrs_ext")) for f in folder.glob("*.so")]
        load = "import sfrs_ext, sfrs_ext._cuda as c; raise SystemExit(c.missing)"
        done = subprocess.run([sys.executable, "-c", load], cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            print(f"using {folder}")
            return
        why = (done.stderr.strip().splitlines() or ["it does not load"])[-1]
        for library in libraries:
            library.unlink()
    raise SystemExit(f"{folder} does not fit: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "use"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="python3.12", help="whose headers are compiled against")
    parser.add_argument("--architectures", default="90", help="of GPUs, for example 90 or 80,90")
    parser.add_argument("--torch", type=Path, help="wheel whose headers are used instead of this torch's")
    arguments = parser.parse_args()
    if arguments.what == "use":
        use(arguments.folder)
    else:
        make(arguments.folder, arguments.python, arguments.architectures, arguments.torch)


if __name__ == "__main__":
    main()
