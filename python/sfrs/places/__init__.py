"""Data sets of places: which images there are and where they were taken.

One reader per format (:mod:`sfrs.places.formats` lists them), one result: :class:`Places`, a database and the
queries to be located in it.
"""

from sfrs.places.folder import is_place_folder
from sfrs.places.formats import format_of, is_data_set, load_places
from sfrs.places.sets import CoordinatesWarning, ImageSet, Places, PlacesError, Ragged, within

__all__ = [
    "CoordinatesWarning",
    "ImageSet",
    "Places",
    "PlacesError",
    "Ragged",
    "format_of",
    "is_data_set",
    "is_place_folder",
    "load_places",
    "within",
]
