"""Checkpoints: networks, momentum, miner and the epoch in progress in one safetensors file.

The file is replaced in one step. Nothing is pickled. Facts are JSON in the file's metadata.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.errors import UserError
from sfrs.runtime.tensor_files import write_tensors
from sfrs.training.epoch import EpochState
from sfrs.training.mining import Tuples
from sfrs.training.step import StudentTeacher

KEY = "sfrs_checkpoint"
FORMAT = 2


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read or does not fit; the message names the file."""


def save_state(path: Path, pair: StudentTeacher, state: EpochState | None, facts: dict[str, Any]) -> None:
    """Write a checkpoint of a generation, within an epoch or (``state`` None) between two.

    The teacher is not in it: it is the best network of the generation before, which has its own file.
    """
    groups = {
        "student": trained_state(pair.student),
        "momentum": momentum_state(pair.optimizer),
        "miner": pair.miner.state(),
        "random": {"torch": torch.get_rng_state()},
    }
    if state is not None:
        groups["epoch"] = {"queries": state.queries, "sums": state.sums}
        groups["tuples"] = {} if state.mined is None else vars(state.mined)
        facts = {**facts, "done": state.done}
    tensors = {f"{group}.{name}": value for group, held in groups.items() for name, value in held.items()}
    save_checkpoint(path, tensors, facts)


def load_state(pair: StudentTeacher, tensors: dict[str, Tensor], facts: dict[str, Any]) -> EpochState | None:
    """Put a checkpoint's tensors into ``pair``; return the epoch that was in progress, if there was one.

    Raises:
        CheckpointError: the tensors are of other networks.
    """
    groups: dict[str, dict[str, Tensor]] = {"momentum": {}, "tuples": {}}
    for name, value in tensors.items():
        group, _, own = name.partition(".")
        groups.setdefault(group, {})[own] = value
    load_trained(pair.student, groups["student"])
    load_momentum(pair.optimizer, groups["momentum"])
    pair.miner.load_state(groups["miner"])
    torch.set_rng_state(groups["random"]["torch"])
    if "done" not in facts:
        return None
    mined = Tuples(**groups["tuples"]) if groups["tuples"] else None
    return EpochState(groups["epoch"]["queries"], facts["done"], mined, groups["epoch"]["sums"])


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write ``tensors`` and ``facts`` (JSON values) to ``path``, replacing it in one step."""
    write_tensors(path, tensors, {KEY: json.dumps({"format": FORMAT, **facts})})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts of `save_checkpoint`. Raises `CheckpointError` naming the file."""
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


def trained_state(network: DescriptorNetwork) -> dict[str, Tensor]:
    """Return the network's state without that of the trunk, which is frozen and in the initial network."""
    return {
        name: value for name, value in network.state_dict().items() if not name.startswith("backbone.trunk.")
    }


def load_trained(network: DescriptorNetwork, state: dict[str, Tensor]) -> None:
    """Invert `trained_state`. Raises `CheckpointError` for another network's."""
    own = trained_state(network)
    if own.keys() != state.keys():
        raise CheckpointError(
            f"the checkpoint's networks have other parameters: {sorted(own.keys() ^ state.keys())}"
        )
    network.load_state_dict(state, strict=False)


def momentum_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return SGD's momentum buffers by the number of their parameter; there are none before a step."""
    states = optimizer.state_dict()["state"]
    return {str(number): state["momentum_buffer"] for number, state in states.items()}


def load_momentum(optimizer: torch.optim.Optimizer, buffers: dict[str, Tensor]) -> None:
    """Invert `momentum_state`, on an optimiser of the same parameters."""
    state = {int(number): {"momentum_buffer": buffer.clone()} for number, buffer in buffers.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
