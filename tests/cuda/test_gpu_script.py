"""``make gpu``, as far as it goes without a GPU: it fails for want of one only, and failures hide nothing."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import package
import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def gpu(*arguments: str, python: str | Path = sys.executable, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["tests/cuda/gpu.sh", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHON": str(python)} | more,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line():
    done = gpu()
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1 and done.stdout.startswith("no CUDA device: ")


def test_stages_have_names():
    done = gpu("glance")
    assert done.returncode == 2 and "the stages are look and full, not glance" in done.stdout


def test_a_rehearsal_is_carried_off_in_one_file_and_a_part_that_fails_hides_no_other(tmp_path):
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *pytest*) echo broken; exit 3 ;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    out.mkdir()
    done = gpu("--rehearse", python=python, SFRS_GPU_OUT=str(out), SFRS_COMMIT="0123abc")
    assert done.returncode == 1, done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["sfrs-gpu.tar.gz", "summary.txt"]
    fates = {line.split()[1]: line for line in (out / "summary.txt").read_text().splitlines()}
    assert fates.pop("tests").endswith("exit 3: broken")
    assert {"facts", "calls", "bare"} <= fates.keys()
    assert not [line for line in fates.values() if line.startswith("FAIL")], done.stdout
    with tarfile.open(out / "sfrs-gpu.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
        assert {"facts.log", "bare.log", "bare.json", "summary.txt"} <= names
        recorded = json.load(archive.extractfile("build/rehearsal/bare.json"))
    assert recorded["machine"]["commit"] == "0123abc"


def test_the_stages_run_all_their_parts_one_after_the_other(tmp_path):
    python, packed, out = (tmp_path / name for name in ("python", "package", "out"))
    answer = 'case "$*" in *get_device_capability*) echo "9;0;NVIDIA H200" ;; *) echo fine ;; esac'
    packed.mkdir(), out.mkdir()
    (packed / "about.json").write_text('{\n "commit": "0123abc"\n}\n')
    for script in (python, packed / "primitives"):
        script.write_text(f"#!/bin/sh\n{answer}\n")
        script.chmod(0o755)
    done = gpu("look", "full", python=python, SFRS_GPU_PACKAGE=str(packed), SFRS_GPU_OUT=str(out))
    assert done.stdout.startswith("NVIDIA H200, compute capability 9.0\n")
    fates = {line.split()[1]: line.split()[0] for line in (out / "summary.txt").read_text().splitlines()}
    looks = {f"look-{part}" for part in ("library", "here", "facts", "primitives", "tests", "benchmarks")}
    fulls = {f"full-{part}" for part in ("library", "tests", "benchmarks")}
    assert all(fates[part] == "ok" for part in looks | fulls), done.stdout
    for tool, parts in (("compute-sanitizer", {"full-sanitizer"}), ("ncu", {"full-profile"})):
        assert parts <= fates.keys() or shutil.which(tool)
    with tarfile.open(out / "sfrs-gpu.tar.gz") as archive:
        assert {f"build/gpu/{part}.log" for part in looks | fulls} <= set(archive.getnames())
    assert done.returncode == 0 or "FAIL" in done.stdout


@pytest.mark.parametrize("package", ("faiss", "typer", "sfrs", "scipy"))
def test_the_bare_interpreter_has_torch_and_numpy_alone(package):
    path = {"PYTHONPATH": f"{ROOT / 'tests' / 'cuda' / 'bare'}:{ROOT}"}
    for name, expected in (("torch, numpy, sfrs_ext, benchmarks.gpu.cases", 0), (package, 1)):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            env=os.environ | path,
            capture_output=True,
        )
        assert done.returncode == expected, done.stderr[-2000:]


LOSES_ITS_CONTEXT = """
import os, pytest
def test_that_loses_the_context():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
@pytest.mark.parametrize("n", range(6))
def test_of_others(n):
    open(f"{os.environ['FOLDER']}/{os.getpid()}-{n}", "w")
"""


def test_a_lost_cuda_context_costs_its_process(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "ops" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(LOSES_ITS_CONTEXT)
    (tmp_path / "found").mkdir()
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "--max-worker-restart", "3", tmp_path]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"--rootdir={tmp_path}"],
        env=os.environ | {"FOLDER": str(tmp_path / "found"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "6 passed" in done.stdout and "illegal memory access" in done.stdout, done.stdout
    assert len(list((tmp_path / "found").iterdir())) == 6


def test_a_package_is_used_only_where_it_fits(tmp_path):
    fits = {
        "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
        "architectures": "80,90",
        "sources": package.digest(),
    }
    assert package.misfit(fits) is None
    assert "this Python takes" in package.misfit(fits | {"suffix": ".cpython-27.so"})
    assert "other sources" in package.misfit(fits | {"sources": "0"})
    (tmp_path / "about.json").write_text(json.dumps(fits | {"sources": "0"}))
    done = subprocess.run(
        [sys.executable, "tests/cuda/package.py", "use", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "does not fit: it was made of other sources" in done.stderr


def test_a_package_for_another_gpu_is_not_used(monkeypatch):
    monkeypatch.setenv("SFRS_CUDA_ARCHS", "100")
    about = {"suffix": sysconfig.get_config_var("EXT_SUFFIX"), "architectures": "90", "sources": "0"}
    assert package.misfit(about) == "it is for sm_90, this GPU is sm_100"
