"""Which format a path has, and its reader."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sfrs.data.places.folder import folder_splits, is_place_folder, read_folder
from sfrs.data.places.gsv_cities import SPLITS, is_gsv_cities, read_gsv_cities
from sfrs.data.places.manifest import manifest_splits, read_manifest
from sfrs.data.places.msls import is_msls, msls_splits, read_msls
from sfrs.data.places.netvlad_mat import mat_files, read_mat
from sfrs.data.places.sets import Places, PlacesError


class Format(NamedTuple):
    """One way data sets of places lie on a disk; ``expected`` says in messages how it is recognised."""

    name: str
    expected: str
    recognises: Callable[[Path], bool]
    splits: Callable[[Path], list[str]]
    read: Callable[[Path, str], Places]


AT_FOLDER = "images/SPLIT/{database,queries}/@easting@northing@...jpg"
MAT_FILES = "SET_SPLIT.mat, or such files in it, in datasets or in raw (Pittsburgh, Tokyo)"
MSLS = "train_val/CITY/{query,database} (MSLS)"
GSV_CITIES = "Dataframes/CITY.csv and Images/CITY (GSV-Cities)"
MANIFEST = "a CSV file with the columns file, role, easting, northing"

FORMATS = (
    Format("@ folder", AT_FOLDER, is_place_folder, folder_splits, read_folder),
    Format("NetVLAD .mat", MAT_FILES, lambda p: bool(mat_files(p)), lambda p: [*mat_files(p)], read_mat),
    Format("MSLS", MSLS, is_msls, msls_splits, read_msls),
    Format("GSV-Cities", GSV_CITIES, is_gsv_cities, lambda _: [*SPLITS], read_gsv_cities),
    Format("CSV manifest", MANIFEST, Path.is_file, manifest_splits, read_manifest),
)
"""The first that recognises a path reads it."""


def format_of(path: str | Path) -> Format:
    """Return the format of a data set; raises `PlacesError` that says what was looked for if it has none."""
    path = Path(path)
    for known in FORMATS:
        if known.recognises(path):
            return known
    what = "no data set in this folder" if path.is_dir() else "there is no such file or folder"
    expected = "\n  ".join(known.expected for known in FORMATS)
    raise PlacesError(f"{path}: {what}. Looked for:\n  {expected}")


def is_data_set(path: str | Path) -> bool:
    """Whether :func:`load_places` can read ``path``."""
    return any(known.recognises(Path(path)) for known in FORMATS)


def load_places(path: str | Path, split: str = "test") -> Places:
    """Read one split of a data set.

    Args:
        path: a folder in the field's format (``images/SPLIT/{database,queries}/@easting@northing@...``), a
            ``.mat`` file of Pittsburgh or Tokyo, its folder, or the beginning of its name
            (``datasets/pitts30k``), the root of MSLS or GSV-Cities, or a CSV manifest.
        split: usually ``train``, ``val`` or ``test``.

    Raises:
        PlacesError: nothing known at ``path``, no such split, no images, or a coordinate that is no number;
            images or tables are missing or wrong.
    """
    return format_of(path).read(Path(path), split)
