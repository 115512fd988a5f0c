"""The count of ``torch.utils.flop_counter.FlopCounterMode``: products of the algorithm, two operations each.

As elsewhere in torch, softmax, norms and scaling do not count, nor does what a backward computes again. A
convolution counts as torch counts one of its size, though Winograd's filtering needs fewer products.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType

import torch

COUNTER = "torch.utils.flop_counter"
ops = torch.ops.sfrs_ext


def _aggregate(x, weight, logits, centroids, bias, mask, parts, ghost_clusters, *_, out_shape=None) -> int:
    columns = logits[2] if weight is None else weight[0]
    sums = columns - ghost_clusters
    return 2 * prod(x) * (sums if weight is None else sums + columns)


def _aggregate_backward(grad, x, weight, logits, *arguments, out_shape=None) -> int:
    (*_, ghost_clusters, _, _, _, _, needs) = arguments
    columns = logits[2] if weight is None else weight[0]
    clusters, through_weight = columns - ghost_clusters, 0 if weight is None else columns
    need_x, need_weight, need_logits, _, need_bias, need_mask = (needs >> i & 1 for i in range(6))
    need_assignment = need_weight or need_logits or need_bias or need_mask or (need_x and through_weight)
    per_feature = 0
    if need_assignment:
        per_feature += clusters
    if need_weight:
        per_feature += columns
    if need_x:
        per_feature += clusters + through_weight
    return 2 * prod(x) * per_feature


def _similarity(query, quarters, *_, out_shape=None) -> int:
    """Four products with the query for every pair, nine squares for every image."""
    return 2 * (4 * _pairs(query, quarters) + 9 * _images(quarters)) * prod(quarters[-2:])


def _similarity_backward(
    grad, query, quarters, similarity, dots, tf32, need_query, need_quarters, out_shape=None
):
    sums = (need_query + need_quarters) * 4 * _pairs(query, quarters) + need_quarters * 9 * _images(quarters)
    return 2 * sums * prod(quarters[-2:])


def _pairs(query, quarters) -> int:
    return query[0] * quarters[-4]


def _images(quarters) -> int:
    return prod(quarters[:-3])


def _conv3x3(x, weight, *_, out_shape=None) -> int:
    return 2 * x[0] * x[2] * x[3] * prod(weight)


FORMULAS = {
    ops.aggregate: _aggregate,
    ops.aggregate_backward: _aggregate_backward,
    ops.region_similarity: _similarity,
    ops.region_similarity_backward: _similarity_backward,
    ops.conv3x3: _conv3x3,
}


def register(counter: ModuleType) -> None:
    for operator, formula in FORMULAS.items():
        counter.register_flop_formula(operator)(formula)


class _WhenImported:
    """Registers the formulas once somebody imports the counter, which loads Triton: a seventh of a second."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        spec.loader.exec_module = execute_and_register
        return spec


if COUNTER in sys.modules:
    register(sys.modules[COUNTER])
else:
    sys.meta_path.insert(0, _WhenImported())
