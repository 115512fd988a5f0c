"""The ``sfrs`` command.

Each module of `sfrs.commands` has a `sfrs.commands.flags.Command`. They import what takes long (torch,
faiss, matplotlib) inside their functions, so that ``sfrs --help`` is quick.
"""

import ctypes
import inspect
import re
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer

from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import encode_anything, show_error, shown_warnings

COMMANDS = (
    "demo", "city", "data", "train", "runs", "evaluate", "report", "index",
    "locate", "serve", "describe", "whiten", "export", "study"
)  # fmt: skip
"""Modules of `sfrs.commands`, each with a command of its name, in the order ``--help`` lists them."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def keep_freed_memory() -> None:
    """Let glibc's allocator keep up to 2 GiB of what is freed.

    Activations of a batch are freed and asked for again layer by layer; each time, the system would take
    their pages back and clear new ones, which costs half as much again as a light network.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


class App(typer.Typer):
    """A typer application that prints user errors without a traceback and leaves with exit code 2."""

    def __call__(self, *args, **kwargs):
        encode_anything()
        keep_freed_memory()
        try:
            with shown_warnings():
                return super().__call__(*args, **kwargs)
        except UserError as error:
            show_error(error)
            sys.exit(2)


app = App(
    name="sfrs",
    help="Locate photographs by image retrieval: train with SFRS, evaluate, index, locate.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(asked: bool) -> None:
    if asked:
        print(version("sfrs-ext"))
        raise typer.Exit


@app.callback()
def sfrs(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Locate photographs by image retrieval: train with SFRS, evaluate, index, locate."""


def fill_paragraphs(app: typer.Typer) -> None:
    """Let the paragraphs of ``--help`` break where the terminal ends, not where the source's lines do."""
    for command in app.registered_commands:
        text = inspect.cleandoc(command.callback.__doc__ or "") if command.callback else ""
        if command.callback:
            command.callback.__doc__ = re.sub(r"(?<=\S)\n(?=\S)", " ", text)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            fill_paragraphs(group.typer_instance)


data = typer.Typer(no_args_is_help=True, help="Look at data sets.", rich_markup_mode="rich")
data.callback()(lambda: None)  # keeps `check` a command of its own while it is the only one
app.add_typer(data, name="data")
for name in COMMANDS:
    module = import_module(f"sfrs.commands.{name}")
    if name == "data":
        module.check.register(data)
    else:
        getattr(module, name).register(app)
fill_paragraphs(app)
