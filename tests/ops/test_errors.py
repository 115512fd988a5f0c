"""Wrong arguments are refused by name, with what came and what was expected."""

import pytest
import torch

import sfrs_ext

X, WEIGHT = torch.randn(2, 8, 4, 5), torch.randn(3, 8)
QUERY, QUARTERS = torch.randn(2, 3, 8), torch.randn(2, 5, 4, 3, 8)

AGGREGATION = (
    (dict(x=[1]), TypeError, "x must be a torch.Tensor, but is list"),
    (dict(x=X.int()), TypeError, "x must be float32, float64, bfloat16 or float16, but is torch.int32"),
    (dict(x=X[0, 0]), ValueError, r"x is \[4, 5\], but must be a map \[B, D, H, W\]"),
    (dict(x=X[:, :0], weight=WEIGHT[:, :0]), ValueError, "x is .*, but must have D of at least 1"),
    (dict(weight=WEIGHT[:, :6]), ValueError, r"weight is \[3, 6\], but x has D = 8"),
    (dict(weight=WEIGHT[0]), ValueError, r"weight is \[8\], but must be \[K \+ ghost_clusters, D\]"),
    (dict(weight=WEIGHT.double()), TypeError, "weight is torch.float64, but must be torch.float32 because x"),
    (dict(weight=WEIGHT.to("meta")), ValueError, "weight is on meta, but x is on cpu"),
    (
        dict(ghost_clusters=3),
        ValueError,
        "ghost_clusters is 3, but must be at least 0 and less than the 3 rows",
    ),
    (dict(ghost_clusters=-1), ValueError, "ghost_clusters is -1"),
    (dict(centroids=WEIGHT[:2]), ValueError, r"centroids is \[2, 8\], but must be \[3, 8\]"),
    (dict(bias=torch.randn(2)), ValueError, r"bias is \[2\], but must be \[3\]"),
    (dict(mask=torch.rand(2, 5, 4)), ValueError, r"mask is \[2, 5, 4\], but must be \[2, 4, 5\]"),
)


@pytest.mark.parametrize("operator", ("netvlad", "region_vlad"))
@pytest.mark.parametrize(("wrong", "error", "message"), AGGREGATION)
def test_aggregation_names_the_wrong_argument(operator, wrong, error, message):
    arguments = dict(x=X, weight=WEIGHT) | wrong
    with pytest.raises(error, match=f"^{operator}: {message}"):
        getattr(sfrs_ext, operator)(**arguments)


def test_regions_of_tokens_are_refused():
    with pytest.raises(ValueError, match=r"region_vlad: x is \[2, 8, 20\], but must be a map \[B, D, H, W\]"):
        sfrs_ext.region_vlad(X.flatten(2), WEIGHT)


def test_a_mask_of_tokens_has_their_shape():
    tokens = X.flatten(2).transpose(1, 2)
    with pytest.raises(ValueError, match=r"netvlad: mask is \[2, 19\], but must be \[2, 20\]"):
        sfrs_ext.netvlad(tokens, WEIGHT, mask=torch.rand(2, 19))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    (
        (dict(query=None), TypeError, "query must be a torch.Tensor, but is NoneType"),
        (dict(query=QUERY.long()), TypeError, "query must be float32"),
        (dict(query=QUERY.double()), TypeError, "quarters is torch.float32, but query is torch.float64"),
        (dict(query=QUERY.to("meta")), ValueError, "quarters is on cpu, but query is on meta"),
        (
            dict(quarters=QUARTERS[:, :, :3]),
            ValueError,
            r"quarters is \[2, 5, 3, 3, 8\], but must be \[T, G, 4",
        ),
        (
            dict(query=QUERY[..., :7]),
            ValueError,
            r"query is \[2, 3, 7\], but must be \[T, 3, 8\] or \[T, 24\]",
        ),
        (dict(query=QUERY[:1]), ValueError, "a list for each of 2 queries, but query has 1 rows"),
    ),
)
def test_region_similarity_names_the_wrong_argument(wrong, error, message):
    arguments = dict(query=QUERY, quarters=QUARTERS) | wrong
    with pytest.raises(error, match=f"^region_similarity: .*{message}"):
        sfrs_ext.region_similarity(**arguments)


def test_direct_calls_of_the_raw_operators_cannot_read_foreign_memory():
    with pytest.raises(RuntimeError, match="weight has another dtype"):
        torch.ops.sfrs_ext.aggregate(X, WEIGHT.double(), None, None, None, 1, 0, True, True, True, False)
    with pytest.raises(RuntimeError, match="centroids has another shape"):
        torch.ops.sfrs_ext.aggregate(X, WEIGHT, WEIGHT[:2], None, None, 1, 0, True, True, True, False)
    with pytest.raises(RuntimeError, match="regions is neither 1 nor 4"):
        torch.ops.sfrs_ext.aggregate(X, WEIGHT, None, None, None, 2, 0, True, True, True, False)
