"""A backbone that runs in a millisecond, for tests of everything around it."""

from torch import nn

from sfrs.models.backbones import Backbone


class TinyBackbone(Backbone):
    """8x8 mean colours -> 6 channels."""

    def __init__(self, channels: int = 6):
        super().__init__(
            nn.AvgPool2d(8),
            nn.Conv2d(3, channels, kernel_size=3, padding=1),
            name="tiny",
            channels=channels,
            stride=8,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        )
