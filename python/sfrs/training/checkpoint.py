"""Checkpoints: tensors and facts in one safetensors file, replaced in one step.

Nothing is pickled. Facts are JSON in the file's metadata.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sfrs.runtime.errors import UserError
from sfrs.runtime.tensor_files import write_tensors

KEY = "sfrs_checkpoint"
FORMAT = 2


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read or does not fit; the message names the file."""


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write ``tensors`` and ``facts`` (JSON values) to ``path``, replacing it in one step."""
    write_tensors(path, tensors, {KEY: json.dumps({"format": FORMAT, **facts})})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of `save_checkpoint`. Raises `CheckpointError` naming the file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no checkpoint to resume from")
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: this is not a checkpoint or it is damaged ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CheckpointError(f"{path}: this is not a checkpoint of format {FORMAT}")
    return tensors, facts


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names lengthened to ``prefix.name``."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def of_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors `with_prefix` named, under their own names."""
    start = prefix + "."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def momentum_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """SGD's momentum buffers by the number of their parameter; parameters without one are left out."""
    buffers = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            buffers[str(number)] = buffer
    return buffers


def load_momentum(optimizer: torch.optim.Optimizer, buffers: dict[str, Tensor]) -> None:
    """The inverse of `momentum_state`, on an optimiser of the same parameters."""
    parameters = _parameters(optimizer)
    for number, buffer in buffers.items():
        parameter = parameters[int(number)]
        optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device).clone()


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
