"""Whether a run can be started or resumed in a directory."""

from dataclasses import fields
from typing import Any

from sfrs.runtime.distributed import Processes
from sfrs.runtime.errors import UserError
from sfrs.training.checkpoint import load_checkpoint
from sfrs.training.config import TrainConfig
from sfrs.training.run_folder import RunDirectory, data_differences


def run_start(
    directory: RunDirectory,
    config: TrainConfig,
    data: dict[str, Any],
    first_generation: str | None,
    resume: bool,
    network_given: bool,
) -> dict[str, Any]:
    """How a run begins: whether from a checkpoint, and what it takes over.

    Returns:
        JSON: ``resume``, whether there is a checkpoint to go on from; else ``first_generation``, the
        directory of another run or None, and ``network_given``.

    Raises:
        UserError: as `sfrs.training.trainer.train` says.
    """
    if not resume:
        directory.refuse_existing()
    else:
        _refuse_differences(directory, config, data)
        if directory.checkpoint.exists():
            return {"resume": True, "first_generation": None}
        stored = directory.read_start()
        if stored.get("network_given", False) and not network_given:
            raise UserError(f"{directory.path}: the run stopped before its first checkpoint; begin it anew")
        first_generation = stored.get("first_generation", first_generation)
    if first_generation is not None:
        if config.generations < 2:
            raise UserError("first_generation is given, but generations is 1, expected at least 2")
        other = RunDirectory(first_generation)
        other_config, other_data = other.read()
        if other_data != data:
            raise UserError(f"{first_generation}: the run was made with other images than this one")
        if not _has_finished_first(other, other_config):
            raise UserError(f"{first_generation}: the run has not finished generation 1 yet")
    return {"resume": False, "first_generation": first_generation, "network_given": network_given}


def _has_finished_first(directory: RunDirectory, config: TrainConfig) -> bool:
    if not directory.best(1).exists():
        return False
    if not directory.checkpoint.exists():
        return True  # only the networks were kept
    facts = load_checkpoint(directory.checkpoint)[1]
    return facts["generation"] > 1 or facts["epoch"] >= config.epochs_of(1)


def _refuse_differences(directory: RunDirectory, config: TrainConfig, data: dict[str, Any]) -> None:
    stored, stored_data = directory.read()
    differences = stored.differences(config) + data_differences(stored_data, data)
    if differences:
        raise UserError(
            f"{directory.path}: cannot resume, the run was started otherwise:\n  " + "\n  ".join(differences)
        )


def check_processes(joined: Processes, config: TrainConfig, data: dict[str, Any]) -> None:
    """Raise `UserError` if processes of a run were started differently, or are too many for its images."""
    values = config.to_dict()
    joined.agree("configuration", {f.name: values[f.name] for f in fields(config) if f.metadata["compare"]})
    joined.agree("images", data)
    fewest = min(found[role] for found in data.values() for role in ("database", "queries"))
    if fewest < joined.count:
        raise UserError(
            f"there are {joined.count} processes, but only {fewest} images in a set, expected as many"
        )
