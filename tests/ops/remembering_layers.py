"""NetVLAD layers whose code keeps something outside of them."""

import functools

import torch
from foreign_layers import ConvolutionNetVLAD

CACHE: dict = {}
CALLS = 0


@functools.lru_cache
def grid(height: int, width: int) -> torch.Tensor:
    return torch.ones(height, width)


def cached_grid(height: int, width: int, held={}) -> torch.Tensor:  # noqa: B006
    return held.setdefault((height, width), torch.ones(height, width))


def counter():
    numbers = []
    return numbers, lambda: numbers.append(len(numbers))


COUNTED, count = counter()


class FillsAGlobalCache(ConvolutionNetVLAD):
    def forward(self, x):
        CACHE[x.shape[2:]] = torch.ones(x.shape[2:])
        return super().forward(x)


class CountsInAGlobal(ConvolutionNetVLAD):
    def forward(self, x):
        global CALLS
        CALLS += 1
        return super().forward(x)


class CountsInItsClass(ConvolutionNetVLAD):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


class FillsACacheOfItsClass(ConvolutionNetVLAD):
    cache: dict = {}

    def forward(self, x):
        self.cache[x.shape] = x.shape[2] * x.shape[3]
        return super().forward(x)


class CountsInATensorOfItsClass(ConvolutionNetVLAD):
    calls = torch.zeros(())

    def forward(self, x):
        self.calls.add_(1)
        return super().forward(x)


class MakesACacheInItsClass(ConvolutionNetVLAD):
    def forward(self, x):
        if not hasattr(type(self), "sizes"):
            type(self).sizes = [x.shape]
        return super().forward(x)


class FillsADefault(ConvolutionNetVLAD):
    def forward(self, x):
        return super().forward(x * cached_grid(*x.shape[2:]))


class CountsInAClosure(ConvolutionNetVLAD):
    def forward(self, x):
        count()
        return super().forward(x)


class UsesAnLruCache(ConvolutionNetVLAD):
    def forward(self, x):
        return super().forward(x * grid(*x.shape[2:]).to(x.dtype))


KEEPS = {
    FillsAGlobalCache: ("remembering_layers.CACHE", lambda: CACHE),
    CountsInAGlobal: ("remembering_layers.CALLS", lambda: CALLS),
    CountsInItsClass: ("remembering_layers.CountsInItsClass.calls", lambda: CountsInItsClass.calls),
    FillsACacheOfItsClass: (
        "FillsACacheOfItsClass.cache",
        lambda: FillsACacheOfItsClass.cache,
    ),
    CountsInATensorOfItsClass: ("OfItsClass.calls", lambda: CountsInATensorOfItsClass.calls.item()),
    FillsADefault: ("cached_grid, default or closure 0", lambda: cached_grid.__defaults__),
    CountsInAClosure: ("default or closure 0", lambda: COUNTED),
}
"""Class -> the end of the name of what it keeps, and the thing itself."""
