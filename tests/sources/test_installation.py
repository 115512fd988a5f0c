"""What people type to install this, and what they meet, in environments of their own.

Nothing is compiled: all programs are real but ninja, which leaves an empty module where one is to be built.
"""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
SETUPTOOLS = setuptools.__version__
INSTALLED = Path(setuptools.__file__).parents[1]
BUILT = ROOT / "sfrs_ext" / f"_C{SUFFIX}"

NINJA = f"""#!/bin/sh
case "$PWD $* " in
  */CMakeScratch/*|*" -t "*|*" --version "*) exec {shutil.which("ninja")} "$@" ;;
esac
modules=$(sed -n 's/^OUTPUT_DIR:PATH=//p' CMakeCache.txt)
mkdir -p $modules && touch $modules/_C{SUFFIX}
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Environment:
    """A virtual environment with stand-ins for torch, cmake and ninja, and with this setuptools."""

    def __init__(self, folder: Path, torch="2.13.0", setuptools=SETUPTOOLS, cmake=True, ninja=True):
        venv.create(folder)
        self.programs = folder / "bin"
        self.site = next(folder.glob("lib/python*/site-packages"))
        self.variables = {"PATH": "/usr/bin:/bin", "SFRS_CUDA": "OFF"}
        if torch:
            self.add_metadata("torch", torch)
            (self.site / "torch.py").write_text(f"__version__ = {torch!r}")
        if setuptools:
            for name in ("setuptools", "_distutils_hack"):
                (self.site / name).symlink_to(INSTALLED / name)
        if setuptools == SETUPTOOLS:
            metadata = f"setuptools-{SETUPTOOLS}.dist-info"
            (self.site / metadata).symlink_to(INSTALLED / metadata)
        elif setuptools:
            self.add_metadata("setuptools", setuptools)
        if ninja:
            write_program(self.programs / "ninja", NINJA)
        if cmake is True:
            (self.programs / "cmake").symlink_to(shutil.which("cmake"))
        elif cmake:
            write_program(self.programs / "cmake", f"#!/bin/sh\necho cmake version {cmake}")

    def add_metadata(self, package: str, version: str) -> None:
        folder = self.site / f"{package}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")

    def run(self, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.programs / "python", *arguments],
            cwd=folder,
            env=self.variables | variables,
            capture_output=True,
            text=True,
        )

    def call(self, folder: Path, hook: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        """Do what pip and build do: ask the backend that pyproject.toml names."""
        program = f"import sys; sys.path.insert(0, '.'); import setup; setup.{hook}(*sys.argv[1:])"
        return self.run(folder, "-c", program, *arguments, **variables)

    def build(self, folder: Path, **variables: str) -> str:
        """Build in place, return CMake's cache."""
        done = self.run(folder, "setup.py", "--quiet", "build_ext", "--inplace", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (folder / "sfrs_ext" / BUILT.name).exists()
        return next(folder.glob("build/*/CMakeCache.txt")).read_text()


WITHOUT = [
    ({"torch": None}, "no torch"),
    ({"torch": "2.10.1"}, "torch 2.10.1"),
    ({"setuptools": "65.5.0"}, "setuptools 65.5.0"),
    ({"setuptools": None}, "no setuptools"),
    ({"cmake": "3.16.3"}, "cmake 3.16.3"),
    ({"cmake": None, "ninja": None}, "no cmake and no ninja"),
]


@pytest.mark.parametrize(("lack", "said"), WITHOUT, ids=[said for _, said in WITHOUT])
@pytest.mark.parametrize("step", ["get_requires_for_build_wheel", "prepare_metadata_for_build_wheel", "make"])
def test_what_a_build_lacks_is_said_in_one_line(lack, said, step, checkout, tmp_path):
    environment = Environment(tmp_path / "environment", **lack)
    path = {"PATH": str(write_program(tmp_path / "bin/sh", "").parent)}
    if step == "make":
        done = environment.run(checkout, "setup.py", "--quiet", "build_ext", "--inplace", **path)
    else:
        done = environment.call(checkout, step, **path)
    assert done.returncode and done.stdout == ""
    begin, needs, end = done.stderr.split("; ")
    assert (
        begin == "sfrs_ext: type `pip install --no-build-isolation .`" and end == f"this build sees {said}\n"
    )
    assert re.fullmatch("it needs torch>=.*, setuptools>=.*, cmake>=.*, ninja>=.*", needs)
    assert not (checkout / "build").exists()


def test_a_second_build_of_the_same_changes_nothing(checkout, tmp_path):
    environment = Environment(tmp_path / "environment")
    environment.build(checkout)
    folder = next(checkout.glob("build/*/build.ninja")).parent
    compiled = folder / "CMakeFiles/kernels_avx2.dir/kernels.cpp.o"
    compiled.touch()
    commands = (folder / "build.ninja").read_bytes()
    environment.build(checkout)
    assert compiled.exists() and (folder / "build.ninja").read_bytes() == commands


def test_pybind11_is_compiled_without_the_macro_that_it_refuses_in_torch_2_11(checkout, tmp_path):
    Environment(tmp_path / "environment").build(checkout)
    commands = json.loads(next(checkout.glob("build/*/compile_commands.json")).read_text())
    stable, bound = set(), set()
    for command in commands:
        file = Path(command["file"])
        if "TORCH_TARGET_VERSION=" in command["command"]:
            stable.add(file.name)
        if "<pybind11/" in file.read_text():
            bound.add(file.name)
    assert (stable, bound) == ({"ops.cpp"}, {"module.cpp"})


def test_a_build_does_not_believe_what_an_environment_that_is_gone_has_left(checkout, tmp_path):
    first, second = (Environment(tmp_path / name) for name in ("first", "second"))
    compiler = write_program(tmp_path / "compiler/c++", '#!/bin/sh\nexec c++ "$@"')
    cache = first.build(checkout, CXX=str(compiler), CMAKE_ARGS="-DSFRS_WIDE_KERNELS=ON")
    assert str(first.programs) in cache and "SFRS_WIDE_KERNELS:BOOL=ON" in cache
    shutil.rmtree(first.programs.parent)
    compiler.unlink()
    cache = second.build(checkout)
    assert str(second.programs) in cache and "SFRS_WIDE_KERNELS:BOOL=OFF" in cache
    assert str(first.programs) not in cache and str(compiler) not in cache


def test_a_folder_that_was_moved_builds(checkout, tmp_path):
    environment = Environment(tmp_path / "environment")
    environment.build(checkout)
    moved = checkout.rename(tmp_path / "moved")
    assert str(checkout) not in environment.build(moved)


def test_make_renews_an_environment_that_was_moved(checkout):
    programs = checkout / ".venv/bin"
    write_program(programs / "pip", f"#!{programs}/python")
    (programs / "python").symlink_to(sys.executable)
    (programs.parent / ".installed").touch()

    def plan(folder: Path) -> str:
        return subprocess.run(
            ["make", "-n", "build"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    assert "-m venv" not in plan(checkout)
    assert "-m venv --clear .venv" in plan(checkout.rename(checkout.parent / "moved"))


def test_a_wheel_holds_what_the_sources_hold_now(checkout, tmp_path):
    gone = checkout / "python/sfrs/gone.py"
    gone.touch()
    environment = Environment(tmp_path / "environment")
    for _ in range(2):
        done = environment.call(checkout, "build_wheel", str(tmp_path))
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
            packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        found = {
            str(path.relative_to(base))
            for base, package in ((checkout, "sfrs_ext"), (checkout / "python", "sfrs"))
            for path in (base / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert packed == found | {f"sfrs_ext/{BUILT.name}"}
        gone.unlink(missing_ok=True)


def test_a_source_distribution_holds_everything_and_needs_no_torch(checkout, tracked_files, tmp_path):
    environment = Environment(tmp_path / "environment", torch=None, cmake=None, ninja=None)
    done = environment.call(checkout, "build_sdist", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    sources = next((tmp_path / "unpacked").iterdir())
    assert [name for name in tracked_files if not (sources / name).exists()] == []
    Environment(tmp_path / "another").build(sources)


PRETENDED = {
    "GNU 10": "-U__GNUC__ -D__GNUC__=10",
    "Clang 13": "-D__clang__ -D__clang_major__=13 -D__clang_minor__=0 -D__clang_patchlevel__=1",
}


@pytest.mark.parametrize("name", PRETENDED)
def test_a_compiler_that_is_too_old_is_refused_in_a_sentence(name, checkout, tmp_path):
    compiler = write_program(tmp_path / "c++", f'#!/bin/sh\nexec c++ {PRETENDED[name]} "$@"')
    environment = Environment(tmp_path / "environment")
    done = environment.run(checkout, "setup.py", "--quiet", "build_ext", CXX=str(compiler))
    assert done.returncode and "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert "sfrs_ext needs GCC 11, clang 14 or newer" in said and f"CXX is {name}." in said
    assert done.stderr.splitlines()[-1].startswith("sfrs_ext: not built; ")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SFRS_CUDA", "1", 'SFRS_CUDA is "1", but must be AUTO, ON or OFF.'),
        (
            "SFRS_CUDA_ARCHS",
            "70,90",
            'SFRS_CUDA_ARCHS is "70,90", but must be all, or GPU architectures from 80',
        ),
        ("SFRS_CUDA_ARCHS", "ampere", 'SFRS_CUDA_ARCHS is "ampere", but must be all'),
    ],
)
def test_a_wrong_choice_of_gpus_is_named(variable, value, said, checkout, tmp_path):
    environment = Environment(tmp_path / "environment")
    done = environment.run(checkout, "setup.py", "--quiet", "build_ext", **{variable: value})
    assert done.returncode and f"sfrs_ext: {said}" in " ".join(done.stderr.split())


def test_modules_tell_nothing_of_the_place_where_they_were_compiled():
    read = subprocess.run(["readelf", "-d", BUILT], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"R(?:UN)?PATH.*\[(.*)\]", read) == ["$ORIGIN/../torch/lib"]
    code = BUILT.read_bytes()
    assert b"csrc/ops.cpp" in code  # what messages name
    for place in (ROOT, Path(torch.__file__).resolve().parents[1], Path(sysconfig.get_path("include"))):
        assert bytes(place) not in code


LANES = """
#include <cstdio>
#include "csrc/cpu/shufflevector.h"
typedef float F8 __attribute__((vector_size(32)));
typedef unsigned short S16 __attribute__((vector_size(32)));
typedef double D2 __attribute__((vector_size(16)));
int main() {
  F8 a = {0, 1, 2, 3, 4, 5, 6, 7}, b = a + 8, whole = sfrs::cpu::shufflevector<15, 0, 8, 7, 1, 2, 3, 9>(a, b);
  for (int i = 0; i < 8; ++i) printf("%g ", whole[i]);
  auto half = sfrs::cpu::shufflevector<4, 9, 6, 15>(a, b);
  for (unsigned i = 0; i < sizeof(half) / sizeof(half[0]); ++i) printf("%g ", half[i]);
  D2 x = {1, 2}, y = sfrs::cpu::shufflevector<3, 0>(x, -x);
  printf("%g %g\\n", y[0], y[1]);
}
"""


def test_shuffles_for_gcc_11_put_lanes_where_the_builtin_does(tmp_path):
    if "clang" in subprocess.run(["c++", "--version"], capture_output=True, text=True).stdout:
        pytest.skip("clang has the builtin")
    program = tmp_path / "lanes"
    compiler = ["c++", "-std=c++17", "-Wno-psabi", "-I", ROOT, "-x", "c++", "-", "-o", program]
    subprocess.run(compiler, input=LANES, text=True, check=True)
    found = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert found.split() == [*"15 0 8 7 1 2 3 9 4 9 6 15 -2 1".split()]
