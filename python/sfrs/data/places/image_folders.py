"""Find the images that a data set lists by name: folders and suffixes differ from copy to copy."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from sfrs.data.tables import PlacesError

SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")
SAMPLE = 24  # listed names that are looked for; copies are complete or not there, so that few are enough


def find_images(
    names: Sequence[str], folders: Iterable[Path], listed_in: Path, role: str
) -> tuple[Path, list[Path]]:
    """Return the folder that holds most of a sample of ``names``, and the file of every name in it.

    ``names`` are paths below one of ``folders``, of which the first wins among equals. They keep their
    suffix, unless more of the sample are there with another one. Files are not looked for one by one: a few
    may be missing. Raises `PlacesError` if none of the sample is in any of the folders.
    """
    folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    sample = names[:: max(1, len(names) // SAMPLE)]
    best, chosen = 0, (Path(), "")
    for folder in folders:
        for suffix in ("", *SUFFIXES):
            found = sum(_with_suffix(folder / name, suffix).is_file() for name in sample)
            if found > best:
                best, chosen = found, (folder, suffix)
        if best == len(sample):
            break
    if best == 0:
        looked = ", ".join(str(folder) for folder in folders) or "no folder that it could be in is there"
        raise PlacesError(
            f"{listed_in}: the images of the {role} are not there. It lists {names[0]} and {len(names) - 1} "
            f"more, .jpg or .png; looked in: {looked}."
        )
    folder, suffix = chosen
    return folder, [_with_suffix(folder / name, suffix) for name in names]


def _with_suffix(file: Path, suffix: str) -> Path:
    return file.with_suffix(suffix) if suffix else file
