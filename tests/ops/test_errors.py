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


LOGITS = torch.randn(2, 3, 4, 5)
GIVEN_LOGITS = (
    (dict(logits=None), TypeError, "exactly one of weight and logits must be given, but neither is given"),
    (dict(weight=WEIGHT), TypeError, "exactly one of weight and logits must be given, but both are given"),
    (
        dict(logits=LOGITS.mT),
        ValueError,
        r"logits is \[2, 3, 5, 4\], but must be \[2, K \+ G, 4, 5\] or \[2, 20, K \+ G\] because x is",
    ),
    (dict(logits=LOGITS.flatten(2)), ValueError, r"logits is \[2, 3, 20\], but must be"),
    (dict(logits=LOGITS.double()), TypeError, "logits is torch.float64, but must be torch.float32 because x"),
    (
        dict(ghost_clusters=3),
        ValueError,
        "ghost_clusters is 3, but must be at least 0 and less than the 3 columns of logits",
    ),
    (dict(centroids=WEIGHT[:2]), ValueError, r"centroids is \[2, 8\], but must be \[3, 8\]"),
)


@pytest.mark.parametrize("operator", ("netvlad", "region_vlad"))
@pytest.mark.parametrize(("wrong", "error", "message"), GIVEN_LOGITS)
def test_aggregation_of_given_logits_names_the_wrong_argument(operator, wrong, error, message):
    arguments = dict(x=X, logits=LOGITS) | wrong
    with pytest.raises(error, match=f"^{operator}: {message}"):
        getattr(sfrs_ext, operator)(**arguments)


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
    def aggregate(weight=WEIGHT, logits=None, centroids=None, parts=1):
        options = (parts, 0, True, True, True, False, False, False)
        return torch.ops.sfrs_ext.aggregate(X, weight, logits, centroids, None, None, *options)

    with pytest.raises(RuntimeError, match="weight has another dtype"):
        aggregate(WEIGHT.double())
    with pytest.raises(RuntimeError, match="centroids has another shape"):
        aggregate(centroids=WEIGHT[:2])
    with pytest.raises(RuntimeError, match="parts is neither 1 nor 4"):
        aggregate(parts=2)
    with pytest.raises(RuntimeError, match="not exactly one of weight and logits"):
        aggregate(logits=torch.randn(2, 20, 3))
    with pytest.raises(RuntimeError, match="logits has another shape"):
        aggregate(None, torch.randn(2, 19, 3))
    saved = aggregate(WEIGHT)
    tensors = (saved[0], X, WEIGHT, None, None, None, None, *saved[:-1])
    with pytest.raises(RuntimeError, match="gradient of an argument that is not given"):
        torch.ops.sfrs_ext.aggregate_backward(*tensors, 1, 0, True, True, True, False, 4)
