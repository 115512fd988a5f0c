"""Which database images may stand where in the tuple of a query: by position and by place."""

from dataclasses import dataclass

import numpy as np

from sfrs.config import TrainConfig
from sfrs.places import ImageSet, Places, Ragged, within


@dataclass(frozen=True)
class Neighbourhood:
    """Which database images may stand where in a query's tuple.

    Attributes:
        positives: for each query the database images that show its place.
        excluded: for each query the database images that may not be its negatives.
        database: number of database images.
    """

    positives: Ragged
    excluded: Ragged
    database: int

    @classmethod
    def of_places(cls, places: Places, config: TrainConfig) -> "Neighbourhood":
        """Positives: within ``positive_radius``, another place id. Excluded: within ``negative_radius``."""
        queries, database = places.queries, places.database
        near = within(queries.positions, database.positions, config.positive_radius)
        excluded = within(queries.positions, database.positions, config.negative_radius)
        return cls(without_same_place(near, queries, database), excluded, len(database))


def without_same_place(lists: Ragged, queries: ImageSet, database: ImageSet) -> Ragged:
    """``lists`` of database images per query without those of the query's own panorama (place id)."""
    owner = lists.rows()
    keep = queries.place_ids[owner] != database.place_ids[lists.values]
    counts = np.bincount(owner[keep], minlength=len(lists))
    return Ragged(lists.values[keep], np.concatenate(([0], np.cumsum(counts))))
