"""Which format a path has, and its reader."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfrs.data.places.folder import folder_splits, is_place_folder, read_folder
from sfrs.data.places.gsv_cities import gsv_splits, is_gsv_cities, read_gsv_cities
from sfrs.data.places.manifest import manifest_splits, read_manifest
from sfrs.data.places.msls import is_msls, msls_splits, read_msls
from sfrs.data.places.netvlad_mat import mat_files, read_mat_split
from sfrs.data.places.sets import Places, PlacesError


@dataclass(frozen=True)
class Format:
    """One way data sets of places lie on a disk.

    Attributes:
        name: for people.
        expected: what it is recognised by, for messages.
        recognises: whether a path has it.
        splits: the splits a path holds.
        read: reads one of them.
    """

    name: str
    expected: str
    recognises: Callable[[Path], bool]
    splits: Callable[[Path], list[str]]
    read: Callable[[Path, str], Places]


FORMATS = (
    Format(
        "@ folder",
        "images/SPLIT/{database,queries}/@easting@northing@...jpg",
        is_place_folder,
        folder_splits,
        read_folder,
    ),
    Format(
        "NetVLAD .mat",
        "SET_SPLIT.mat, or such files in it, in datasets or in raw (Pittsburgh, Tokyo)",
        lambda path: bool(mat_files(path)),
        lambda path: list(mat_files(path)),
        read_mat_split,
    ),
    Format("MSLS", "train_val/CITY/{query,database} (MSLS)", is_msls, msls_splits, read_msls),
    Format(
        "GSV-Cities",
        "Dataframes/CITY.csv and Images/CITY (GSV-Cities)",
        is_gsv_cities,
        gsv_splits,
        read_gsv_cities,
    ),
    Format(
        "CSV manifest",
        "a CSV file with the columns file, role, easting, northing",
        lambda path: path.is_file(),
        manifest_splits,
        read_manifest,
    ),
)
"""The first that recognises a path reads it."""


def format_of(path: str | Path) -> Format:
    """The format of a data set.

    Raises:
        PlacesError: there is none; the message says what was looked for.
    """
    path = Path(path)
    for known in FORMATS:
        if known.recognises(path):
            return known
    what = "no data set in this folder" if path.is_dir() else "there is no such file or folder"
    expected = "\n  ".join(known.expected for known in FORMATS)
    raise PlacesError(f"{path}: {what}. Looked for:\n  {expected}")


def is_data_set(path: str | Path) -> bool:
    """Whether :func:`load_places` knows what ``path`` is."""
    return any(known.recognises(Path(path)) for known in FORMATS)


def load_places(path: str | Path, split: str = "test") -> Places:
    """Read one split of a data set.

    Args:
        path: what :data:`FORMATS` describe: a folder in the field's format
            (``images/SPLIT/{database,queries}/@easting@northing@...``), a ``.mat`` file of Pittsburgh or
            Tokyo, its folder, or the beginning of its name (``datasets/pitts30k``), the root of MSLS or
            GSV-Cities, or a CSV manifest with the columns file, role, easting, northing, optionally split.
        split: which split to read, usually ``train``, ``val`` or ``test``.

    Raises:
        PlacesError: nothing known at ``path``, no such split, no images, or a coordinate that is no number.
    """
    return format_of(path).read(Path(path), split)
