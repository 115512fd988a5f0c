"""Reader of GSV-Cities.

``ROOT/Dataframes/CITY.csv`` (place_id, year, month, northdeg, city_id, lat, lon, panoid) and
``ROOT/Images/CITY/CITY_PLACE_YEAR_MONTH_NORTHDEG_LAT_LON_PANOID.jpg``, the place with 7, the month with 2
and the bearing with 3 digits.

The data set has no queries and no splits of its own. Here the newest image of every place (by year, month and
name) is its query and the others are the database; places whose number divides by 20 are validation, all
others training. Places lie at least 100 m apart, so the two share none. There is no test split.
"""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from sfrs.data.coordinates import to_metres
from sfrs.data.places.image_folders import find_images
from sfrs.data.places.sets import Places, Shot, Shots, join_cities, make_places
from sfrs.data.tables import PlacesError, table_rows
from sfrs.runtime.errors import UserError

COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
SPLITS = ("train", "val")
VALIDATION_EVERY = 20


class _Row(NamedTuple):
    """A line of a city's table; rows of one place sort by age."""

    place: int
    year: int
    month: int
    name: str
    latitude: float
    longitude: float
    panorama: str


def is_gsv_cities(path: Path) -> bool:
    """Whether ``path`` holds tables and images of GSV-Cities."""
    return (path / "Images").is_dir() and any((path / "Dataframes").glob("*.csv"))


def read_gsv_cities(path: Path, split: str) -> Places:
    """Read the places of ``split`` of all cities that have a table and an image folder.

    Positions are UTM metres, each city in the zone of its first image (`join_cities`).
    """
    if split not in SPLITS:
        raise PlacesError(
            f"{path}: GSV-Cities is made for training and read as the splits train and val; there is no "
            f"{split}. Evaluate on another data set, such as Pittsburgh or MSLS."
        )
    tables = [t for t in sorted((path / "Dataframes").glob("*.csv")) if (path / "Images" / t.stem).is_dir()]
    if not tables:
        raise PlacesError(f"{path}: none of the tables in Dataframes has a folder of its name in Images.")
    cities = {table.stem: _read_city(path, table, split) for table in tables}
    cities = {name: city for name, city in cities.items() if city["queries"]}
    if not cities:
        raise PlacesError(f"{path / 'Dataframes'}: no place with at least two images in the split {split}.")
    return make_places("gsv_cities", split, join_cities(cities))


def _read_city(path: Path, table: Path, split: str) -> Shots:
    places: dict[int, list[_Row]] = defaultdict(list)
    for where, line in table_rows(table, COLUMNS):
        row = _parse_row(where, line)
        if (row.place % VALIDATION_EVERY == 0) == (split == "val"):
            places[row.place].append(row)
    database, queries = [], []
    for place in sorted(places):
        *older, newest = sorted(places[place])
        # An only image has nothing to be found by; it can still be a negative.
        (queries if older else database).append(newest)
        database += older
    if not queries:
        return {"database": [], "queries": []}
    rows = database + queries
    _, files = find_images([row.name for row in rows], [path / "Images" / table.stem], table, "places")
    try:
        metres = to_metres([(row.latitude, row.longitude) for row in rows])[0].tolist()
    except UserError as error:
        raise PlacesError(f"{table}: {error}") from None
    shots = [Shot(f, x, y, row.panorama) for f, (x, y), row in zip(files, metres, rows, strict=True)]
    return {"database": shots[: len(database)], "queries": shots[len(database) :]}


def _parse_row(where: str, line: dict[str, str]) -> _Row:
    try:
        place, year, month, bearing = (int(line[key]) for key in ("place_id", "year", "month", "northdeg"))
        latitude, longitude = float(line["lat"]), float(line["lon"])
    except (TypeError, ValueError):
        values = ", ".join(f"{key} {line[key]!r}" for key in COLUMNS if key not in ("city_id", "panoid"))
        raise PlacesError(f"{where}: {values}; expected numbers.") from None
    name = (
        f"{line['city_id']}_{place:07d}_{year:04d}_{month:02d}_{bearing:03d}_{line['lat']}_{line['lon']}_"
        f"{line['panoid']}.jpg"
    )
    return _Row(place, year, month, name, latitude, longitude, line["panoid"])
