"""The photographs that an index is made of: a folder, the database of a data set, or a CSV manifest."""

import os
from pathlib import Path

from sfrs.data.photo_files import IMAGE_SUFFIXES, images_at
from sfrs.data.photos import NO_SOURCES, OPTIONAL, Locator, Photo, Sources, from_line
from sfrs.data.places.folder import database_folder
from sfrs.data.tables import file_of, lines_of_split, role_of
from sfrs.runtime.errors import UserError
from sfrs.runtime.progress import Progress, silent


def read_photos(
    path: str | Path,
    split: str = "test",
    *,
    skip_bad_images: bool = False,
    sources: Sources = NO_SOURCES,
    progress: Progress = silent,
) -> list[Photo]:
    """Read the images of a folder (any depth), of a place folder's database, or of a CSV manifest.

    Positions come from what `sfrs.data.photos.Locator` asks; in a manifest first from its columns. Lines of a
    manifest whose role is query or whose split is another are passed over. Raises `UserError` if nothing is
    there, a line of the manifest is wrong, or a name says a UTM zone that does not exist.

    Args:
        split: of a place folder (``images/SPLIT/database``), or of a manifest with a split column.
        skip_bad_images: keep a photo whose EXIF is needed and cannot be read, as `Photo.unreadable`.
    """
    path, locator = Path(path), Locator(sources)
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
        return _read_manifest(path, split, locator, skip_bad_images)
    files = [Path(os.path.abspath(file)) for file in images_at(database_folder(path, split) or path)]
    return locator.all(files, skip_bad_images=skip_bad_images, progress=progress)


def _read_manifest(path: Path, split: str, locator: Locator, skip_bad_images: bool) -> list[Photo]:
    photos: dict[Path, Photo] = {}
    lines_of: dict[Path, str] = {}
    lines, others = lines_of_split(path, split, ("file",), (*OPTIONAL, "role", "split"))
    for where, line in lines:
        if role_of(where, line, default="database") == "queries":
            continue
        file = Path(os.path.abspath(path.parent / file_of(where, line)))
        if file in photos:
            raise UserError(f"{where}: {file} is on {lines_of[file]} too.")
        photos[file], lines_of[file] = from_line(where, line, file), where.rpartition(", ")[2]
    if not photos:
        raise UserError(f"{path}: no image to index in the split {split}.{others}")
    return [locator.locate(photo, lenient=skip_bad_images) for photo in photos.values()]
