"""Reader of Mapillary Street-level Sequences (MSLS).

``ROOT/train_val/CITY/{query,database}`` with ``images/KEY.jpg``, ``postprocessed.csv`` (key, easting,
northing, night, ...), ``raw.csv`` (key, pano, ...) and ``subtask_index.csv`` (key, all, ...). Copenhagen
and San Francisco are the validation cities, all others of ``train_val`` the training ones. Panoramas are
left out, and of the validation cities what is not in the subtask "all". ``ROOT/test`` comes without
positions.
"""

from pathlib import Path

from sfrs.data.places.sets import Places, Shot, join_cities, make_places
from sfrs.data.tables import PlacesError, coordinates, table_rows

VALIDATION = ("cph", "sf")
ROLES = {"database": "database", "queries": "query"}
POSITIONS = "postprocessed.csv"


def is_msls(path: Path) -> bool:
    """Whether ``path`` holds cities of MSLS."""
    return any(_cities(path / part) for part in ("train_val", "test"))


def msls_splits(path: Path) -> list[str]:
    """List those of train and val of which a city is there; the test cities have no positions."""
    return [split for split in ("train", "val") if _of_split(path, split)]


def read_msls(path: Path, split: str) -> Places:
    """Read the cities of ``split`` that are there; positions are UTM metres (`join_cities`)."""
    if split == "test":
        raise PlacesError(
            f"{path}: the positions of MSLS's test cities are not published, so nothing can be scored on "
            "them here. Evaluate on Copenhagen and San Francisco: --split val."
        )
    folders = _of_split(path, split)
    if not folders:
        found = ", ".join(folder.name for folder in _cities(path / "train_val")) or "none"
        wanted = " and ".join(VALIDATION) if split == "val" else f"any but {' and '.join(VALIDATION)}"
        raise PlacesError(
            f"{path / 'train_val'}: no city of the split {split}. Expected CITY/query and CITY/database with "
            f"{POSITIONS}, for {split} {wanted}; cities found: {found}."
        )
    cities = {
        city.name: {role: _read_role(city / folder, split) for role, folder in ROLES.items()}
        for city in folders
    }
    return make_places("msls", split, join_cities(cities))


def _cities(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/database") if (path.parent / "query").is_dir())


def _of_split(path: Path, split: str) -> list[Path]:
    if split not in ("train", "val"):
        return []
    found = [city for city in _cities(path / "train_val") if (city / "database" / POSITIONS).is_file()]
    return [city for city in found if (city.name in VALIDATION) == (split == "val")]


def _read_role(folder: Path, split: str) -> list[Shot]:
    left_out = _keys(folder / "raw.csv", "pano", "true")
    subtasks = folder / "subtask_index.csv"
    if split == "val" and subtasks.is_file():
        left_out |= _keys(subtasks, "all", "false")
    shots = []
    for where, line in table_rows(folder / POSITIONS, ("key", "easting", "northing", "night")):
        key = line["key"]
        if key not in left_out:
            condition = "night" if _flag(line["night"]) == "true" else "day"
            file = folder / "images" / f"{key}.jpg"
            shots.append(Shot(file, *coordinates(where, line), key, condition))
    if not shots:
        raise PlacesError(f"{folder / POSITIONS}: it lists no image that is not a panorama.")
    return shots


def _keys(path: Path, column: str, value: str) -> set[str]:
    return {line["key"] for _, line in table_rows(path, ("key", column)) if _flag(line[column]) == value}


def _flag(text: str | None) -> str:
    return (text or "").strip().lower()
