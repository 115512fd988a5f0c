"""Region against region: which part of a query matches which part of a database image."""

from torch import Tensor

from sfrs_ext import region_similarity
from sfrs_ext.reference import region_descriptors


def region_matches(query_quarters: Tensor, quarters: Tensor) -> Tensor:
    """Similarities of the nine regions of queries with the nine regions of database images.

    The regions of the queries, which are few, are built as descriptors; those of the database images never
    are (:func:`sfrs_ext.region_similarity`).

    Args:
        query_quarters: quarter VLADs of T queries, ``[T, 4, K, D]``, from :func:`sfrs_ext.region_vlad`.
        quarters: those of N database images, ``[N, 4, K, D]``.

    Returns:
        ``[T, N, 9, 9]``: entry ``[t, n, i, j]`` is region i of query t with region j of image n, in the order
        of ``sfrs_ext.REGIONS``. Entry ``[..., 0, 0]`` is the similarity of the whole images.
    """
    regions = region_descriptors(query_quarters).flatten(0, 1)  # [T * 9, K, D]
    return region_similarity(regions, quarters).unflatten(0, (-1, 9)).transpose(1, 2)
