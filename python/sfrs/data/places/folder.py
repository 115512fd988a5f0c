"""Reader of the field's folder format.

``ROOT/images/{train,val,test}/{database,queries}/@easting@northing@...@.jpg``: fields 1 and 2 of
``name.split("@")`` are UTM easting and northing in metres, and only these two are required. The full form is
``@east@north@zone@letter@lat@lon@pano@tile@heading@pitch@roll@height@YYYYMMDD_hhmmss@note@.jpg``.
"""

from pathlib import Path

from sfrs.data.places.assembly import Shot, make_places
from sfrs.data.places.sets import Places, PlacesError
from sfrs.data.places.tables import finite_pair

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ROLES = ("database", "queries")
PANORAMA_FIELD = 7
FULL_FORM_FIELDS = 16


def is_place_folder(path: Path) -> bool:
    """Whether ``path`` holds ``images/SPLIT/database`` for some split."""
    return any((path / "images").glob("*/database"))


def folder_splits(path: Path) -> list[str]:
    """The splits ``path`` holds, sorted."""
    return sorted(p.name for p in (path / "images").glob("*") if (p / "database").is_dir())


def read_folder(path: Path, split: str) -> Places:
    """Read ``path/images/split/{database,queries}``, subfolders included, files in sorted order.

    Raises:
        PlacesError: a folder is missing or empty, or a file name carries no two numbers.
    """
    root = path / "images" / split
    if not root.is_dir():
        found = sorted(p.name for p in (path / "images").glob("*") if p.is_dir())
        raise PlacesError(
            f"{root}: there is no such folder. "
            + (
                f"{path} has the splits {', '.join(found)}."
                if found
                else f"Expected it to hold {' and '.join(ROLES)}."
            )
        )
    shots = {}
    for role in ROLES:
        folder = root / role
        if not folder.is_dir():
            raise PlacesError(f"{folder}: there is no such folder. {root} has to hold {' and '.join(ROLES)}.")
        files = image_files(folder)
        if not files:
            raise PlacesError(f"{folder}: no images in it. Expected {', '.join(IMAGE_SUFFIXES)} files.")
        shots[role] = [_parse_name(file) for file in files]
    return make_places(path.resolve().name, split, shots["database"], shots["queries"])


def image_files(folder: Path) -> list[Path]:
    """All images below ``folder`` by suffix in any case, sorted by their path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _parse_name(file: Path) -> Shot:
    fields = file.name.split("@")
    position = finite_pair(fields[1], fields[2]) if len(fields) > 2 else None
    if position is None:
        raise PlacesError(
            f"{file}: fields 1 and 2 between the @ signs are not easting and northing in metres. "
            "Expected a name such as @0386531.34@6174119.45@.jpg"
        )
    panorama = fields[PANORAMA_FIELD] if len(fields) == FULL_FORM_FIELDS else ""
    return Shot(file, *position, panorama)
