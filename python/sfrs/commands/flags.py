"""Declare what commands take: options and arguments, one by one or in groups.

A parameter of a command is declared by `option` or `argument` as its default. One whose type is a group, a
dataclass of such fields, is a flag per field.
"""

import inspect
import os
import time
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from sfrs.runtime.errors import UserError


def option(help: str, panel: str | None = None, default: Any = None, *, flag: str = "", **more: Any) -> Any:
    """Declare an option; its flag is the name with dashes, or ``flag``.

    Args:
        help: no markup.
        panel: of ``--help``.
        default: shown where it says something; ``...`` where the option must be given.
        more: other arguments of ``typer.Option``.
    """
    shown = default is not False and default not in (None, ..., "")
    about = {"help": help.replace("[", r"\["), "rich_help_panel": panel, "show_default": shown, **more}
    return _declared(default, typer.Option, flag, about)


def argument(help: str, default: Any = ..., **more: Any) -> Any:
    """Declare an argument; ``more`` are arguments of ``typer.Argument``."""
    return _declared(default, typer.Argument, "", {"help": help, "show_default": False, **more})


def _declared(default: Any, how: Callable, flag: str, about: dict[str, Any]) -> Any:
    default = MISSING if default is ... else default
    return field(default=default, metadata={"how": how, "flag": flag, "about": about})


@dataclass(frozen=True)
class Command:
    """A function as a command of ``sfrs``: what typer calls, and the end of its ``--help``."""

    run: Callable[..., None]
    epilog: str

    def register(self, app: typer.Typer) -> None:
        app.command(self.run.__name__, epilog=self.epilog)(self.run)


def command(
    *examples: str, above: str = "", shared: bool = False
) -> Callable[[Callable[..., None]], Command]:
    """Make a function a `Command`, whose ``--help`` ends with examples, and a text ``above`` them.

    Several processes of torchrun may do it together if it is ``shared``; else that is refused.
    """
    epilog = "\n\n".join((above, "[b]Examples[/b]", *(f"  {example}" for example in examples)))
    return lambda function: Command(_with_flags(function, shared), epilog)


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _refuse_several() -> None:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if not is_first_process():
        from sfrs.runtime.distributed import LAST_WORDS

        time.sleep(LAST_WORDS)  # the first one says why; torchrun ends all once one has ended
        raise typer.Exit(2)
    raise UserError(
        "torchrun started several processes, but this command is the work of one; start it without "
        "torchrun, or unset WORLD_SIZE."
    )


def _with_flags(function: Callable[..., None], shared: bool) -> Callable[..., None]:
    """Let typer see a flag per field of a group; an error that one would have gone on from names it."""
    hints, groups, parameters = get_type_hints(function), {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(hints[name]):
            groups[name], of_group = hints[name], get_type_hints(hints[name])
            parameters += [_parameter(f.name, of_group[f.name], f) for f in fields(hints[name])]
        elif isinstance(parameter.default, Field):
            parameters.append(_parameter(name, hints[name], parameter.default))

    def run(**values: Any) -> None:
        if not shared:
            _refuse_several()
        left = dict(values)
        for name, kind in groups.items():
            left[name] = kind(**{f.name: left.pop(f.name) for f in fields(kind)})
        try:
            function(**left)
        except UserError as error:
            if error.skip in values and not values[error.skip]:
                error.args = (f"{error} --{error.skip.replace('_', '-')} leaves such images out.",)
            raise

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # of every function
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, kind: Any, declared: Field) -> inspect.Parameter:
    how, flag, about = declared.metadata["how"], declared.metadata["flag"], declared.metadata["about"]
    flags = (flag or f"--{name.replace('_', '-')}",) if how is typer.Option else ()
    default = inspect.Parameter.empty if declared.default is MISSING else declared.default
    annotation = Annotated[kind, how(*flags, **about)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
