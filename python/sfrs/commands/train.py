"""``sfrs train``: train a network in generations, or go on with a run."""

import shlex
from contextlib import ExitStack
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import typer
from rich.console import Console

from sfrs.commands.flags import command, option
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import say, show, table
from sfrs.training.config import PRESETS, TrainConfig, flag_text, parse_flag

if TYPE_CHECKING:
    from sfrs.training.run_folder import RunResult


PANELS = {
    "data": "Images and network",
    "init": "Initial clusters",
    "trunk_cache": "Running",
    "generations": "Schedule",
    "learning_rate": "Optimiser",
    "positive_radius": "Mining",
    "hard_loss": "Losses",
    "select_recall": "Running",
}
"""The panel of ``--help`` that begins with a configuration field."""


def _flags() -> type:
    """Make a group of a flag for every field of `TrainConfig`, None where it is not given."""
    kinds, panel, declared = get_type_hints(TrainConfig), "", []
    for f in fields(TrainConfig):
        panel = PANELS.get(f.name, panel)
        kind = kinds[f.name] if kinds[f.name] in (bool, int, float) else str
        name = f.name.replace("_", "-")
        choices = f" ({' | '.join(get_args(kinds[f.name]))})" if get_origin(kinds[f.name]) is Literal else ""
        flag = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
        shown = flag_text(f.default) or False
        declared.append(
            (f.name, kind | None, option(f.metadata["help"] + choices, panel, flag=flag, show_default=shown))
        )
    return make_dataclass("Flags", declared, frozen=True)


Flags: Any = _flags()


@command(
    "sfrs train --data pitts30k --weights vgg16.safetensors --out runs/sfrs",
    "sfrs train --data city --preset demo --generations 1 --epochs 12 --out runs/baseline",
    "sfrs train --resume runs/sfrs",
    "torchrun --nproc-per-node 4 -m sfrs train --data pitts30k --weights vgg16.safetensors --out runs/sfrs",
    shared=True,
)
def train(
    *,
    out: Path | None = option("Directory of the new run."),
    resume: Path | None = option("Go on with the run in RUN.", metavar="RUN"),
    preset: str = option(f"Values to start from: {', '.join(PRESETS)}.", default="paper"),
    first_generation: Path | None = option("Take generation 1 from RUN.", metavar="RUN"),
    tensorboard: bool = option("Also write event files to RUN/tensorboard.", default=False),
    random_weights: bool = option("Begin with random weights, to try the path.", default=False),
    flags: Flags,  # type: ignore[valid-type]  # made of the configuration
) -> None:
    """Train a network in generations (SFRS), on the splits train and val of --data.

    Every generation's teacher is the best network of the one before. --generations 1 trains the baseline.
    --resume goes on after the last checkpoint and ends with the same network, bit for bit.
    Several processes, for several GPUs: torchrun --nproc-per-node N -m sfrs train, with the same options.
    """
    changes = {
        name: parse_flag(name, value) if isinstance(value, str) else value
        for name, value in vars(flags).items()
        if value is not None
    }
    folder = out or resume
    if folder is None or (out and resume):
        raise UserError("give either --out DIR for a new run or --resume RUN")
    if resume is not None and (first_generation is not None or preset != "paper"):
        raise UserError("--resume takes everything from the run; leave out --preset and --first-generation")
    from sfrs.training.run_folder import RunDirectory

    if resume is None:
        config = TrainConfig.preset(preset, **changes)
    else:
        config = RunDirectory(resume).read()[0].changed(**changes)
    if not config.data:
        raise UserError("--data is missing: the folder or manifest to train on")
    from sfrs.models.backbones import NEEDS_WEIGHTS

    begins = resume is None and first_generation is None
    if begins and config.backbone in NEEDS_WEIGHTS and not (config.weights or random_weights):
        raise UserError(
            f"{config.backbone} does not train from random weights. Give --weights FILE, as of VGG16 trained "
            "on ImageNet (docs/training.md, section 2), or a backbone with published weights, as --backbone "
            "efficientnet-lite0, or --random-weights to try the path."
        )

    import sfrs
    from sfrs.runtime.distributed import running_together
    from sfrs.training.preparation import random_network
    from sfrs.training.progress import Several

    if random_weights and config.weights:
        raise UserError(f"--random-weights and --weights {config.weights}: give one of them.")
    try:
        with running_together() as processes, ExitStack() as watching:
            watchers = _watchers(config, folder, tensorboard) if processes.is_main else []
            result = sfrs.train(
                config.data,
                config,
                folder,
                network=random_network(config) if random_weights and begins else None,
                first_generation=first_generation,
                resume=resume is not None,
                progress=Several(*map(watching.enter_context, watchers)),
            )
            if processes.is_main:
                watching.close()
                _show(result)
    except KeyboardInterrupt:
        text = f"Stopped. To go on after the last checkpoint: sfrs train --resume {shlex.quote(str(folder))}"
        say(text)
        raise typer.Exit(130) from None


def _watchers(config: TrainConfig, folder: Path, tensorboard: bool) -> list[Any]:
    """Make what shows and follows the run; raises `UserError` without TensorBoard, before hours of work."""
    from sfrs.training.display import training_display
    from sfrs.training.run_folder import RunDirectory

    watchers: list[Any] = [training_display(config)]
    if tensorboard:
        from sfrs.training.tensorboard import TensorBoard

        watchers.append(TensorBoard(RunDirectory(folder)))
    return watchers


def _show(result: "RunResult") -> None:
    shown = table("Validation recall, %", "network", [f"@{n}" for n in result.initial.recalls])
    for best in (result.initial, *result.generations):
        shown.add_row(best.title, *(f"{100 * recall:.1f}" for recall in best.recalls.values()))
    Console().print(shown)
    show(f"The network of the last generation is {result.final.weights}")
