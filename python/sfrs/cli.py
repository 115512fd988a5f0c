"""The ``sfrs`` command.

Each command is a module of :mod:`sfrs.commands` with a function ``register(app)``. Those modules import
what takes long (torch, faiss, matplotlib) inside their functions, so that ``sfrs --help`` is quick.
"""

import sys
from importlib import import_module

import typer

from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import show_error, shown_warnings

COMMANDS = (
    "demo", "city", "data", "train", "runs", "evaluate", "report", "index",
    "locate", "serve", "describe", "whiten", "export", "study"
)  # fmt: skip
"""Modules of :mod:`sfrs.commands`, in the order ``--help`` lists them."""


class App(typer.Typer):
    """A typer application that prints user errors without a traceback and leaves with exit code 2."""

    def __call__(self, *args, **kwargs):
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


@app.callback()
def sfrs() -> None:
    """Locate photographs by image retrieval: train with SFRS, evaluate, index, locate."""


for command in COMMANDS:
    import_module(f"sfrs.commands.{command}").register(app)
