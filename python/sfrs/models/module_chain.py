"""A network as the chain of modules that an image passes through, found by running it once."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

PROBE = (64, 96)
"""Height and width of the image that is passed through: multiples of every stride, and not equal."""


@dataclass(frozen=True)
class Link:
    """A module of a chain."""

    name: str
    module: nn.Module
    stride: int  # of its output, in pixels; 0 if that is no map of the image
    channels: int  # of its output
    channels_last: bool  # whether that is [B, h, w, C]

    @property
    def has_parameters(self) -> bool:
        return next(self.module.parameters(), None) is not None


@dataclass
class _Call:
    """A call of a module with one tensor; versions tell whether anything else wrote to a tensor in place."""

    name: str
    module: nn.Module
    given: Tensor
    version: int
    start: int
    output: Tensor | None = None
    output_version: int = -1
    end: int = -1


@dataclass
class _Recorder:
    calls: list[_Call] = field(default_factory=list)
    running: list[_Call] = field(default_factory=list)
    clock: int = 0

    def enter(self, name: str, module: nn.Module, given: tuple) -> None:
        self.clock += 1
        tensor = given[0] if len(given) == 1 and isinstance(given[0], Tensor) else torch.empty(0)
        self.running.append(_Call(name, module, tensor, tensor._version, self.clock))

    def leave(self, module: nn.Module, given: tuple, output: object) -> None:
        self.clock += 1
        call = self.running.pop()
        if isinstance(output, Tensor):
            call.output, call.output_version, call.end = output, output._version, self.clock
            self.calls.append(call)


@torch.no_grad()
def find_chain(network: nn.Module) -> list[Link]:
    """Return the modules that an image passes through one after the other, as far as each takes the output
    of the one before and nothing is computed between them. Sequences are taken apart.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, *PROBE, device=parameter.device, dtype=parameter.dtype)
    calls = _record(network, image)
    links: list[Link] = []
    current, version, now = image, image._version, 0
    while True:
        following = [
            call for call in calls if call.given is current and call.version == version and call.start > now
        ]
        if not following:
            return links
        call = min(following, key=lambda call: call.start)  # the outermost is entered first
        assert call.output is not None
        links.append(_link(call))
        current, version, now = call.output, call.output_version, call.end


def _record(network: nn.Module, image: Tensor) -> list[_Call]:
    recorder, hooks = _Recorder(), []
    for name, module in network.named_modules():
        if name and type(module).forward is not nn.Sequential.forward:
            hooks.append(module.register_forward_pre_hook(partial(recorder.enter, name)))
            hooks.append(module.register_forward_hook(recorder.leave))
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.calls


def _link(call: _Call) -> Link:
    shape = call.output.shape if call.output is not None and call.output.dim() == 4 else (1, 1, 1, 1)
    for channels_last, (channels, *sides) in ((False, shape[1:]), (True, (shape[3], *shape[1:3]))):
        strides = {side / found for side, found in zip(PROBE, sides, strict=True)}
        if len(strides) == 1 and (stride := strides.pop()) == int(stride):
            return Link(call.name, call.module, int(stride), int(channels), channels_last)
    return Link(call.name, call.module, 0, 0, False)


class ChainPart(nn.Sequential):
    """Some modules of a chain; maps come and go as ``[B, C, h, w]``."""

    def __init__(self, links: Sequence[Link], *, takes_channels_last: bool = False):
        super().__init__(OrderedDict((link.name.replace(".", "_"), link.module) for link in links))
        self.takes = takes_channels_last
        self.gives = links[-1].channels_last if links else takes_channels_last

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1) if self.takes else input
        x = super().forward(x)
        return x.permute(0, 3, 1, 2) if self.gives else x
