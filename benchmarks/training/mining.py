"""Mining tuples: by lists of the whole gallery, and by the product."""

import time

import torch

from sfrs.training.config import TrainConfig
from sfrs.training.k_reciprocal import nearest_neighbours, tile_rows
from sfrs.training.mining import Miner, Tuples

from . import list_mining
from .list_mining import ListTuple
from .mining_problem import MiningProblem
from .timing import seconds

REFERENCE, OURS, PRODUCT = "lists", "sfrs", "product"
ROUNDS = 15
"""At least so many calls, which are short."""


def by_lists(problem: MiningProblem, miner: Miner, pools: list[list[int]], rerank: bool) -> list[ListTuple]:
    queries, config = miner.queries.tolist(), miner.config
    return list_mining.mine(
        queries,
        problem.queries.numpy(),
        problem.database.numpy(),
        [problem.neighbourhood.positives[query].tolist() for query in queries],
        pools,
        negatives=config.tuple_negatives,
        difficult=config.difficult_positives,
        positive_pool=config.positive_pool,
        rerank=(config.rerank_neighbours, config.rerank_lambda) if rerank else None,
    )


def random_pools(problem: MiningProblem, miner: Miner, seed: int) -> list[list[int]]:
    """A pool of each query, drawn image by image."""
    generator, pools = torch.Generator().manual_seed(seed), []
    for query in miner.queries.tolist():
        allowed = torch.ones(problem.neighbourhood.database, dtype=torch.bool)
        allowed[torch.from_numpy(problem.neighbourhood.excluded[query])] = False
        negatives = allowed.nonzero().flatten()
        order = torch.randperm(len(negatives), generator=generator)
        pools.append(negatives[order[: miner.config.negative_pool]].tolist())
    return pools


def gate(tuples: Tuples, lists: list[ListTuple], rerank: bool) -> dict[str, float]:
    """Shares of tuples with the same positive and the same difficult ones; leaves where too few agree.

    Sums of float32 in another order may swap neighbours whose distances are equal but for rounding. Pools
    are drawn at random on both sides; that mining chooses the same negatives of the same pool is what
    tests/sfrs/test_reference_procedure.py says.
    """
    same = {
        "positive": sum(t.positive == p for t, p in zip(lists, tuples.positives.tolist(), strict=True)),
    }
    if rerank:
        difficult = [[i for i in row if i >= 0] for row in tuples.difficult.tolist()]
        same["difficult"] = sum(t.difficult == d for t, d in zip(lists, difficult, strict=True))
    shares = {name: count / len(lists) for name, count in same.items()}
    if min(shares.values()) < 0.98:
        raise SystemExit(f"REFUSED mining: only these shares of tuples agree: {shares}")
    return shares


def measure(
    queries: int, database: int, dim: int, device: torch.device, *, seed: int, rounds: int, most: float
) -> dict:
    """Seconds for all queries, without and with re-ranking; the lists are measured once, they take long.

    ``product`` is what no exact mining can do without: the products of the descriptors it compares, which are
    all pairs of images for re-ranking.
    """
    problem = MiningProblem.draw(queries, database, dim, seed)
    miner = Miner(problem.neighbourhood, TrainConfig(), seed=seed)
    on_device = problem.queries.to(device), problem.database.to(device)
    pools = random_pools(problem, miner, seed)
    results: dict = {"queries": queries, "database": database, "dim": dim, "agree": {}, "seconds": {}}
    for name, rerank in (("without re-ranking", False), ("with re-ranking", True)):
        difficult, began = "promoted" if rerank else "none", time.perf_counter()
        lists = by_lists(problem, miner, pools, rerank)
        slow = time.perf_counter() - began
        results["agree"][name] = gate(
            miner.mine(miner.queries, *on_device, difficult=difficult), lists, rerank
        )
        rows = torch.cat(on_device) if rerank else on_device[0]
        columns = rows if rerank else on_device[1]
        calls = {
            OURS: lambda difficult=difficult: miner.mine(miner.queries, *on_device, difficult=difficult),
            PRODUCT: lambda rows=rows, columns=columns: product(rows, columns),
        }
        fast = seconds(calls, device, rounds=max(rounds, ROUNDS), most=most)
        results["seconds"][name] = {REFERENCE: slow, **fast}
    return results


def product(rows: torch.Tensor, columns: torch.Tensor) -> None:
    """Products of descriptors and nothing else, in tiles as mining takes them."""
    height = tile_rows(columns.device, len(columns) * columns.element_size())
    tile = columns.new_empty(height, len(columns))
    for part in rows.split(height):
        torch.mm(part, columns.T, out=tile[: len(part)])


def search_rate(dim: int, device: torch.device) -> float:
    """Floating-point operations of all products of descriptors, per second of the neighbours' search."""
    rows = torch.randn(3072, dim, device=device)
    search = {"": lambda: nearest_neighbours(rows, TrainConfig().rerank_neighbours)}
    return 2 * len(rows) ** 2 * dim / seconds(search, device, rounds=3, most=15)[""]


def product_rate(dim: int, device: torch.device) -> float:
    """Floating-point operations per second of a product of descriptors."""
    rows = torch.randn(512, dim, device=device)
    return 2 * len(rows) ** 2 * dim / seconds({"": lambda: rows @ rows.T}, device, rounds=3, most=10)[""]
