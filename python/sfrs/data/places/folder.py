"""Reader of the field's folder format.

``ROOT/images/{train,val,test}/{database,queries}/@easting@northing@...@.jpg``: fields 1 and 2 of
``name.split("@")`` are UTM easting and northing in metres, and only these two are required. The full form is
``@east@north@zone@letter@lat@lon@pano@tile@heading@pitch@roll@height@YYYYMMDD_hhmmss@note@.jpg``.
"""

from pathlib import Path

from sfrs.data.coordinates import one_system, zone_of_band
from sfrs.data.images import IMAGE_SUFFIXES, image_files
from sfrs.data.places.sets import Places, PlacesError, Shot, make_places, positions_of
from sfrs.data.places.tables import finite_pair
from sfrs.runtime.errors import UserError

ROLES = ("database", "queries")
PANORAMA_FIELD = 7
ZONE_FIELD, BAND_FIELD = 3, 4
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
    return make_places(path.resolve().name, split, _in_one_system(shots))


def _shot(file: Path) -> Shot:
    fields = file.name.split("@")
    position = finite_pair(fields[1], fields[2]) if len(fields) > 2 else None
    if position is None:
        raise PlacesError(
            f"{file}: fields 1 and 2 between the @ signs are not easting and northing in metres. "
            "Expected a name such as @0386531.34@6174119.45@.jpg"
        )
    return Shot(file, *position, fields[PANORAMA_FIELD] if len(fields) == FULL_FORM_FIELDS else "")


def zone_of_name(file: Path) -> str:
    """Read the UTM zone of a name in the full form; "" where it does not say one.

    Raises `UserError` if there is no such zone.
    """
    fields = file.name.split("@")
    if len(fields) != FULL_FORM_FIELDS or not fields[ZONE_FIELD].strip() or not fields[BAND_FIELD].strip():
        return ""
    try:
        return zone_of_band(fields[ZONE_FIELD], fields[BAND_FIELD])
    except UserError as error:
        raise PlacesError(f"{file}: {error}") from None


def _in_one_system(shots: dict[str, list[Shot]]) -> dict[str, list[Shot]]:
    """Project the positions of names in several UTM zones into one."""
    every = [shot for role in ROLES for shot in shots[role]]
    zones = [zone_of_name(shot.file) for shot in every]
    if len(set(zones) - {""}) < 2:
        return shots
    moved = one_system(positions_of(every), zones).tolist()
    every = [shot._replace(easting=e, northing=n) for shot, (e, n) in zip(every, moved, strict=True)]
    first = len(shots[ROLES[0]])
    return {ROLES[0]: every[:first], ROLES[1]: every[first:]}
