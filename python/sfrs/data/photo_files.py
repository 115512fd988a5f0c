"""Which files of a folder are photographs, and what lies there that is none or cannot be read.

Links to folders are followed, each folder is visited once. What cameras, phones and network drives put
beside photographs is passed over: names that begin with a dot, and `PASSED_OVER`.
"""

import os
import warnings
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from PIL import features

from sfrs.runtime.errors import UserError

Kind = tuple[str, str, str]
PASSED_OVER = ("@eaDir", "__MACOSX")
HEIF = find_spec("pillow_heif") is not None
HEIF_SUFFIXES, AVIF_SUFFIXES = (".heic", ".heif", ".hif"), (".avif",)
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp",
    *(AVIF_SUFFIXES if features.check("avif") else ()), *(HEIF_SUFFIXES if HEIF else ()),
)  # fmt: skip
"""Suffixes of the files that are decoded, in any case."""
NOT_READ = {
    HEIF_SUFFIXES: ("HEIC photo", "HEIC photos", 'pip install "sfrs-ext[heif]" reads them'),
    AVIF_SUFFIXES: ("AVIF photo", "AVIF photos", "a Pillow with AVIF reads them"),
    (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"): ("raw photo", "raw photos", ""),
    (".gif", ".jp2", ".jxl", ".psd"): ("picture of another format", "pictures of other formats", ""),
    (".3gp", ".avi", ".insv", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".mts", ".webm"): (
        "video",
        "videos",
        "",
    ),
}
"""Suffixes -> the kind (one, many) of what they name where it is not decoded, and what would decode it."""
DANGLING = ("link that leads nowhere", "links that lead nowhere", "")
CLOSED = ("folder that cannot be opened", "folders that cannot be opened", "")

if HEIF:
    import pillow_heif  # pyright: ignore[reportMissingImports]  # the extra [heif]

    pillow_heif.register_heif_opener()


class LeftOutWarning(UserWarning):
    """A folder holds photographs, or may hold some, that are not read."""


def image_files(folder: Path) -> list[Path]:
    """List the photographs below ``folder``, sorted by their path.

    Warns (`LeftOutWarning`) of what may have been meant as well, with its number by kind: photographs
    in formats that are not decoded, videos, links that lead nowhere, folders that cannot be opened.
    """
    found, left_out = _walk(folder)
    _warn(folder, left_out)
    return found


def images_at(path: Path) -> list[Path]:
    """List ``path`` if it is a file, else the images below it. Raises `UserError` if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder.")
    files, left_out = _walk(path)
    if not files:
        other = f" Left out: {_in_words(left_out)}." if left_out else ""
        raise UserError(f"{path}: no {', '.join(IMAGE_SUFFIXES)} in this folder.{other}")
    _warn(path, left_out)
    return files


def holds_photos(path: Path) -> bool:
    """Whether ``path`` is a folder with photographs in it, at any depth."""
    return path.is_dir() and bool(_walk(path)[0])


def _warn(folder: Path, left_out: dict[Kind, list[Path]]) -> None:
    if left_out:
        warnings.warn(f"{folder}: left out {_in_words(left_out)}.", LeftOutWarning, stacklevel=3)


def _walk(folder: Path) -> tuple[list[Path], dict[Kind, list[Path]]]:
    """List the photographs, and by their kind what else may be meant."""
    found: list[Path] = []
    left_out: dict[Kind, list[Path]] = defaultdict(list)
    kinds = {suffix: kind for suffixes, kind in NOT_READ.items() for suffix in suffixes}
    seen: set[tuple[int, int]] = set()
    tops = [folder]

    def closed(error: OSError) -> None:
        left_out[CLOSED].append(Path(os.fsdecode(error.filename)))

    for top in tops:  # grows by links to folders: what is below ``folder`` anyway keeps its own name
        for where, folders, files in os.walk(top, onerror=closed):
            status = os.stat(where)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = [name for name in folders if not _passed_over(name)]
            tops += [path for name in folders if (path := Path(where, name)).is_symlink()]
            for path in (Path(where, name) for name in files if not _passed_over(name)):
                suffix = path.suffix.lower()
                if suffix in IMAGE_SUFFIXES and path.is_file():
                    found.append(path)
                elif (suffix in IMAGE_SUFFIXES or not suffix) and path.is_symlink() and not path.exists():
                    left_out[DANGLING].append(path)
                elif suffix in kinds and suffix not in IMAGE_SUFFIXES:
                    left_out[kinds[suffix]].append(path)
    return sorted(found), left_out


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name in PASSED_OVER


def _in_words(left_out: dict[Kind, list[Path]]) -> str:
    """Say it as "2 videos (as a.mp4), 1 HEIC photo (b.heic; ...)"."""
    parts = []
    for (one, many, advice), paths in left_out.items():
        example = min(paths).name if len(paths) == 1 else f"as {min(paths).name}"
        about = f"{example}; {advice}" if advice else example
        parts.append(f"{len(paths):,} {one if len(paths) == 1 else many} ({about})")
    return ", ".join(parts)
