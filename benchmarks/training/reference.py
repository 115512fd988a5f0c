"""A training step as the paper's reference implementation takes it, from its formulas and pass counts.

A tuple is 12 easy images (query, easiest positive, 10 negatives) and 11 difficult ones (the query again, up
to 10 difficult positives). All 23 go through the student, trunk and head, and the 11 difficult ones through
the teacher too: 34 passes. NetVLAD writes its residuals out, every image gets nine region descriptors, and
in generation 1 teacher and soft loss are computed and weighted with 0. A step has one tuple. Convolutions
are torch's own.

Sources: SFRS (ECCV 2020), section 3; SARE (ICCV 2019), equations 11 and 14; NetVLAD (CVPR 2016), equation 7.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.peers import residual, residual_regions
from sfrs.models.convolution import Convolution3x3
from sfrs.models.network import DescriptorNetwork
from sfrs.training.config import TrainConfig

REGIONS = 9


@dataclass(frozen=True)
class ReferenceTuple:
    """Images of one tuple, normalised, ``[3, H, W]`` each.

    Attributes:
        easy: query, easiest positive, negatives: ``[2 + N, 3, H, W]``.
        difficult: query, difficult positives: ``[1 + P, 3, H, W]``.
    """

    easy: Tensor
    difficult: Tensor

    @property
    def passes(self) -> int:
        """Images that go through a whole network: the difficult ones through student and teacher."""
        return len(self.easy) + 2 * len(self.difficult)


def with_torch_convolutions(network: DescriptorNetwork) -> DescriptorNetwork:
    """``network`` itself, its parameters kept, with torch's own convolutions, which the paper's runs on."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, Convolution3x3):
                plain = nn.Conv2d(child.in_channels, child.out_channels, 3, padding=1, device="meta")
                plain.weight, plain.bias = child.weight, child.bias
                setattr(module, name, plain)
    return network


def region_descriptors(network: DescriptorNetwork, images: Tensor) -> Tensor:
    """Images through the whole network: descriptors of the nine regions of each, ``[B, 9, K * D]``."""
    features = network.backbone.head(network.backbone.trunk(images))
    return residual_regions(features, network.vlad.weight, network.vlad.centroids)


def describe(network: DescriptorNetwork, images: Tensor) -> Tensor:
    """What a refresh does with every image: the whole network, then NetVLAD by residuals, ``[B, K * D]``."""
    with torch.no_grad():
        features = network.backbone.head(network.backbone.trunk(images))
        return residual(features, network.vlad.weight, network.vlad.centroids)


def query_similarities(descriptors: Tensor) -> Tensor:
    """Of the first image, whole, to the nine regions of each other: ``[1 + G, 9, K * D]`` -> ``[G, 9]``."""
    query, others = descriptors[0, 0], descriptors[1:]
    return others @ query


def hard_loss(similarities: Tensor, config: TrainConfig, generation: int) -> Tensor:
    """Of ``[1 + N, 9]``: the easiest positive, then the negatives; the mean over negatives.

    From generation 2 a negative is its region nearest to the query.
    """
    positive, negatives = similarities[0, 0], similarities[1:]
    if generation > 1 and config.region_negatives:
        nearest = negatives.detach().argmax(dim=1)
        negatives = negatives[torch.arange(len(negatives), device=nearest.device), nearest]
    else:
        negatives = negatives[:, 0]
    if config.hard_loss == "triplet":  # |u - v|^2 = 2 - 2 u.v for unit vectors
        near, far = 2 - 2 * positive, 2 - 2 * negatives
        if config.triplet_distance == "plain":
            near, far = near.sqrt(), far.sqrt()
        return (near - far + config.margin).clamp_min(0).mean()
    if config.hard_loss == "sare-joint":
        logits = torch.cat((positive[None], negatives)) / config.temperature
        return -logits.log_softmax(0)[0]
    pairs = torch.stack((positive.expand(len(negatives)), negatives), dim=1) / config.temperature
    return -pairs.log_softmax(1)[:, 0].mean()


def soft_loss(student: Tensor, teacher: Tensor, config: TrainConfig, generation: int) -> Tensor:
    """Cross entropy over all regions of all difficult positives; both ``[P, 9]``."""
    if config.soft_level == "image":
        student, teacher = student[:, :1], teacher[:, :1]
    labels = (teacher.flatten() / config.teacher_temperature(generation)).softmax(0)
    return -(labels * (student.flatten() / config.temperature).log_softmax(0)).sum()


def tuple_losses(
    student: DescriptorNetwork,
    teacher: DescriptorNetwork,
    images: ReferenceTuple,
    config: TrainConfig,
    generation: int,
) -> tuple[Tensor, Tensor]:
    """Hard and soft loss of one tuple, both with gradient; the soft one is 0 without difficult positives.

    In generation 1 the caller weights the soft loss with 0; its cost is the same.
    """
    hard = hard_loss(query_similarities(region_descriptors(student, images.easy)), config, generation)
    if len(images.difficult) == 1:
        return hard, hard.new_zeros(())
    with torch.no_grad():
        labels = query_similarities(region_descriptors(teacher, images.difficult))
    ours = query_similarities(region_descriptors(student, images.difficult))
    return hard, soft_loss(ours, labels, config, generation)


def step(
    student: DescriptorNetwork,
    teacher: DescriptorNetwork,
    optimizer: torch.optim.Optimizer,
    images: ReferenceTuple,
    config: TrainConfig,
    generation: int,
) -> float:
    """One step of SGD on one tuple; the loss before it."""
    hard, soft = tuple_losses(student, teacher, images, config, generation)
    total = hard + (config.soft_weight if generation > 1 else 0.0) * soft
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()
    return total.item()


def gather(
    image: Callable[[int], Tensor], query: int, positive: int, negatives: list[int], difficult: list[int]
) -> ReferenceTuple:
    """The images of a tuple by their numbers; the query is loaded once and stands in both parts."""
    first = image(query)
    easy = [first, *(image(number) for number in (positive, *negatives))]
    return ReferenceTuple(torch.stack(easy), torch.stack([first, *(image(number) for number in difficult)]))
