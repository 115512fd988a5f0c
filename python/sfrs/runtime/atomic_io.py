"""Files that are whole or not there: written under another name, brought to the disk, then renamed; locks."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sfrs.runtime.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of disk space is used up",
    errno.EFBIG: "files may not become that large here (ulimit -f)",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an error",
}
"""What can keep a file from being written though the program is right."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What network file systems without locks answer."""


class WriteError(UserError, OSError):
    """A file cannot be written; the message names it and says why, and how much space is missing."""


@contextmanager
def replaced(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield the name to write a file under that becomes ``path`` once the block has ended well.

    The file has reached the disk before it takes the place of the previous one, so that there is always a
    good one. If the block fails, the previous file stays and nothing else is left. Folders are made as
    needed.

    Args:
        size: bytes that are to be written, for the message.

    Raises:
        WriteError: the disk is full, or another fault of `WHY`.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with told(path, size=size):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise
    _sync_folder(path.parent)


@contextmanager
def told(path: Path, *, size: int | None = None) -> Iterator[None]:
    """Turn what keeps ``path`` from being written into a `WriteError`."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number not in WHY or isinstance(error, UserError):
            raise
        raise WriteError(f"{path}: cannot be written, {WHY[number]}{_space(path, size, number)}") from error


def lock_taken(file: IO | int, kind: int) -> bool:
    """Whether an open ``file`` could be locked (fcntl.LOCK_EX or LOCK_SH), or its disk knows no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in NO_LOCKS
    return True


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors wraps the system's error into text.
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


def _space(path: Path, size: int | None, number: int) -> str:
    if number not in FULL and number != errno.EFBIG:
        return "."
    parts = [] if size is None else [f"{_amount(size)} are needed"]
    if number in FULL:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        parts.append(f"{_amount(shutil.disk_usage(folder).free)} are free")
    kept = " The file that was there before is unchanged." if path.exists() else ""
    return f": {', '.join(parts)}.{kept}" if parts else f".{kept}"


def _amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size:,} bytes"


def _remove(partial: Path) -> None:
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        return  # the folder is read-only or gone; the fault that led here is the one to tell


def _sync_folder(folder: Path) -> None:
    """Bring the renaming itself to the disk, which else a power cut could undo."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
