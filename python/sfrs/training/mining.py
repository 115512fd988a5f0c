"""Mining training tuples from descriptors and positions.

A tuple is a query, its easiest positive, its hardest negatives and, for the soft loss, its difficult
positives (SFRS, section 3.1; NetVLAD, section 5 for the negatives). All work is tensor operations on many
queries; every random choice comes from the miner's one generator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sfrs.data.neighbourhood import Neighbourhood
from sfrs.retrieval.search import largest
from sfrs.runtime.errors import UserError
from sfrs.training.config import TrainConfig
from sfrs.training.k_reciprocal import TILE_BYTES, promoted, reranked_distances, similarities

DIFFICULT = ("none", "promoted", "ranks")
RANKS = 64  # for how many ranks random numbers are drawn at once


@dataclass(frozen=True)
class Tuples:
    """T training tuples as int64 rows of the query set and of the database."""

    queries: Tensor  # [T]
    positives: Tensor  # the easiest, [T]
    negatives: Tensor  # the hardest, hardest first, [T, N]
    difficult: Tensor  # positives, [T, P]; -1 where a tuple has fewer than P

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, part: slice) -> "Tuples":
        return Tuples(self.queries[part], self.positives[part], self.negatives[part], self.difficult[part])


class Miner:
    """Finds tuples, and remembers each query's hardest negatives for the next time.

    Raises `UserError` if no query has a positive; or a query with one has fewer than
    ``config.tuple_negatives`` images to choose negatives from.
    """

    def __init__(self, neighbourhood: Neighbourhood, config: TrainConfig, *, seed: int = 0) -> None:
        self.config, self.database = config, neighbourhood.database
        self.positives, self.excluded = neighbourhood.positives, neighbourhood.excluded
        positives = torch.from_numpy(self.positives.counts())
        self.allowed = self.database - torch.from_numpy(self.excluded.counts())  # as negatives
        self.generator = torch.Generator().manual_seed(seed)
        self.queries = positives.nonzero().flatten()  # those that have a positive
        self.previous_hardest = torch.full((len(positives), config.tuple_negatives), -1)
        if len(self.queries) == 0:
            raise UserError(
                f"none of the {len(positives)} queries has a positive within {config.positive_radius:g} m"
            )
        left = self.allowed[self.queries]
        if left.min() < config.tuple_negatives:
            query = self.queries[left.argmin()].item()
            raise UserError(
                f"tuple_negatives is {config.tuple_negatives}, but query {query} has only "
                f"{left.min().item()} database images beyond {config.negative_radius:g} m"
            )

    def draw_queries(self, count: int = 0) -> Tensor:
        """Draw trainable queries in random order, int64; at most ``count`` of them unless it is 0."""
        order = torch.randperm(len(self.queries), generator=self.generator)
        return self.queries[order[: count or None]]

    def mine(
        self,
        queries: Tensor,
        query_descriptors: Tensor,
        database_descriptors: Tensor,
        *,
        difficult: str = "none",
    ) -> Tuples:
        """Mine tuples for ``queries``, in their order.

        Args:
            queries: rows of the query set that have a positive, int64 ``[b]``.
            query_descriptors: unit vectors ``[all queries, d]``. Rows of other queries are read by
                re-ranking only.
            database_descriptors: unit vectors ``[database, d]``.
            difficult: ``promoted`` (by re-ranking the nearest positives), ``ranks`` (the positives of the
                ranks ``config.soft_ranks``, by default the first), or ``none``.
        """
        if difficult not in DIFFICULT:
            raise ValueError(f"mine: difficult is {difficult!r}, expected one of {', '.join(DIFFICULT)}")
        nearest = self._nearest_positives(queries, query_descriptors, database_descriptors)
        negatives = self._hardest_negatives(queries, query_descriptors, database_descriptors)
        chosen = nearest[:, :0]
        if difficult == "promoted":
            chosen = nearest[:, : self.config.positive_pool]
            chosen = self._promoted(queries, chosen, query_descriptors, database_descriptors)
        elif difficult == "ranks":
            first, last = self.config.soft_ranks or (1, self.config.difficult_positives)
            chosen = nearest[:, first - 1 : last]
        return Tuples(queries, nearest[:, 0], negatives, chosen)

    def _nearest_positives(
        self, queries: Tensor, query_descriptors: Tensor, database_descriptors: Tensor
    ) -> Tensor:
        """Return all positives ``[b, most of a query]``, most similar first, -1 padded."""
        device = database_descriptors.device
        lists = [torch.from_numpy(self.positives[query]) for query in queries.tolist()]
        listed = pad_sequence(lists, batch_first=True, padding_value=-1)
        asked = listed.clamp_min(0).to(device)
        scores = similarities(query_descriptors, queries.to(device), database_descriptors, asked).cpu()
        scores.masked_fill_(listed < 0, -torch.inf)
        return listed.gather(1, scores.sort(dim=1, descending=True, stable=True).indices)

    def _hardest_negatives(
        self, queries: Tensor, query_descriptors: Tensor, database_descriptors: Tensor
    ) -> Tensor:
        """Return the hardest of a random pool and of the previous hardest, ``[b, N]``."""
        rows, device = queries.to(database_descriptors.device), database_descriptors.device
        pool, count = self.config.negative_pool, self.config.tuple_negatives
        ranks = pool_ranks(self.allowed[queries], pool, count, self.generator).to(device)
        tile, drawn = max(1, TILE_BYTES // (4 * len(database_descriptors))), []
        for own, rank in zip(queries.split(tile), ranks.split(tile), strict=True):
            products = query_descriptors[own.to(device)] @ database_descriptors.T
            for row, query in zip(products, own.tolist(), strict=True):
                row[torch.from_numpy(self.excluded[query]).to(device)] = -torch.inf
            drawn.append(largest(products, int(rank.max()) + 1)[1].gather(1, rank))
        drawn, previous = torch.cat(drawn), self.previous_hardest[queries].to(device)
        # All by the same arithmetic, so that rounding does not decide between images that are alike.
        both = torch.cat((drawn, previous.clamp_min(0)), dim=1)
        scores = similarities(query_descriptors, rows, database_descriptors, both)
        negatives = hardest_negatives(drawn, previous, scores).cpu()
        self.previous_hardest[queries] = negatives
        return negatives

    def _promoted(
        self, queries: Tensor, nearest: Tensor, query_descriptors: Tensor, database_descriptors: Tensor
    ) -> Tensor:
        offset, device = len(query_descriptors), query_descriptors.device
        distances = reranked_distances(
            torch.cat((query_descriptors, database_descriptors)),
            queries.to(device),
            torch.where(nearest < 0, -1, nearest + offset).to(device),
            k1=self.config.rerank_neighbours,
            lambda_value=self.config.rerank_lambda,
            power=4 if self.config.rerank_distances == "squared-twice" else 2,
        )
        columns = promoted(distances.cpu(), self.config.difficult_positives)
        return nearest.gather(1, columns.clamp_min(0)).masked_fill(columns < 0, -1)

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs: `previous_hardest` and the generator's state."""
        return {"previous_hardest": self.previous_hardest.clone(), "generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.previous_hardest = state["previous_hardest"].clone()
        self.generator.set_state(state["generator"])


def pool_ranks(negatives: Tensor, pool: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw where the hardest of a random pool stand when all negatives are sorted, hardest first.

    A pool is drawn without replacement whatever its images look like, so its members' ranks are a uniform
    sample of all ranks, and only the lowest have to be drawn: selection sampling, which goes through the
    ranks and takes each with the probability that a pool not yet full takes it (Knuth, TAOCP 3.4.2, S).

    Of the ``negatives`` of each query, int64 ``[t]``, at least ``count``, ``pool`` are drawn, all where there
    are fewer. Returns the lowest ranks, int64 ``[t, count]``, ascending.
    """
    left = negatives.clamp_max(max(pool, count)).double()  # of the pool, still to be drawn
    wanted, drawn = left - count, []
    while (left > wanted).any():
        before, ranks = generator.get_state(), RANKS * len(drawn) + torch.arange(RANKS)[:, None]
        uniform = torch.rand(RANKS, len(negatives), generator=generator, dtype=torch.float64)
        taken = uniform.mul_((negatives - ranks).clamp_min_(0))
        for chance in taken:
            left -= chance.lt_(left)  # 1 where the rank is taken, else 0
        drawn.append(taken > 0)
    rank_of = torch.cat(drawn).T.contiguous()  # [t, ranks looked at]
    row, rank = rank_of.nonzero(as_tuple=True)
    number = rank_of.sum(dim=1)
    first = number.cumsum(0) - number
    lowest = rank[first[:, None] + torch.arange(count)]
    # The generator goes on as if numbers had been drawn rank by rank, so RANKS changes no later draw.
    generator.set_state(before)
    needed = int(lowest.max()) + 1 - RANKS * (len(drawn) - 1)
    torch.rand(needed, len(negatives), generator=generator, dtype=torch.float64)
    return lowest


def hardest_negatives(drawn: Tensor, previous: Tensor, similarity: Tensor) -> Tensor:
    """Choose the hardest of a random pool of negatives and of the previous hardest.

    Args:
        drawn: int64 ``[t, N]``, the hardest of the pool, hardest first.
        previous: int64 ``[t, N]``, the hardest of last time, -1 for none.
        similarity: ``[t, 2 N]``, of the query to ``drawn`` and then to ``previous``; any number for none.

    Returns int64 ``[t, N]``, most similar first; of equal ones those that were drawn come first.
    """
    known = (previous < 0) | (previous[:, :, None] == drawn[:, None, :]).any(dim=2)
    both = torch.cat((drawn, previous), dim=1)
    barred = torch.cat((torch.zeros_like(known), known), dim=1)
    scores = similarity.masked_fill(barred, -torch.inf)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return both.gather(1, order[:, : drawn.shape[1]])
