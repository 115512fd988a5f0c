"""Data sets of places: which images there are and where they were taken.

One reader per format (:mod:`sfrs.places.folder`, :mod:`sfrs.places.manifest`), one
result: :class:`Places`, a database and the queries to be located in it.
"""

from pathlib import Path

from sfrs.places.folder import is_place_folder, read_folder
from sfrs.places.manifest import read_manifest
from sfrs.places.sets import CoordinatesWarning, ImageSet, Places, PlacesError, Ragged, within

__all__ = [
    "CoordinatesWarning",
    "ImageSet",
    "Places",
    "PlacesError",
    "Ragged",
    "is_place_folder",
    "load_places",
    "within",
]


def load_places(path: str | Path, split: str = "test") -> Places:
    """Read one split of a data set.

    Args:
        path: a folder in the field's format (``images/SPLIT/{database,queries}/@easting@northing@...``)
            or a CSV manifest with the columns file, role, easting, northing and optionally split.
        split: which split to read, usually ``train``, ``val`` or ``test``.

    Raises:
        PlacesError: nothing at ``path``, no such split, no images, or a coordinate that is no number.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path, split)
    if path.is_file():
        return read_manifest(path, split)
    raise PlacesError(
        f"{path}: there is no such file or folder. Expected a folder that holds images/{split}/database and "
        f"images/{split}/queries, or a CSV manifest with the columns file, role, easting, northing."
    )
