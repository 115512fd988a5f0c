"""A place in which a copy of somebody else's layer can run without a trace."""

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .memory import Memory


@contextmanager
def undisturbed(layer: nn.Module) -> Iterator[Memory]:
    """Whatever happens inside, what is outside of a copy is afterwards as it was.

    That is: the layer's attributes, and what its code keeps in classes, globals, defaults, closures and
    caches; random states; torch's modes, default dtype and device; hooks on all modules, which are not run;
    warnings, which are not shown and so still are when the layer itself runs. Inside, layers that allocate
    without a dtype get float64.
    """
    with ExitStack() as stack:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices))
        stack.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        for name, hooks in vars(torch.nn.modules.module).items():
            if name.startswith("_global_") and isinstance(hooks, dict):
                stack.callback(hooks.update, hooks.copy())
                hooks.clear()
        memory = Memory(layer, outside=True)
        stack.callback(memory.restore)
        yield memory
