"""Re-ranking against the list-based algorithm of Zhong et al., written here slowly and literally."""

import math

import pytest
import torch

from sfrs.training.k_reciprocal import nearest_neighbours, promoted, reranked_distances


def oracle(features, query, candidates, k1, lambda_value, squarings=1):
    """Re-ranking distances of one query, one image at a time; Euclidean distances are squared so often."""
    n = len(features)
    x = features.tolist()
    squared = [[math.dist(x[i], x[j]) ** (2**squarings) for j in range(n)] for i in range(n)]
    d = [[squared[i][j] / max(squared[i]) for j in range(n)] for i in range(n)]
    ranks = [sorted(range(n), key=lambda j, i=i: (j != i, squared[i][j])) for i in range(n)]

    def reciprocal(i, k):
        return [j for j in ranks[i][: k + 1] if i in ranks[j][: k + 1]]

    def weights(i):
        core = reciprocal(i, k1)
        members = set(core)
        for j in core:
            own = reciprocal(j, round(k1 / 2))
            if len(set(own) & set(core)) > 2 / 3 * len(own):
                members |= set(own)
        total = sum(math.exp(-d[i][j]) for j in members)
        return {j: math.exp(-d[i][j]) / total for j in members}

    mine = weights(query)
    result = []
    for candidate in candidates:
        theirs = weights(candidate)
        everyone = mine.keys() | theirs.keys()
        least = sum(min(mine.get(j, 0), theirs.get(j, 0)) for j in everyone)
        most = sum(max(mine.get(j, 0), theirs.get(j, 0)) for j in everyone)
        result.append((1 - lambda_value) * (1 - least / most) + lambda_value * d[query][candidate])
    return result


def clustered_features(count, dim, clusters, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, dim, generator=generator, dtype=torch.float64)
    own = torch.arange(count) % clusters
    noise = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(centres[own] + 0.7 * noise, dim=1)


@pytest.mark.parametrize("squarings", [1, 2])
@pytest.mark.parametrize(("k1", "count", "clusters"), [(20, 120, 6), (5, 60, 9), (6, 50, 3), (20, 12, 2)])
def test_distances_are_those_of_the_list_based_algorithm(k1, count, clusters, squarings):
    features = clustered_features(count, 8, clusters, seed=k1)
    queries = torch.tensor([3, 0, 7])
    candidates = torch.stack(
        [torch.arange(8, 12), torch.tensor([5, 1, -1, -1]), torch.tensor([11, 3, 2, -1])]
    )
    actual = reranked_distances(features, queries, candidates, k1=k1, lambda_value=0.1, power=2**squarings)
    for row, query in enumerate(queries.tolist()):
        asked = [c for c in candidates[row].tolist() if c >= 0]
        expected = oracle(features, query, asked, k1, 0.1, squarings)
        torch.testing.assert_close(actual[row, : len(asked)], torch.tensor(expected, dtype=torch.float64))
        assert actual[row, len(asked) :].isinf().all()


def test_the_tile_size_changes_nothing(monkeypatch):
    features = clustered_features(70, 8, 5, seed=1)
    queries, candidates = torch.arange(10), torch.arange(10, 60).view(10, 5)
    whole = reranked_distances(features, queries, candidates, k1=7)
    monkeypatch.setattr("sfrs.training.k_reciprocal.TILE_BYTES", 2000)
    tiled = reranked_distances(features, queries, candidates, k1=7)
    torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-14)


def test_an_image_is_its_own_first_neighbour_even_among_copies():
    features = torch.nn.functional.normalize(torch.ones(6, 4), dim=1)
    assert nearest_neighbours(features, 3).images[:, 0].tolist() == list(range(6))


def test_neighbours_carry_their_similarity_and_the_furthest_distance():
    features = clustered_features(40, 8, 4, seed=2)
    found = nearest_neighbours(features, 5)
    products = features @ features.T
    torch.testing.assert_close(found.similarity[:, 1:], products.gather(1, found.images[:, 1:]))
    torch.testing.assert_close(found.furthest, 2 - 2 * products.amin(dim=1))
    others = products.fill_diagonal_(-1).topk(5, dim=1).values
    torch.testing.assert_close(found.similarity[:, 1:], others)


def test_an_only_image_is_its_own_neighbour_and_candidate():
    features = torch.nn.functional.normalize(torch.ones(1, 4), dim=1)
    twice = reranked_distances(features, torch.tensor([0]), torch.tensor([[0, -1]]), k1=3, power=4)
    distances = reranked_distances(features, torch.tensor([0]), torch.tensor([[0, -1]]), k1=3)
    assert torch.equal(twice, distances)
    assert distances[0, 0] < 1e-6
    assert distances[0, 1].isinf()


def test_promotion_takes_those_that_rose_most_first_then_those_that_stayed():
    # Candidates by feature rank 0..5; re-ranked order is 0, 3, 5, 1, 2, 4: 3 rose by two, 5 by three.
    distances = torch.tensor([[0.1, 0.4, 0.5, 0.2, 0.6, 0.3]])
    assert promoted(distances, 10).tolist() == [[5, 3, 0, -1, -1, -1]]
    assert promoted(distances, 2).tolist() == [[5, 3]]


def test_promotion_ignores_missing_candidates_and_keeps_an_only_one():
    inf = torch.inf
    assert promoted(torch.tensor([[0.5, inf, inf], [inf, inf, inf]]), 2).tolist() == [[0, -1], [-1, -1]]


def test_promotion_agrees_with_the_rule_on_random_orders():
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(50, 20, generator=generator)
    chosen = promoted(distances, 10)
    for row in range(50):
        order = sorted(range(20), key=distances[row].tolist().__getitem__)
        rises = [(order[rank] - rank, rank, order[rank]) for rank in range(20)]
        expected = [c for rise, rank, c in sorted(rises, key=lambda r: (-r[0], r[1])) if rise >= 0][:10]
        assert [c for c in chosen[row].tolist() if c >= 0] == expected
