"""Folders of their own for tests of what people do with the sources."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tracked_files() -> list[str]:
    """Names of the files that are in git, or will be."""
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("these sources do not come from git")
    return [name for name in listed.stdout.split() if (ROOT / name).is_file()]


@pytest.fixture
def checkout(tmp_path, tracked_files) -> Path:
    """The sources as git gives them."""
    for name in tracked_files:
        copy = tmp_path / "checkout" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    return tmp_path / "checkout"
