"""Children that run ``sfrs`` with the tiny backbone, forked from a process that has imported everything.

That process has started no thread, so a child costs a fraction of a second and not an import of torch.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss  # noqa: F401  before any fork, as all below
import torch

sys.path.insert(0, str(Path(__file__).parent))

import sfrs.training.display  # noqa: F401
import sfrs.training.trainer
from sfrs.cli import app
from sfrs.models.backbones import REGISTRY

REGISTRY["tiny"] = "tiny_backbone:TinyBackbone"
torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # imports half of torch
sfrs.training.trainer.recall_curves = lambda *arguments, **options: None  # half of a tiny run's time
PATIENCE = 60.0


def fork(output: Path, work: Callable, *arguments) -> int:
    """Call ``work`` in a child, with what it prints in ``output``; returns the child's process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 0
    try:
        torch.set_num_threads(1)
        work(*arguments)
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}")
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def sfrs_command(*arguments) -> None:
    """What the command line does."""
    app([str(argument) for argument in arguments])


def ended(child: int) -> int:
    """The child's exit code (minus the signal that ended it), or 124 if it had to be ended."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124
