"""What is started in the source folder finds operators that run, or hears what to type."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "sfrs_ext" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"

HUB = "import torch; torch.hub.load('.', 'vgg16_netvlad', source='local', clusters=2)"
PLACES = "from sfrs_ext import _C; import sfrs.cli; print(_C.__file__); print(sfrs.cli.__file__)"


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder that holds the packages as pip leaves them."""
    for package in ("sfrs_ext", "python/sfrs"):
        copy = tmp_path / "installed" / Path(package).name
        shutil.copytree(ROOT / package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "installed"


def python(folder: Path, *arguments: str | Path, path: Path | str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("command", [("-c", "import sfrs_ext"), ("-m", "sfrs_ext"), ("-c", HUB)])
def test_where_nothing_is_built_for_this_python_it_says_what_to_type(command, checkout):
    shutil.copy(BUILT, checkout / "sfrs_ext/_C.cpython-39-x86_64-linux-gnu.so")  # for another
    done = python(checkout, *command)
    assert done.returncode and "circular" not in done.stderr
    assert f"sfrs_ext: nothing is compiled in {checkout}/sfrs_ext for this Python" in done.stderr
    assert "type `pip install --no-build-isolation .`" in done.stderr


def test_where_nothing_is_built_the_same_package_installed_is_used(checkout, installed):
    done = python(checkout, "-c", f"{HUB}; {PLACES}", path=installed)
    assert done.returncode == 0, done.stderr
    compiled, command = (Path(line) for line in done.stdout.splitlines())
    assert compiled.parent == installed / "sfrs_ext" and command.parent == installed / "sfrs"


def test_where_nothing_is_built_the_commands_of_the_installed_package_work(checkout, installed):
    done = python(checkout, "-m", "sfrs_ext", path=installed)
    assert done.returncode == 0 and f" in {installed}/sfrs_ext\n" in done.stdout
    for command in (["-m", "sfrs"], [Path(sysconfig.get_path("scripts"), "sfrs")]):
        assert "Usage: " in python(checkout, *command, "--help", path=installed).stdout


def test_where_nothing_is_built_another_state_installed_is_not_mixed_in(checkout, installed):
    with (installed / "sfrs_ext/nn.py").open("a") as file:
        file.write("# newer\n")
    done = python(checkout, "-c", "import sfrs_ext", path=installed)
    assert done.returncode and f"{installed}/sfrs_ext was installed from other sources" in done.stderr


def test_what_is_built_is_used_as_a_whole_beside_an_installed_package(checkout, installed):
    shutil.copy(BUILT, checkout / "sfrs_ext")
    done = python(checkout, "-c", f"{HUB}; {PLACES}", path=installed)
    assert done.returncode == 0, done.stderr
    compiled, command = (Path(line) for line in done.stdout.splitlines())
    assert compiled.parent == checkout / "sfrs_ext" and command.parent == checkout / "python/sfrs"


def test_the_command_without_its_extra_says_how_to_install_it(tmp_path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('not here', name='typer')")
    done = python(ROOT, "-m", "sfrs", path=f"{tmp_path}:{ROOT / 'python'}")
    assert done.returncode and done.stderr.count("\n") == 1
    assert "sfrs needs typer" in done.stderr
    assert '`pip install --no-build-isolation ".[train]"`' in done.stderr
