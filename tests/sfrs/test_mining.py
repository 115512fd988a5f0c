"""Tuples against slow list-based rules, on random descriptors."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from sfrs.data.neighbourhood import Neighbourhood
from sfrs.data.ragged import Ragged
from sfrs.runtime.errors import UserError
from sfrs.training.config import TrainConfig
from sfrs.training.mining import Miner, hardest_negatives, pool_ranks

QUERIES, DATABASE, DIM = 12, 90, 16


def config(**changes):
    return TrainConfig(**{**dict(tuple_negatives=4, negative_pool=20, rerank_neighbours=6), **changes})


def neighbourhood(seed=0):
    """Queries have 0 to 11 positives, among a few excluded images more."""
    rng = np.random.default_rng(seed)
    excluded = [rng.choice(DATABASE, 5 + i, replace=False) for i in range(QUERIES)]
    positives = [sorted(near[:i]) for i, near in enumerate(excluded)]
    return Neighbourhood(
        Ragged.from_lists(positives), Ragged.from_lists([sorted(near) for near in excluded]), DATABASE
    )


def descriptors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(QUERIES + DATABASE, DIM, generator=generator, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return vectors[:QUERIES], vectors[QUERIES:]


def by_similarity(query, database, images):
    return sorted(images, key=lambda i: -float(query @ database[i]))


def test_queries_without_a_positive_are_not_trained_on():
    miner = Miner(neighbourhood(), config())
    assert miner.queries.tolist() == list(range(1, QUERIES))


def test_the_easiest_positive_is_the_nearest_in_feature_space():
    near, (queries, database) = neighbourhood(), descriptors()
    miner = Miner(near, config())
    tuples = miner.mine(miner.queries, queries, database)
    for query, positive in zip(tuples.queries.tolist(), tuples.positives.tolist(), strict=True):
        assert positive == by_similarity(queries[query], database, near.positives[query])[0]


def test_with_a_pool_of_everything_negatives_are_the_hardest_of_all_that_are_far_enough():
    near, (queries, database) = neighbourhood(), descriptors()
    miner = Miner(near, config(negative_pool=DATABASE))
    tuples = miner.mine(miner.queries, queries, database)
    for query, negatives in zip(tuples.queries.tolist(), tuples.negatives.tolist(), strict=True):
        allowed = set(range(DATABASE)) - set(near.excluded[query].tolist())
        assert negatives == by_similarity(queries[query], database, allowed)[:4]


def test_negatives_come_from_the_pool_and_the_previous_hardest_only():
    images, previous = torch.arange(50), torch.tensor([[48, 3]]).repeat(200, 1)  # image 49 is the hardest
    allowed = images[:49].flip(0)  # in the order of their similarity
    ranks = pool_ranks(torch.full((200,), 49), 10, 2, torch.Generator().manual_seed(0))
    drawn = allowed[ranks]
    found = hardest_negatives(drawn, previous, torch.cat((drawn, previous), dim=1).float())
    assert (found[:, 0] == 48).all()
    # The second is the hardest of a pool of 10 of the 49 allowed: 47 with probability 10/49 or 9/48.
    assert 0.1 < (found[:, 1] == 47).float().mean() < 0.35
    assert (found != 49).all()


def test_the_hardest_of_a_pool_is_never_named_twice():
    drawn, similarity = torch.tensor([[0, 2, 3]]), torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    for previous, expected in (([0, 2, 4], [0, 2, 3]), ([1, -1, -1], [0, 1, 2]), ([-1, -1, -1], [0, 2, 3])):
        previous = torch.tensor([previous])
        found = hardest_negatives(drawn, previous, similarity[torch.cat((drawn, previous), dim=1)])
        assert found.tolist() == [expected]


def test_the_pool_is_a_uniform_sample_without_replacement():
    """The ranks of its hardest are distributed as those of a pool drawn image by image."""
    negatives, pool, count, draws = 12, 5, 3, 30_000
    ranks = pool_ranks(torch.full((draws,), negatives), pool, count, torch.Generator().manual_seed(1))
    assert (ranks.diff(dim=1) > 0).all()
    pools = list(itertools.combinations(range(negatives), pool))
    expected = Counter(subset[:count] for subset in pools)
    observed = Counter(map(tuple, ranks.tolist()))
    assert observed.keys() <= expected.keys()
    counts = {key: draws * n / len(pools) for key, n in expected.items()}
    squares = sum((observed[key] - mean) ** 2 / mean for key, mean in counts.items())
    freedom = len(counts) - 1
    assert squares < freedom + 5 * (2 * freedom) ** 0.5


def test_the_ranks_are_those_of_selection_sampling_one_rank_after_the_other():
    negatives, pool, count = torch.tensor([40, 400, 900, 2000]), 30, 10
    drawing = torch.Generator().manual_seed(3)
    ranks = pool_ranks(negatives, pool, count, drawing)
    generator = torch.Generator().manual_seed(3)
    expected = [[] for _ in negatives]
    for rank in range(int(ranks.max()) + 1):
        uniform = torch.rand(len(negatives), generator=generator, dtype=torch.float64)
        for own, number, drawn in zip(expected, negatives.tolist(), uniform.tolist(), strict=True):
            if drawn * max(number - rank, 0) < pool - len(own):
                own.append(rank)
    assert ranks.tolist() == [own[:count] for own in expected]
    assert ranks.max() > 300
    assert torch.equal(generator.get_state(), drawing.get_state())


def test_a_pool_of_everything_holds_the_hardest_of_all_whatever_their_number():
    ranks = pool_ranks(torch.tensor([3, 8, 20]), 8, 3, torch.Generator().manual_seed(0))
    assert ranks[:2].tolist() == [[0, 1, 2]] * 2
    assert ranks[2].max() < 20
    # A pool smaller than what a tuple takes is widened to it.
    assert pool_ranks(torch.tensor([4]), 1, 4, torch.Generator()).tolist() == [[0, 1, 2, 3]]


def test_previous_hardest_negatives_are_carried_to_the_next_mining():
    near, (queries, database) = neighbourhood(), descriptors()
    miner = Miner(near, config())
    first = miner.mine(miner.queries, queries, database)
    second = miner.mine(miner.queries, queries, database)
    score = (queries[first.queries][:, None] * database[first.negatives]).sum(2)
    again = (queries[second.queries][:, None] * database[second.negatives]).sum(2)
    assert (again >= score - 1e-12).all()  # with the old ones kept, the new can only be harder
    assert (again > score).any()


def test_difficult_positives_by_rank():
    near, (queries, database) = neighbourhood(), descriptors()
    miner = Miner(near, config(soft_ranks=(2, 4)))
    tuples = miner.mine(miner.queries, queries, database, difficult="ranks")
    for query, difficult in zip(tuples.queries.tolist(), tuples.difficult.tolist(), strict=True):
        expected = by_similarity(queries[query], database, near.positives[query])[1:4]
        assert [d for d in difficult if d >= 0] == expected


@pytest.mark.parametrize(("distances", "squarings"), [("squared", 1), ("squared-twice", 2)])
def test_promoted_difficult_positives_are_positives_chosen_by_the_reranking(distances, squarings):
    from test_reranking import oracle

    near, (queries, database) = neighbourhood(), descriptors()
    everything = torch.cat((queries, database))
    settings = config(rerank_neighbours=10, rerank_lambda=0.3)  # here both distances matter
    miner = Miner(near, settings.changed(rerank_distances=distances))
    tuples = miner.mine(miner.queries, queries, database, difficult="promoted")
    for query, difficult in zip(tuples.queries.tolist(), tuples.difficult.tolist(), strict=True):
        nearest = by_similarity(queries[query], database, near.positives[query])
        distance = oracle(everything, query, [QUERIES + i for i in nearest], 10, 0.3, squarings)
        order = sorted(range(len(nearest)), key=distance.__getitem__)
        rises = sorted((rank - order[rank], rank) for rank in range(len(order)) if order[rank] >= rank)
        assert [d for d in difficult if d >= 0] == [nearest[order[rank]] for _, rank in rises]


def test_the_tile_size_changes_nothing(monkeypatch):
    near, (queries, database) = neighbourhood(), descriptors()
    whole = Miner(near, config()).mine(torch.arange(1, QUERIES), queries, database, difficult="promoted")
    monkeypatch.setattr("sfrs.training.k_reciprocal.TILE_BYTES", 5000)
    monkeypatch.setattr("sfrs.training.mining.TILE_BYTES", 5000)
    tiled = Miner(near, config()).mine(torch.arange(1, QUERIES), queries, database, difficult="promoted")
    for name in ("positives", "negatives", "difficult"):
        assert torch.equal(getattr(whole, name), getattr(tiled, name))


def test_a_miner_goes_on_from_its_saved_state_with_the_same_draws():
    near, (queries, database) = neighbourhood(), descriptors()
    miner = Miner(near, config(), seed=4)
    miner.mine(miner.draw_queries(), queries, database)
    other = Miner(near, config(), seed=99)
    other.load_state(miner.state())
    order = miner.draw_queries()
    assert torch.equal(order, other.draw_queries())
    assert torch.equal(
        miner.mine(order, queries, database).negatives, other.mine(order, queries, database).negatives
    )


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    a, b, c = (Miner(neighbourhood(), config(), seed=seed) for seed in (1, 1, 2))
    orders = [miner.draw_queries() for miner in (a, b, c)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert sorted(orders[0].tolist()) == a.queries.tolist()
    assert len(a.draw_queries(5)) == 5


def test_what_cannot_be_mined_is_refused_with_the_reason():
    empty = Ragged.from_lists([[]] * 3)
    with pytest.raises(UserError, match="none of the 3 queries has a positive within 10 m"):
        Miner(Neighbourhood(empty, empty, 50), config())
    with pytest.raises(UserError, match="query 1 has only 2 database images beyond 25 m"):
        Miner(
            Neighbourhood(Ragged.from_lists([[], [0]]), Ragged.from_lists([[], list(range(48))]), 50),
            config(),
        )
    miner = Miner(neighbourhood(), config())
    with pytest.raises(ValueError, match="difficult is 'best'"):
        miner.mine(miner.queries, *descriptors(), difficult="best")
