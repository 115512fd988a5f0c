"""The losses against the papers' formulas, written out with explicit region descriptors in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

import sfrs_ext
from sfrs.training.losses import (
    SOFT_LOSSES,
    hard_loss,
    region_negatives,
    sare_ind,
    sare_joint,
    soft_loss,
    triplet,
)

REGIONS = ((0, 1, 2, 3), (0, 1), (2, 3), (0, 2), (1, 3), (0,), (1,), (2,), (3,))
T, K, D, N, P = 3, 4, 5, 4, 3
MARGIN, TAU, TAU_TEACHER = 0.1, 0.07, 0.05


def explicit_regions(quarters):
    """``[..., 4, K, D]`` -> nine unit descriptors ``[..., 9, K*D]``, as the paper crops the feature map."""
    regions = torch.stack([sum(quarters[..., q, :, :] for q in members) for members in REGIONS], dim=-3)
    regions = regions / regions.norm(dim=-1, keepdim=True)
    flat = regions.flatten(-2)
    return flat / flat.norm(dim=-1, keepdim=True)


@pytest.fixture
def tuples():
    """Raw queries, and quarter VLADs of one positive, N negatives and P difficult positives of each."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(T, K, D, generator=generator, dtype=torch.float64)
    quarters = torch.randn(T, 1 + N + P, 4, K, D, generator=generator, dtype=torch.float64)
    # Gallery images resemble the query a little, so that no softmax is saturated.
    quarters += 0.8 * query[:, None, None]
    return query.requires_grad_(), quarters.requires_grad_()


def unit(query):
    query = query / query.norm(dim=-1, keepdim=True)
    return query / query.flatten(1).norm(dim=1)[:, None, None]


def ours(tuples):
    query, quarters = tuples
    return sfrs_ext.region_similarity(unit(query), quarters)  # [T, G, 9]


def assert_same_with_gradients(actual, expected, inputs):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    theirs = torch.autograd.grad(expected, inputs, retain_graph=True)
    for mine, other in zip(torch.autograd.grad(actual, inputs), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-10)
        assert other.abs().max() > 1e-6


def explicit_soft(query, quarters, teacher, regions, with_negatives):
    """The soft losses ``[T]`` of some regions from descriptors."""
    descriptors = explicit_regions(quarters)
    losses = []
    for t in range(T):
        similarity = descriptors[t] @ unit(query)[t].flatten()  # [G, 9]
        places = [(p, r) for p in range(P) for r in regions]
        labels = [math.exp(teacher[t, p, r] / TAU_TEACHER) for p, r in places]
        student = [torch.exp(similarity[1 + N + p, r] / TAU) for p, r in places]
        negatives = range(N if with_negatives else 0)
        others = [torch.exp(similarity[1 + n, r] / TAU) for n in negatives for r in regions]
        losses.append(
            -sum(
                label / sum(labels) * torch.log(value / (sum(student) + sum(others)))
                for label, value in zip(labels, student, strict=True)
            )
        )
    return torch.stack(losses)


def explicit_hard(kind, q, p, negatives, distance="squared"):
    """The hard loss of one tuple from descriptors: q, p ``[L]``, negatives ``[N, L]``."""
    if kind == "triplet":
        power = 2 if distance == "squared" else 1
        terms = [torch.relu((q - p).norm() ** power - (q - n).norm() ** power + MARGIN) for n in negatives]
        return sum(terms) / len(terms)
    numerator = torch.exp(q @ p / TAU)
    if kind == "sare-joint":
        return -torch.log(numerator / (numerator + sum(torch.exp(q @ n / TAU) for n in negatives)))
    return sum(-torch.log(numerator / (numerator + torch.exp(q @ n / TAU))) for n in negatives) / len(
        negatives
    )


@pytest.mark.parametrize(
    ("kind", "distance"),
    [("triplet", "squared"), ("triplet", "plain"), ("sare-joint", "squared"), ("sare-ind", "squared")],
)
@pytest.mark.parametrize("regions", [False, True])
def test_hard_losses_are_the_papers_formulas_on_descriptors(tuples, kind, distance, regions):
    query, quarters = tuples
    similarity = ours(tuples)
    negatives = similarity[:, 1 : 1 + N]
    chosen = region_negatives(negatives) if regions else negatives[:, :, 0]
    options = dict(temperature=TAU, margin=MARGIN, distance=distance)
    actual = hard_loss(kind, similarity[:, 0, 0], chosen, **options).mean()
    descriptors = explicit_regions(quarters)
    expected = 0
    for t in range(T):
        q = unit(query)[t].flatten()
        picked = []
        for n in range(N):
            closest = (
                max(range(9), key=lambda r: float(q.detach() @ descriptors[t, 1 + n, r].detach()))
                if regions
                else 0
            )
            picked.append(descriptors[t, 1 + n, closest])
        expected = expected + explicit_hard(kind, q, descriptors[t, 0, 0], torch.stack(picked), distance) / T
    assert_same_with_gradients(actual, expected, tuples)


@pytest.mark.parametrize("image_level", [False, True])
@pytest.mark.parametrize("soft_negatives", [False, True])
def test_soft_loss_is_the_papers_cross_entropy_over_the_regions_of_all_difficult_positives(
    tuples, image_level, soft_negatives
):
    query, quarters = tuples
    teacher = torch.rand(T, P, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    similarity = ours(tuples)
    count = 1 if image_level else 9
    negatives = similarity[:, 1 : 1 + N, :count]
    actual = soft_loss(
        similarity[:, 1 + N :, :count],
        teacher[:, :, :count],
        TAU_TEACHER,
        TAU,
        negatives=negatives if soft_negatives else None,
    ).mean()
    expected = explicit_soft(query, quarters, teacher, range(count), soft_negatives)
    assert_same_with_gradients(actual, expected.mean(), tuples)


@pytest.mark.parametrize("soft_negatives", [False, True])
def test_the_soft_loss_by_level_is_the_mean_of_those_of_its_levels(tuples, soft_negatives):
    query, quarters = tuples
    teacher = torch.rand(T, P, 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def actual(count):
        similarity = ours(tuples)[:, :, :count]
        negatives = similarity[:, 1 : 1 + N] if soft_negatives else None
        loss = SOFT_LOSSES["by-level"]
        return loss(
            similarity[:, 1 + N :], teacher[:, :, :count], TAU_TEACHER, TAU, negatives=negatives
        ).mean()

    levels = [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    expected = [explicit_soft(query, quarters, teacher, level, soft_negatives).mean() for level in levels]
    assert_same_with_gradients(actual(9), sum(expected) / 3, tuples)
    torch.testing.assert_close(actual(1), expected[0])


def test_a_tuple_with_few_difficult_positives_counts_like_that_tuple_alone():
    student = torch.rand(3, 4, 9, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(3, 4, 9, dtype=torch.float64)
    negatives = torch.rand(3, 2, 9, dtype=torch.float64)
    valid = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    for others in (None, negatives):
        padded = student.detach().clone()
        padded[~valid] = torch.nan
        padded.requires_grad_()
        garbage = teacher.clone()
        garbage[~valid] = torch.nan
        actual = soft_loss(padded, garbage, 0.06, valid=valid, negatives=others).sum()
        few = soft_loss(
            student[:1, :2], teacher[:1, :2], 0.06, negatives=None if others is None else others[:1]
        )
        all_four = soft_loss(
            student[1:2], teacher[1:2], 0.06, negatives=None if others is None else others[1:2]
        )
        expected = (few + all_four).sum()
        torch.testing.assert_close(actual, expected)
        (mine,) = torch.autograd.grad(actual, padded)
        (theirs,) = torch.autograd.grad(expected, student)
        torch.testing.assert_close(mine, theirs)


def test_without_any_difficult_positive_the_soft_loss_is_zero_and_moves_nothing():
    student = torch.rand(2, 3, 9, requires_grad=True)
    loss = soft_loss(student, torch.rand(2, 3, 9), 0.07, valid=torch.zeros(2, 3, dtype=torch.bool))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert student.grad.abs().max() == 0


def test_the_teacher_gets_no_gradient():
    student, teacher = torch.rand(2, 3, 9, requires_grad=True), torch.rand(2, 3, 9, requires_grad=True)
    soft_loss(student, teacher, 0.07).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_soft_loss_is_least_where_the_student_agrees_with_the_teacher():
    teacher = torch.rand(2, 3, 9)
    agreeing = soft_loss(teacher, teacher, 0.07, 0.07)
    assert (agreeing < soft_loss(teacher + 0.1 * torch.randn(2, 3, 9), teacher, 0.07, 0.07)).all()


def test_region_negatives_pass_gradient_to_the_chosen_region_alone():
    similarity = torch.zeros(1, 2, 9)
    similarity[0, 0, 4] = similarity[0, 1, 8] = 0.5
    similarity.requires_grad_()
    chosen = region_negatives(similarity)
    chosen.sum().backward()
    assert chosen.tolist() == [[0.5, 0.5]]
    assert similarity.grad.nonzero().tolist() == [[0, 0, 4], [0, 1, 8]]


def test_the_triplet_of_plain_distances_is_torchs_but_for_its_epsilon():
    """Torch adds 1e-6 to every coordinate, which moves a distance by at most 1e-6 sqrt(L)."""
    length, margin, generator = 8, 0.1**0.5, torch.Generator().manual_seed(0)
    q, p, n = F.normalize(torch.randn(3, 40, length, generator=generator, dtype=torch.float64), dim=2)
    expected = F.triplet_margin_loss(q, p, n, margin=margin, reduction="none")
    assert (expected > 0).any() and (expected == 0).any()
    found = triplet((q * p).sum(1), (q * n).sum(1)[:, None], margin, distance="plain")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * length**0.5)


def test_the_triplet_of_plain_distances_has_a_finite_gradient_where_images_are_alike():
    positive, negatives = torch.ones(1, requires_grad=True), torch.tensor([[1.0, 0.5]], requires_grad=True)
    triplet(positive, negatives, 2.0, distance="plain").sum().backward()
    assert positive.grad.tolist() == [0]
    assert negatives.grad.tolist() == [[0, 0.5]], (
        "half of the derivative of -sqrt(2 - 2 s) at 0.5, which is 1"
    )


def test_losses_are_finite_and_exact_for_extreme_similarities():
    positive, negatives = torch.tensor([-1.0]), torch.tensor([[1.0, 1.0]])
    assert sare_ind(positive, negatives, 1e-3).item() == pytest.approx(2000)
    assert sare_joint(positive, negatives, 1e-3).item() == pytest.approx(2000 + math.log(2), rel=1e-6)
    assert triplet(-positive, -negatives).item() == 0


def test_half_precision_similarities_are_summed_in_float32():
    positive, negatives = torch.rand(4), torch.rand(4, 10)
    half = sare_joint(positive.bfloat16(), negatives.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, sare_joint(positive.bfloat16().float(), negatives.bfloat16().float()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hard_loss("sare", torch.rand(2), torch.rand(2, 3)), "'sare'.*expected one of"),
        (lambda: sare_ind(torch.rand(2), torch.rand(3, 3)), r"positive is \[2\] and negatives is \[3, 3\]"),
        (
            lambda: soft_loss(torch.rand(2, 3, 9), torch.rand(2, 4, 9), 0.1),
            r"student is \[2, 3, 9\] and teacher",
        ),
        (
            lambda: soft_loss(torch.rand(2, 3, 9), torch.rand(2, 3, 9), 0.1, valid=torch.ones(2, 4)),
            r"valid is torch.float32 \[2, 4\], expected bool \[2, 3\]",
        ),
        (lambda: region_negatives(torch.rand(2, 3)), r"similarities is \[2, 3\]"),
    ],
)
def test_wrong_shapes_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
