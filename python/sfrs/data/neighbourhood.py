"""Which database images may stand where in the tuple of a query, and which are right answers to it."""

from dataclasses import dataclass

from sfrs.data.coordinates import within
from sfrs.data.places import Places
from sfrs.data.ragged import Ragged


@dataclass(frozen=True)
class Neighbourhood:
    """Database images by where they may stand in a query's tuple."""

    positives: Ragged  # for each query the database images that show its place
    excluded: Ragged  # for each query the database images that may not be its negatives
    database: int  # number of database images

    @classmethod
    def of_places(cls, places: Places, positive_radius: float, negative_radius: float) -> "Neighbourhood":
        """Find the neighbours of every query, by radii in metres.

        Positives: within ``positive_radius``, of another place id and, where images have time stamps, of
        another one. Excluded: within ``negative_radius``.
        """
        queries, database = places.queries, places.database
        near = right_images(places, positive_radius)
        excluded = within(queries.positions, database.positions, negative_radius)
        other_place = queries.place_ids[near.rows()] != database.place_ids[near.values]
        return cls(near.keep(other_place), excluded, len(database))


def right_images(places: Places, radius: float) -> Ragged:
    """List for each query the database images within ``radius`` metres, but those of its own time stamp."""
    queries, database = places.queries, places.database
    near = within(queries.positions, database.positions, radius)
    if queries.time_stamps is None or database.time_stamps is None:
        return near
    return near.keep(queries.time_stamps[near.rows()] != database.time_stamps[near.values])
