"""Which database images may stand where in the tuple of a query, and which are right answers to it."""

from dataclasses import dataclass

from sfrs.training.config import TrainConfig
from sfrs.data.places import ImageSet, Places, Ragged, within


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
        """Positives: within ``positive_radius``, of another place id and, where images have time stamps, of
        another one. Excluded: within ``negative_radius``.
        """
        queries, database = places.queries, places.database
        near = right_images(places, config.positive_radius)
        excluded = within(queries.positions, database.positions, config.negative_radius)
        return cls(without_same_place(near, queries, database), excluded, len(database))


def right_images(places: Places, radius: float) -> Ragged:
    """For each query the database images within ``radius`` metres, but those of its own time stamp."""
    near = within(places.queries.positions, places.database.positions, radius)
    return without_same_time(near, places.queries, places.database)


def without_same_place(lists: Ragged, queries: ImageSet, database: ImageSet) -> Ragged:
    """``lists`` of database images per query without those of the query's own panorama (place id)."""
    return lists.keep(queries.place_ids[lists.rows()] != database.place_ids[lists.values])


def without_same_time(lists: Ragged, queries: ImageSet, database: ImageSet) -> Ragged:
    """``lists`` of database images per query without those of its time stamp, where images have any."""
    if queries.time_stamps is None or database.time_stamps is None:
        return lists
    return lists.keep(queries.time_stamps[lists.rows()] != database.time_stamps[lists.values])
