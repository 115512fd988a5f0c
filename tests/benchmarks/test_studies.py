"""Studies that are recorded."""

import json

import numpy as np
import pytest
import torch

from benchmarks.studies import ADDING, STUDIES, adding
from sfrs.training.config import TrainConfig
from sfrs.training.losses import SOFT_LOSSES


def test_variants_of_the_choice_are_configurations_and_have_folders_of_their_own():
    names = [variant.name for variant in STUDIES["choice"].variants]
    assert len(set(names)) == len(names) == 6
    for variant in STUDIES["choice"].variants:
        TrainConfig.preset("demo", **variant.changes)


def test_the_loss_of_whole_and_best_is_the_mean_of_two_soft_losses():
    generator = torch.Generator().manual_seed(0)
    student, teacher, negatives = (torch.rand(2, n, 9, generator=generator) for n in (3, 3, 4))
    student.requires_grad_(), negatives.requires_grad_()
    valid = torch.tensor([[True, True, False], [True, True, True]])
    actual = SOFT_LOSSES["whole-and-best"](student, teacher, 0.1, 0.07, negatives=negatives, valid=valid)
    for t in range(2):
        chosen = [(p, max(range(9), key=lambda r: teacher[t, p, r])) for p in range(3) if valid[t, p]]
        pairs = {
            "whole": ([(p, 0) for p, _ in chosen], negatives[t, :, 0]),
            "best": (chosen, negatives[t].max(dim=1).values),
        }
        losses = []
        for places, others in pairs.values():
            labels = (torch.stack([teacher[t, p, r] for p, r in places]) / 0.1).softmax(0)
            logits = torch.cat((torch.stack([student[t, p, r] for p, r in places]), others)) / 0.07
            losses.append(-(labels * logits.log_softmax(0)[: len(places)]).sum())
        expected = sum(losses) / 2
        torch.testing.assert_close(actual[t], expected)
        ours, theirs = (
            torch.autograd.grad(loss, (student, negatives), retain_graph=True)
            for loss in (actual[t], expected)
        )
        torch.testing.assert_close(ours, theirs)


def test_what_regions_add_is_counted_in_the_last_generation(tmp_path):
    hits = {"levels": ["0000", "1110"], "negatives": ["1111", "0101"]}
    for seed in (0, 1):
        (tmp_path / f"seed_{seed}").mkdir()
        for name in ADDING:
            scores = [{"hits": {"1": bits}} for bits in hits[name]]
            (tmp_path / f"seed_{seed}" / f"{name}_4.scores.json").write_text(json.dumps({"scores": scores}))
    found = adding(tmp_path, [0, 1])
    assert (found["gained"], found["lost"]) == (4, 2)
    assert found["difference"] == pytest.approx(2 / 8) and np.allclose(found["by_seed"], [0.25, 0.25])
