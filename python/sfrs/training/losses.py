"""Losses of the method as functions of similarities.

Everything a loss needs is one tensor ``S[T, G, 9]``: the dot products between the descriptor of each of T
queries and the nine regions of its G gallery images (region 0 is the whole image). Descriptors have unit
length, so the squared Euclidean distance is ``2 - 2 S``. Every loss is one number per tuple, ``[T]``, in
float32 at least, whatever the similarities come in.

Sources: NetVLAD (CVPR 2016, eq. 7), SARE (ICCV 2019, eq. 11 and 14), SFRS (ECCV 2020, eq. 5 to 8).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HARD_LOSSES = ("triplet", "sare-joint", "sare-ind")
TRIPLET_EPSILON = 1e-6
"""Least plain distance: the square root has no gradient at 0."""


def triplet(positive: Tensor, negatives: Tensor, margin: float = 0.1, *, distance: str = "squared") -> Tensor:
    """Compute the triplet loss, ``mean max(0, |q - p|^2 - |q - n|^2 + margin)`` (NetVLAD, eq. 7).

    With plain distances, ``|q - p| - |q - n|``, images that are the query's equals get no gradient.

    Args:
        positive: similarity of each query to its positive, ``[T]``.
        negatives: similarities of each query to its negatives, ``[T, N]``.
        margin: a distance between unit vectors, squared or plain as ``distance`` says.
        distance: ``squared`` or ``plain``.
    """
    positive, negatives = _checked(positive, negatives)
    if distance == "plain":
        near, far = ((2 - 2 * s).clamp_min(TRIPLET_EPSILON**2).sqrt() for s in (positive, negatives))
        return (margin + near[:, None] - far).clamp_min(0).mean(dim=1)
    return (margin + 2 * negatives - 2 * positive[:, None]).clamp_min(0).mean(dim=1)


def sare_joint(positive: Tensor, negatives: Tensor, temperature: float = 0.07) -> Tensor:
    """Compute ``-log softmax`` of the positive among all negatives of its tuple. Shapes: `triplet`."""
    positive, negatives = _checked(positive, negatives)
    logits = torch.cat((positive[:, None], negatives), dim=1) / temperature  # [T, 1 + N]
    return -F.log_softmax(logits, dim=1)[:, 0]


def sare_ind(positive: Tensor, negatives: Tensor, temperature: float = 0.07) -> Tensor:
    """Compute ``-log softmax`` of the positive against each negative alone, then the mean of these.

    A softmax of two is a sigmoid: ``-log softmax([p, n])[0] = softplus(n - p)``. Shapes: `triplet`.
    """
    positive, negatives = _checked(positive, negatives)
    return F.softplus((negatives - positive[:, None]) / temperature).mean(dim=1)


def hard_loss(
    kind: str,
    positive: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.07,
    margin: float = 0.1,
    distance: str = "squared",
) -> Tensor:
    """Compute the hard loss named ``kind`` (one of `HARD_LOSSES`); see the functions of those names."""
    if kind == "triplet":
        return triplet(positive, negatives, margin, distance=distance)
    if kind not in HARD_LOSSES:
        raise ValueError(f"hard_loss: kind is {kind!r}, expected one of {', '.join(HARD_LOSSES)}")
    return (sare_joint if kind == "sare-joint" else sare_ind)(positive, negatives, temperature)


def region_negatives(similarities: Tensor) -> Tensor:
    """Take each negative image as its region most similar to the query (SFRS, section 3.3).

    The region is chosen without gradient; the chosen similarity keeps its own.

    Args:
        similarities: ``[T, N, 9]``, the queries' similarities to the regions of their negatives.

    Returns:
        ``[T, N]``.
    """
    if similarities.dim() != 3:
        raise ValueError(
            f"region_negatives: similarities is {list(similarities.shape)}, expected [T, N, regions]"
        )
    region = similarities.detach().argmax(dim=2, keepdim=True)  # [T, N, 1]
    return similarities.gather(2, region).squeeze(2)


def soft_loss(
    student: Tensor,
    teacher: Tensor,
    teacher_temperature: float,
    temperature: float = 0.07,
    *,
    valid: Tensor | None = None,
    negatives: Tensor | None = None,
) -> Tensor:
    """Compute the cross entropy of the student's region similarities against the teacher's (eq. 5 and 6).

    For each query the teacher's similarities to all regions of its P difficult positives become labels,
    ``softmax(teacher / teacher_temperature)``; the student's log-softmax at ``temperature`` over the same
    regions is pulled towards them. With one region, labels are those of whole images.

    Args:
        student: ``[T, P, 9]`` (or 1 instead of 9, here as below), with gradient.
        teacher: ``[T, P, 9]``; no gradient flows into it.
        teacher_temperature: of generation g, ``tau_g``; small is sharp.
        temperature: of the student.
        valid: bool ``[T, P]``; False where a tuple has fewer than P difficult positives. What stands there is
            ignored, NaN included.
        negatives: ``[T, N, 9]``, the student's similarities to the tuple's negatives. If given, they join the
            denominator of the student's softmax but never the labels, so that the student also learns that
            all negatives are worse than the positives. This is not part of the paper.

    Returns:
        ``[T]``, the sum over regions; 0 for a tuple without a valid positive.
    """
    if student.shape != teacher.shape or student.dim() != 3:
        raise ValueError(
            f"soft_loss: student is {list(student.shape)} and teacher is {list(teacher.shape)}, "
            "expected the same [T, P, regions]"
        )
    if valid is None:
        valid = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    elif valid.shape != student.shape[:2] or valid.dtype != torch.bool:
        raise ValueError(
            f"soft_loss: valid is {valid.dtype} {list(valid.shape)}, expected bool {list(student.shape[:2])}"
        )
    use = valid[:, :, None].expand(-1, -1, student.shape[2]).flatten(1)  # [T, P * regions]
    labels = _masked_logits(teacher.detach(), use, teacher_temperature).softmax(dim=1)
    logits = _masked_logits(student, use, temperature)
    if negatives is not None:
        logits = torch.cat((logits, _at_least_float32(negatives.flatten(1)) / temperature), dim=1)
    log_probability = F.log_softmax(logits, dim=1)[:, : use.shape[1]]
    # A masked logit is -inf, and 0 * -inf would be NaN.
    loss = -(labels * log_probability.masked_fill(~use, 0)).sum(dim=1)
    return loss.masked_fill(~valid.any(dim=1), 0)


def soft_loss_by_level(
    student: Tensor,
    teacher: Tensor,
    teacher_temperature: float,
    temperature: float = 0.07,
    *,
    valid: Tensor | None = None,
    negatives: Tensor | None = None,
) -> Tensor:
    """Compute the mean of `soft_loss` for whole images, for halves and for quarters, each level by itself.

    Regions of one size then compete with each other only, and the level of whole images, which retrieval
    uses, keeps a third of the loss whatever the teacher thinks of the others. This is not part of the paper.
    Arguments and result: `soft_loss`.
    """
    levels = (slice(0, 1), slice(1, 5), slice(5, 9))[: 1 if student.shape[2] == 1 else 3]
    losses = [
        soft_loss(
            student[:, :, level],
            teacher[:, :, level],
            teacher_temperature,
            temperature,
            valid=valid,
            negatives=None if negatives is None else negatives[:, :, level],
        )
        for level in levels
    ]
    return torch.stack(losses).mean(dim=0)


SOFT_LOSSES: dict[str, Callable[..., Tensor]] = {"cross-entropy": soft_loss, "by-level": soft_loss_by_level}
"""Soft losses by the name for ``--soft-loss``; all take and return what `soft_loss` does."""


def _masked_logits(similarities: Tensor, use: Tensor, temperature: float) -> Tensor:
    """``[T, P, R]`` -> ``[T, P * R]`` logits, -inf where not used (0 in rows of which nothing is used)."""
    logits = _at_least_float32(similarities.flatten(1)) / temperature
    blank = torch.where(use.any(dim=1, keepdim=True), -torch.inf, 0.0).to(logits.dtype).expand_as(logits)
    return torch.where(use, logits, blank)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _checked(positive: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    if positive.dim() != 1 or negatives.dim() != 2 or len(positive) != len(negatives):
        raise ValueError(
            f"hard loss: positive is {list(positive.shape)} and negatives is {list(negatives.shape)}, "
            "expected [T] and [T, N]"
        )
    return _at_least_float32(positive), _at_least_float32(negatives)
