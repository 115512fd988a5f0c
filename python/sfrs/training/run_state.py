"""What a checkpoint of a run holds: networks, momentum, miner, the epoch in progress; and putting it back."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfrs.models.network import DescriptorNetwork
from sfrs.training.checkpoint import (
    CheckpointError,
    load_momentum,
    momentum_state,
    of_prefix,
    save_checkpoint,
    with_prefix,
)
from sfrs.training.epoch_state import EpochState
from sfrs.training.mining import Tuples
from sfrs.training.tuple_losses import Generation


def save_state(path: Path, generation: Generation, state: EpochState | None, facts: dict[str, Any]) -> None:
    """Write a checkpoint of ``generation``, within an epoch or (``state`` None) between two.

    The teacher is not in it: it is the best network of the generation before, which has its own file.
    """
    tensors = {
        **with_prefix("student", trained_state(generation.student)),
        **with_prefix("momentum", momentum_state(generation.optimizer)),
        **with_prefix("miner", generation.miner.state()),
        "random.torch": torch.get_rng_state(),
    }
    if state is not None:
        tensors |= {"epoch.queries": state.queries, "epoch.sums": state.sums}
        if state.tuples is not None:
            tuples = {field.name: getattr(state.tuples, field.name) for field in fields(Tuples)}
            tensors |= with_prefix("tuples", tuples)
        facts = {**facts, "done": state.done}
    save_checkpoint(path, tensors, facts)


def load_state(
    generation: Generation, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> EpochState | None:
    """Put a checkpoint's tensors into ``generation``; the epoch that was in progress, if there was one.

    Raises:
        CheckpointError: the tensors are of other networks.
    """
    load_trained(generation.student, of_prefix("student", tensors))
    load_momentum(generation.optimizer, of_prefix("momentum", tensors))
    generation.miner.load_state(of_prefix("miner", tensors))
    torch.set_rng_state(tensors["random.torch"])
    if "done" not in facts:
        return None
    tuples = of_prefix("tuples", tensors)
    mined = Tuples(**tuples) if tuples else None
    return EpochState(tensors["epoch.queries"], facts["done"], mined, tensors["epoch.sums"])


def trained_state(network: DescriptorNetwork) -> dict[str, Tensor]:
    """The network's state without that of the trunk, which is frozen and part of the initial network."""
    return {
        name: value for name, value in network.state_dict().items() if not name.startswith("backbone.trunk.")
    }


def load_trained(network: DescriptorNetwork, state: dict[str, Tensor]) -> None:
    """The inverse of `trained_state`. Raises `CheckpointError` for another network's."""
    own = trained_state(network)
    if own.keys() != state.keys():
        raise CheckpointError(
            f"the checkpoint's networks have other parameters: {sorted(own.keys() ^ state.keys())}"
        )
    network.load_state_dict(state, strict=False)
