"""Which format a path has, and its reader."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sfrs.data.photo_files import holds_photos
from sfrs.data.places import folder
from sfrs.data.places.gsv_cities import SPLITS, is_gsv_cities, read_gsv_cities
from sfrs.data.places.manifest import manifest_splits, read_manifest
from sfrs.data.places.msls import is_msls, msls_splits, read_msls
from sfrs.data.places.netvlad_mat import mat_files, read_mat
from sfrs.data.places.reading import Reading
from sfrs.data.places.sets import Places
from sfrs.data.tables import PlacesError


class Format(NamedTuple):
    """One way data sets of places lie on a disk; ``expected`` says in messages how it is recognised.

    ``read`` takes path, split and what the user says besides; ``fixed`` formats say everything themselves.
    """

    name: str
    expected: str
    recognises: Callable[[Path], bool]
    splits: Callable[[Path], list[str]]
    read: Callable[[Path, str, Reading], Places]
    fixed: bool = False


AT_FOLDER = "images/SPLIT/{database,queries}/@easting@northing@...jpg, or the same without images"
MAT_FILES = "SET_SPLIT.mat, or such files in it, in datasets or in raw (Pittsburgh, Tokyo)"
MSLS = "train_val/CITY/{query,database} (MSLS)"
GSV_CITIES = "Dataframes/CITY.csv and Images/CITY (GSV-Cities)"
MANIFEST = "a CSV file with the columns file, role, easting, northing"
PHOTOS = "a folder of photographs, with --hold-out"
TWO_FOLDERS = "two folders, --database and --queries"


def _fixed(read: Callable[[Path, str], Places]) -> Callable[[Path, str, Reading], Places]:
    return lambda path, split, _: read(path, split)


FORMATS = (
    Format("@ folder", AT_FOLDER, folder.is_place_folder, folder.folder_splits, folder.read_folder),
    Format(
        "NetVLAD .mat",
        MAT_FILES,
        lambda p: bool(mat_files(p)),
        lambda p: [*mat_files(p)],
        _fixed(read_mat),
        True,
    ),
    Format("MSLS", MSLS, is_msls, msls_splits, _fixed(read_msls), True),
    Format("GSV-Cities", GSV_CITIES, is_gsv_cities, lambda _: [*SPLITS], _fixed(read_gsv_cities), True),
    Format("CSV manifest", MANIFEST, Path.is_file, manifest_splits, read_manifest),
    Format("photo folder", PHOTOS, holds_photos, lambda _: [], folder.read_photo_folder),
)
"""The first that recognises a path reads it."""
MOVED_APART = ("MSLS", "GSV-Cities")
"""Formats whose positions are of no system on earth: cities that overlap are moved (`join_cities`)."""
PAIR = Format(
    "two folders",
    TWO_FOLDERS,
    Path.is_dir,
    lambda _: ["test"],
    lambda path, split, said: folder.read_two_folders(
        path, Path(said.queries), path.resolve().name, split, said
    ),
)
LONGEST_NAME = 255  # bytes of a file's name, at most
PLAIN = Reading()


def format_of(path: str | Path, reading: Reading = PLAIN) -> Format:
    """Return the format of a data set. Raises `PlacesError` if it has none, or ``reading`` says what it says
    itself.
    """
    path = Path(path)
    if reading.queries:
        return PAIR
    for known in FORMATS:
        if known.recognises(path):
            if reading.hold_out and known.name != "photo folder":
                raise PlacesError(f"{path}: {known.name} has queries of its own; leave out --hold-out.")
            said = set(reading.given()) - {"lenient", "skip_unplaced"}
            if said and known.fixed:
                flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(said))
                raise PlacesError(
                    f"{path}: {known.name} says itself where its images were taken; leave out {flags}."
                )
            return known
    what = "no data set in this folder" if path.is_dir() else "there is no such file or folder"
    expected = "\n  ".join(known.expected for known in (*FORMATS, PAIR))
    raise PlacesError(f"{path}: {what}. Looked for:\n  {expected}")


def is_data_set(path: str | Path) -> bool:
    """Whether `load_places` can read ``path``."""
    return any(known.recognises(Path(path)) for known in FORMATS)


def load_places(path: str | Path, split: str = "test", reading: Reading | None = None, **said: Any) -> Places:
    """Read one split of a data set.

    Args:
        path: a folder in the field's format (``images/SPLIT/{database,queries}/@easting@northing@...``), a
            ``.mat`` file of Pittsburgh or Tokyo, its folder, or the beginning of its name
            (``datasets/pitts30k``), the root of MSLS or GSV-Cities, a CSV manifest, or a folder of
            photographs.
        split: usually ``train``, ``val`` or ``test``.
        reading: what the path does not say; its fields can be given one by one instead, as
            ``hold_out="time"``, ``queries="walks/2024"``.

    Raises:
        PlacesError: nothing known at ``path``, no such split, no images, or a coordinate that is no number;
            images or tables are missing or wrong.
    """
    reading = reading or Reading(**said)
    if any(len(os.fsencode(name)) > LONGEST_NAME for name in (*Path(path).parts, *Path(split).parts)):
        raise PlacesError(f"{path}, split {split}: a name in it has more bytes than a file system takes.")
    return format_of(path, reading).read(Path(path), split, reading)
