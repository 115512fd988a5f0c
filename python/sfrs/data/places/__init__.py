"""Data sets of places: which images there are and where they were taken.

One reader per format (`sfrs.data.places.formats` lists them), one result: `Places`, a database
and the queries to be located in it.
"""

from sfrs.data.places.formats import format_of, is_data_set, load_places
from sfrs.data.places.reading import Reading
from sfrs.data.places.sets import CoordinatesWarning, ImageSet, Places
from sfrs.data.tables import PlacesError

__all__ = [
    "CoordinatesWarning",
    "ImageSet",
    "Places",
    "PlacesError",
    "Reading",
    "format_of",
    "is_data_set",
    "load_places",
]
