"""``make gpu``, as far as it goes without a GPU: it fails for want of one only, and failures hide nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def gpu(*arguments: str, python: str | Path = sys.executable) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["tests/cuda/gpu.sh", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line():
    done = gpu()
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1 and done.stdout.startswith("no CUDA device: ")


def test_everything_that_needs_no_gpu_works():
    done = gpu("--rehearse")
    assert done.returncode == 0, done.stdout
    assert "tests collected" in done.stdout


def test_a_part_that_fails_hides_no_other(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *pytest*) echo broken; exit 3 ;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = gpu("--rehearse", python=python)
    assert done.returncode == 1
    summary = done.stdout.split("summary")[1].splitlines()[1:]
    fates = {line.split()[1]: line for line in summary}
    assert fates["tests"].startswith("FAIL") and fates["tests"].endswith("exit 3: broken")
    assert fates["calls"].startswith("ok") and fates["facts"].startswith("ok")
