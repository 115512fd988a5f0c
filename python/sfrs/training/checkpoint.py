"""Checkpoints: networks, momentum, miner and the epoch in progress in one safetensors file.

The file is replaced in one step. Nothing is pickled. Facts are JSON in the file's metadata.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from sfrs.models.network import DescriptorNetwork
from sfrs.runtime.errors import UserError
from sfrs.runtime.records import Natural, Positive, RecordError, as_record
from sfrs.runtime.tensor_files import TensorFileError, read_safetensors, write_tensors
from sfrs.training.epoch import EpochState
from sfrs.training.mining import Miner, Tuples
from sfrs.training.step import StudentTeacher

KEY = "sfrs_checkpoint"
FORMAT = 2
GROUPS = ("student", "momentum", "miner", "random", "epoch", "tuples")


class Best(TypedDict):
    """The best epoch of a generation, and its validation recalls: N -> recall@N in 0..1."""

    epoch: Natural
    recalls: dict[int, float]


class Facts(TypedDict):
    """Where a run stands."""

    format: Natural
    generation: Positive
    epoch: Natural  # epochs of it that are done
    best: Best | None
    metrics_size: Natural  # bytes of metrics.jsonl that count
    done: NotRequired[Natural]  # queries of the epoch in progress


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


def load_state(
    path: Path, pair: StudentTeacher, tensors: dict[str, Tensor], facts: Facts
) -> EpochState | None:
    """Put a checkpoint's tensors into ``pair``; return the epoch that was in progress, if there was one.

    Raises `CheckpointError` that names the file and the tensor if they are not those of such a pair.
    """
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
    for name, value in tensors.items():
        group, _, own = name.partition(".")
        groups.setdefault(group, {})[own] = value
    parameters = {str(i): p for i, p in enumerate(pair.optimizer.param_groups[0]["params"])}
    expected = {
        "student": trained_state(pair.student),
        "momentum": parameters if groups["momentum"] else {},  # none before the first step
        "miner": pair.miner.state(),
        "random": {"torch": torch.get_rng_state()},
    }
    for group, of_group in expected.items():
        _check_group(path, group, groups[group], of_group)
    _check_rows(path, "miner.previous_hardest", groups["miner"]["previous_hardest"], -1, pair.miner.database)
    epoch = _epoch(path, pair.miner, groups, facts["done"]) if "done" in facts else None
    try:
        pair.miner.load_state(groups["miner"])
        torch.set_rng_state(groups["random"]["torch"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the state of a random generator is damaged ({error}).") from error
    pair.student.load_state_dict(groups["student"], strict=False)
    load_momentum(pair.optimizer, groups["momentum"])
    return epoch


def _epoch(path: Path, miner: Miner, groups: dict[str, dict[str, Tensor]], done: int) -> EpochState:
    """Return the epoch that was in progress."""
    config, found, mined = miner.config, groups["epoch"], groups["tuples"]
    count = found["queries"].numel() if "queries" in found else 0
    like = {"queries": torch.empty(count, dtype=torch.int64), "sums": torch.empty(2, dtype=torch.float64)}
    _check_group(path, "epoch", found, like)
    _check_rows(path, "epoch.queries", found["queries"], 0, len(miner.previous_hardest))
    if done > count:
        raise CheckpointError(f"{path}: {done} of {count} queries are done, expected at most all.")
    if not mined:
        return EpochState(found["queries"], done, None, found["sums"])
    left = min(config.refresh_every, count - done + done % config.refresh_every)
    width = mined["difficult"].numel() // max(left, 1) if "difficult" in mined else 0
    shapes = {"queries": (), "positives": (), "negatives": (config.tuple_negatives,), "difficult": (width,)}
    like = {name: torch.empty(left, *shape, dtype=torch.int64) for name, shape in shapes.items()}
    _check_group(path, "tuples", mined, like)
    for name, rows in mined.items():
        of = len(miner.previous_hardest) if name == "queries" else miner.database
        _check_rows(path, f"tuples.{name}", rows, -1 if name == "difficult" else 0, of)
    return EpochState(found["queries"], done, Tuples(**mined), found["sums"])


def _check_group(path: Path, group: str, found: dict[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless the tensors have the names, shapes and types of ``like``."""
    if different := sorted(found.keys() ^ like.keys()):
        what = "is missing" if different[0] in like else "has no place in this run"
        raise CheckpointError(f"{path}: {group}.{different[0]} {what}.")
    for name, value in like.items():
        shapes = [f"{str(t.dtype)[6:]} {list(t.shape)}" for t in (found[name], value)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{path}: {group}.{name} is {shapes[0]}, expected {shapes[1]}.")
        if value.is_floating_point() and not found[name].isfinite().all():
            raise CheckpointError(f"{path}: {group}.{name} holds values that are NaN or infinite.")


def _check_rows(path: Path, name: str, rows: Tensor, least: int, most: int) -> None:
    if rows.numel() and not least <= int(rows.min()) <= int(rows.max()) < most:
        raise CheckpointError(f"{path}: {name} holds {int(rows.max())}, expected less than {most} rows.")


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write ``tensors`` and ``facts`` (JSON values) to ``path``, replacing it in one step."""
    write_tensors(path, tensors, {KEY: json.dumps({"format": FORMAT, **facts})})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Facts]:
    """Read tensors and facts of `save_checkpoint`. Raises `CheckpointError` naming the file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no checkpoint to resume from")
    try:
        tensors, facts = read_safetensors(path, KEY)
        return tensors, as_record(facts, Facts, path)
    except (TensorFileError, RecordError) as error:
        raise CheckpointError(f"{path}: this is not a checkpoint or it is damaged ({error})") from error


def trained_state(network: DescriptorNetwork) -> dict[str, Tensor]:
    """Return the network's state without that of the trunk, which is frozen and in the initial network."""
    return {
        name: value for name, value in network.state_dict().items() if not name.startswith("backbone.trunk.")
    }


def momentum_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return SGD's momentum buffers by the number of their parameter; there are none before a step."""
    states = optimizer.state_dict()["state"]
    return {str(number): state["momentum_buffer"] for number, state in states.items()}


def load_momentum(optimizer: torch.optim.Optimizer, buffers: dict[str, Tensor]) -> None:
    """Invert `momentum_state`, on an optimiser of the same parameters."""
    state = {int(number): {"momentum_buffer": buffer.clone()} for number, buffer in buffers.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
