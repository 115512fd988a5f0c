"""Files of tensors are whole, and as readable as other files."""

import os

import pytest
import torch
from safetensors.torch import load_file

from sfrs.runtime.tensor_files import write_tensors


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_is_readable_by_whom_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "new/x.safetensors", {"x": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "new/x.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_views_are_written_as_they_read(tmp_path):
    x = torch.arange(6.0).view(2, 3)
    views = {"x": x.T, "row": x[1], "whole": x, "rows": x[:1]}
    write_tensors(tmp_path / "x.safetensors", views)
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], view) for name, view in views.items())


def test_a_failed_write_leaves_the_previous_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(2)})
    with pytest.raises(TypeError):
        write_tensors(path, {"x": torch.zeros(2)}, metadata={"number": 1})
    assert load_file(path)["x"].tolist() == [1, 1]
