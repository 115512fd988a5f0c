"""Readers of folders of photographs: the field's format, two folders, and one that is split.

``ROOT/images/SPLIT/{database,queries}`` or ``ROOT/SPLIT/{database,queries,queries_v1,...}`` with names
``@easting@northing@...`` (`sfrs.data.photos.from_name`), or with positions in EXIF, in a table or on a
track.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfrs.data.photo_files import IMAGE_SUFFIXES, image_files
from sfrs.data.places.frames import frame_shots
from sfrs.data.places.hold_out import EXPECTED, held_out
from sfrs.data.places.reading import Reading, read_shots
from sfrs.data.places.sets import Places, make_places
from sfrs.data.tables import PlacesError

DATABASE, QUERIES = "database", "queries"


def is_place_folder(path: Path) -> bool:
    """Whether ``path`` holds ``images/SPLIT/database`` or ``SPLIT/database`` for some split."""
    return bool(folder_splits(path))


def folder_splits(path: Path) -> list[str]:
    """List the splits ``path`` holds, sorted; of several folders of queries, as "test/queries_v1"."""
    splits = []
    for folder in _databases(path):
        queries = _query_folders(folder.parent)
        split = folder.parent.name
        several = len(queries) > 1 or (queries and queries[0].name != QUERIES)
        splits += [f"{split}/{found.name}" for found in queries] if several else [split]
    return splits


def database_folder(path: Path, split: str) -> Path | None:
    """Return the folder of the database of a split; None if ``path`` is no place folder."""
    if not is_place_folder(path):
        return None
    return _split_folder(path, split) / DATABASE


def read_folder(path: Path, split: str, reading: Reading) -> Places:
    """Read a split's database and queries, subfolders included, files in sorted order.

    ``split`` may name a folder of queries, "test/queries_v1"; else it is ``queries``, or the only one there.
    """
    root = _split_folder(path, split)
    named = split.partition("/")[2]
    found = [folder.name for folder in _query_folders(root)]
    if not named and QUERIES not in found and len(found) > 1:
        choices = " or ".join(f"{split}/{name}" for name in found)
        raise PlacesError(f"{root}: several folders of queries. Say which: --split {choices}.")
    asked = named or (found[0] if found and QUERIES not in found else QUERIES)
    return read_two_folders(root / DATABASE, root / asked, path.resolve().name, split, reading)


def read_two_folders(database: Path, queries: Path, name: str, split: str, reading: Reading) -> Places:
    """Read the images of two folders."""
    files: dict[str, Sequence[Path]] = {}
    for role, folder in ((DATABASE, database), (QUERIES, queries)):
        if not folder.is_dir():
            here = f" {folder.parent} has to hold {DATABASE} and {QUERIES}." if folder.name == role else ""
            raise PlacesError(f"{folder}: there is no such folder.{here}")
        files[role] = image_files(folder)
        if not files[role]:
            raise PlacesError(f"{folder}: no images in it. Expected {', '.join(IMAGE_SUFFIXES)} files.")
    if reading.frames:
        return make_places(name, split, frame_shots(files, reading.frames), unit="frames")
    shots, zone = read_shots(files, reading)
    return make_places(name, split, shots, zone=zone)


def read_photo_folder(path: Path, split: str, reading: Reading) -> Places:
    """Read a folder of photographs and hold out queries as ``reading.hold_out`` says.

    Raises `PlacesError` if it does not say, unless it is lenient: then all photographs are the database.
    """
    if not (reading.hold_out or reading.lenient):
        raise PlacesError(
            f"{path}: a folder of photographs, of which none is a query. Say how to choose queries, "
            f"--hold-out time, area or every:5 ({EXPECTED}), or give two folders: --database {path} "
            "--queries FOLDER."
        )
    found, zone = read_shots({DATABASE: image_files(path)}, reading)
    shots = found[DATABASE]
    rows, queries = np.arange(len(shots)), np.arange(0)
    if reading.hold_out:
        positions = np.array([shot[1:3] for shot in shots]).reshape(-1, 2)
        known = np.flatnonzero(np.isfinite(positions).all(axis=1))
        rows, queries = held_out([shots[i].file for i in known], positions[known], reading.hold_out, split)
        rows, queries = known[rows], known[queries]
    chosen = {DATABASE: [shots[i] for i in rows], QUERIES: [shots[i] for i in queries]}
    return make_places(path.resolve().name, split, chosen, zone=zone)


def _databases(path: Path) -> list[Path]:
    found = [folder for folder in path.glob(f"images/*/{DATABASE}") if folder.is_dir()]
    # Without "images" a folder "database" says little by itself.
    found += [folder for folder in path.glob(f"*/{DATABASE}") if _query_folders(folder.parent)]
    return sorted(found, key=lambda folder: folder.parent.name)


def _query_folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.glob(f"{QUERIES}*") if folder.is_dir())


def _split_folder(path: Path, split: str) -> Path:
    name = split.partition("/")[0]
    for folder in (path / "images" / name, path / name):
        if (folder / DATABASE).is_dir() or (folder / QUERIES).is_dir():
            return folder
    raise PlacesError(
        f"{path / 'images' / name}: there is no such folder. {path} has the splits "
        f"{', '.join(folder_splits(path))}."
    )
