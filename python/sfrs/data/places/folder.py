"""Reader of the field's folder format.

``ROOT/images/{train,val,test}/{database,queries}/@easting@northing@...@.jpg``: fields 1 and 2 of
``name.split("@")`` are UTM easting and northing in metres, and only these two are required. The full form is
``@east@north@zone@letter@lat@lon@pano@tile@heading@pitch@roll@height@YYYYMMDD_hhmmss@note@.jpg``.
"""

from pathlib import Path

from sfrs.data.images import IMAGE_SUFFIXES, image_files
from sfrs.data.places.sets import Places, PlacesError, Shot, make_places
from sfrs.data.places.tables import finite_pair

ROLES = ("database", "queries")
PANORAMA_FIELD = 7
FULL_FORM_FIELDS = 16


def is_place_folder(path: Path) -> bool:
    """Whether ``path`` holds ``images/SPLIT/database`` for some split."""
    return bool(folder_splits(path))


def folder_splits(path: Path) -> list[str]:
    """List the splits ``path`` holds, sorted."""
    return sorted(p.parent.name for p in (path / "images").glob("*/database") if p.is_dir())


def read_folder(path: Path, split: str) -> Places:
    """Read ``path/images/split/{database,queries}``, subfolders included, files in sorted order."""
    root = path / "images" / split
    if not root.is_dir():
        raise PlacesError(
            f"{root}: there is no such folder. {path} has the splits {', '.join(folder_splits(path))}."
        )
    shots = {}
    for role in ROLES:
        folder = root / role
        if not folder.is_dir():
            raise PlacesError(f"{folder}: there is no such folder. {root} has to hold {' and '.join(ROLES)}.")
        shots[role] = [_shot(file) for file in image_files(folder)]
        if not shots[role]:
            raise PlacesError(f"{folder}: no images in it. Expected {', '.join(IMAGE_SUFFIXES)} files.")
    return make_places(path.resolve().name, split, shots)


def _shot(file: Path) -> Shot:
    fields = file.name.split("@")
    position = finite_pair(fields[1], fields[2]) if len(fields) > 2 else None
    if position is None:
        raise PlacesError(
            f"{file}: fields 1 and 2 between the @ signs are not easting and northing in metres. "
            "Expected a name such as @0386531.34@6174119.45@.jpg"
        )
    return Shot(file, *position, fields[PANORAMA_FIELD] if len(fields) == FULL_FORM_FIELDS else "")
