"""Which part of a query matches which part of an image."""

import torch

from sfrs.retrieval.region_rerank import region_matches
from sfrs_ext.reference import region_descriptors


def test_every_region_is_compared_with_every_region():
    torch.manual_seed(0)
    queries, images = torch.randn(2, 4, 5, 8), torch.randn(3, 4, 5, 8)
    expected = torch.einsum("tikd,njkd->tnij", region_descriptors(queries), region_descriptors(images))
    torch.testing.assert_close(region_matches(queries, images), expected)


def test_an_image_matches_itself_region_by_region():
    torch.manual_seed(0)
    quarters = torch.randn(1, 4, 5, 8)
    torch.testing.assert_close(region_matches(quarters, quarters)[0, 0].diagonal(), torch.ones(9))


def test_regions_whose_quarters_cancel_match_nothing_on_either_side():
    torch.manual_seed(0)
    quarters = torch.randn(2, 4, 5, 8)
    quarters[:, 3] = -quarters[:, 0] - quarters[:, 1] - quarters[:, 2]  # the whole image cancels
    matches = region_matches(quarters, quarters)
    assert not matches[..., 0, :].any() and not matches[..., :, 0].any()
    assert matches[..., 1:, 1:].ne(0).all()
    torch.testing.assert_close(matches[0, 0].diagonal()[1:], torch.ones(8))
