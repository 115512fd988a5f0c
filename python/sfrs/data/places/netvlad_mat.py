"""Reader of the ``.mat`` files of NetVLAD: Pittsburgh 30k and 250k, Tokyo 24/7, Tokyo Time Machine.

A file holds a structure ``dbStruct``, read by the position of its fields: 1 database names, 2 UTM 2 x N,
3 query names, 4 UTM 2 x M. Tokyo Time Machine has time stamps as fields 3 and 6, so that queries are fields
4 and 5. The images lie in folders next to the file or next to its folder (`image_roots`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfrs.data.places.image_folders import find_images
from sfrs.data.places.sets import Places, Shot, make_places
from sfrs.data.tables import PlacesError
from sfrs.runtime.array_files import ArrayFileError, read_arrays

SPLITS = ("train", "val", "test")
FOLDERS = {"pitts": ("pitts",), "tokyo247": ("tokyo247",), "tokyotm": ("tokyotm", "tokyotimemachine")}
"""Beginning of a set's name -> beginnings of the names of image folders; small letters, without _."""

QUERY_FOLDERS = ("queries", "queries_real", "query", "247query_subset_v2")
CONDITIONS = ("day", "sunset", "night")  # query i of Tokyo 24/7 was taken under CONDITIONS[i % 3]
CUTOUT = re.compile(r"(_pitch\d+_yaw\d+|_\d{3}_\d{3})\.\w+$")
"""The direction of view, which follows the panorama in the names of Pittsburgh and of the Tokyo sets."""


class Listed(NamedTuple):
    """Images of a ``.mat`` file: names, UTM in metres, and time stamps, "" where it has none."""

    names: list[str]
    utm: list[list[float]]
    stamps: list[str]


def set_and_split(path: Path) -> tuple[str, str]:
    """Split ``pitts30k_train.mat`` into ("pitts30k", "train"); ``tokyo247.mat`` is a test set."""
    name, _, split = path.stem.rpartition("_")
    return (name, split) if split in SPLITS else (path.stem, "test")


def mat_files(path: Path) -> dict[str, list[Path]]:
    """Return the ``.mat`` files that ``path`` may mean, by split: a file; those in a folder, or in its
    ``datasets`` or ``raw``; or by the beginning of their names, ``datasets/pitts30k``.
    """
    if path.is_dir():
        folders = (path, path / "datasets", path / "raw")
        files = next((mats for folder in folders if (mats := sorted(folder.glob("*.mat")))), [])
    elif path.is_file():
        files = [path] if path.suffix.lower() == ".mat" else []
    else:
        files = [f for s in SPLITS if (f := path.with_name(f"{path.name}_{s}.mat")).is_file()]
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(set_and_split(file)[1], []).append(file)
    return {split: found[split] for split in SPLITS if split in found}


def read_mat(path: Path, split: str) -> Places:
    """Read the file of ``split`` that ``path`` means (`mat_files`)."""
    files = mat_files(path)
    if split not in files:
        beginning = path.with_name(set_and_split(path)[0]) if path.is_file() else path / "SET"
        raise PlacesError(
            f"{path}: no split {split}, it has {', '.join(files)}. Ask for that with --split, or give the "
            f"beginning of the name, {beginning}, where {beginning}_{split}.mat is there."
        )
    if len(files[split]) > 1:
        beginnings = ", ".join(str(file.with_name(set_and_split(file)[0])) for file in files[split])
        raise PlacesError(f"{path}: several data sets have the split {split}. Give one of {beginnings}.")
    return _places_of(files[split][0], split)


def list_mat(path: Path) -> tuple[Listed, Listed]:
    """Read the database and the queries that ``dbStruct`` of a ``.mat`` file lists."""
    try:
        struct = read_arrays(path, "dbStruct").get("dbStruct")
    except ArrayFileError as error:
        raise PlacesError(str(error)) from error
    if not isinstance(struct, dict) or len(struct) < 5:
        raise PlacesError(f"{path}: no structure dbStruct with at least five fields in it.")
    fields = list(struct.values())
    # Names come as cells (lists): time stamps or the names of the queries follow the database's UTM.
    if not isinstance(fields[3], list) and len(fields) > 6:
        return _listed(path, fields, 1, stamps=3), _listed(path, fields, 4, stamps=6)
    return _listed(path, fields, 1), _listed(path, fields, 3)


def image_roots(path: Path) -> Iterator[Path]:
    """Yield folders that may hold images: named after the set, next to the file or its folder; then these."""
    name = set_and_split(path)[0].lower()
    known = next((names for start, names in FOLDERS.items() if name.startswith(start)), (name,))
    around = (path.absolute().parent, path.absolute().parent.parent)
    for folder in around:
        for child in sorted(folder.iterdir()):
            if child.name.lower().replace("_", "").startswith(known) and child.is_dir():
                yield child
    yield from around


def _places_of(path: Path, split: str) -> Places:
    (database, queries), name = list_mat(path), set_and_split(path)[0]
    roots = list(image_roots(path))
    folders = [folder for root in roots for folder in (root / "images", root)]
    database_folder, database_files = find_images(database.names, folders, path, "database")
    stamped = any(queries.stamps)
    if not stamped:
        # Names of queries repeat those of the database in Pittsburgh, so its folder is none of theirs.
        folders = [folder for root in roots for folder in (*(root / q for q in QUERY_FOLDERS), root)]
        folders = [folder for folder in folders if folder != database_folder]
    _, query_files = find_images(queries.names, folders, path, "queries")
    shots = _shots(database, database_files, panoramas=True)
    # Time stamps come with queries that are cut from panoramas of the database. Without, a query of the
    # same name is another recording.
    asked = _shots(queries, query_files, panoramas=stamped)
    if name.lower().startswith("tokyo247") and len(asked) % len(CONDITIONS) == 0:
        asked = [shot._replace(condition=CONDITIONS[i % 3]) for i, shot in enumerate(asked)]
    return make_places(name, split, {"database": shots, "queries": asked})


def _shots(listed: Listed, files: list[Path], panoramas: bool) -> list[Shot]:
    shots = []
    for file, name, (east, north), stamp in zip(files, *listed, strict=True):
        cut = CUTOUT.search(name) if panoramas else None
        shots.append(Shot(file, east, north, name[: cut.start()] if cut else "", time_stamp=stamp))
    return shots


def _listed(path: Path, fields: list, first: int, stamps: int | None = None) -> Listed:
    cells = fields[first] if isinstance(fields[first], list) else []
    names: list[Any] = [cell[0] if isinstance(cell, list) and len(cell) == 1 else cell for cell in cells]
    if not names or not all(isinstance(name, str) for name in names):
        raise PlacesError(f"{path}: field {first} of dbStruct holds no file names.")
    count = len(names)
    utm = _numbers(fields[first + 1])
    if utm.shape != (2, count) or not np.isfinite(utm).all():
        raise PlacesError(
            f"{path}: field {first + 1} of dbStruct is {list(utm.shape)} {utm.dtype}; expected finite UTM "
            f"coordinates [2, {count}] of {count} images."
        )
    if stamps is None:
        return Listed(names, utm.T.astype(np.float64).tolist(), [""] * count)
    found = _numbers(fields[stamps])
    if found.size != count:
        raise PlacesError(
            f"{path}: field {stamps} of dbStruct is {list(found.shape)} {found.dtype}; "
            f"expected time stamps of {count} images."
        )
    return Listed(
        names, utm.T.astype(np.float64).tolist(), [f"{float(stamp):.17g}" for stamp in found.ravel()]
    )


def _numbers(field: object) -> np.ndarray:
    """Return a field that is an array of real numbers, else an empty array."""
    if isinstance(field, np.ndarray) and field.dtype.kind in "fiu":
        return field
    return np.empty(0, dtype=object)
