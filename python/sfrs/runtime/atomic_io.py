"""Files that are whole or not there: written under another name, brought to the disk, then renamed; locks."""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

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
"""Faults that keep a file from being written though the program is right."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # answers of network file systems without locks


class WriteError(UserError, OSError):
    """A file cannot be written; the message names it and says why, and how much space is missing."""


@contextmanager
def replaced(path: Path, *, size: int | None = None, suffix: str = ".partial") -> Iterator[Path]:
    """Yield the name to write a file under that becomes ``path`` once the block has ended well.

    The file has reached the disk before it takes the place of the previous one. If the block fails, the
    previous file stays and nothing else is left. Folders are made as needed. Raises `WriteError` if the disk
    is full, or for another fault of `WHY`, and names the ``size`` in bytes that was to be written.
    """
    partial = path.with_name(path.name + suffix)
    try:
        with explained(path, size=size):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):  # of a folder that is read-only or gone, the first fault is the one to raise
            partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # a power cut could undo the renaming
    finally:
        os.close(folder)


def refuse_foreign(folder: Path, *ours: str) -> None:
    """Raise `UserError` if ``folder`` holds something, and no name in it begins with one of ``ours``."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    if names and not any(name.startswith(ours) for name in names):
        raise UserError(
            f"{folder} holds {names[0]}{' and more' if len(names) > 1 else ''}, which was not written here. "
            "Expected a new or empty folder."
        )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, file names of any bytes included, replacing ``path`` in one step.

    Raises `WriteError` if the disk is full, or for another fault of it.
    """
    with replaced(path, size=len(text)) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, see `write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def explained(path: Path, *, size: int | None = None) -> Iterator[None]:
    """Turn a fault that keeps ``path`` from being written into a `WriteError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            number = error.errno
        else:  # safetensors wraps the system's error into text
            found = re.search(r"\(os error (\d+)\)", str(error))
            number = int(found[1]) if found else None
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


def _space(path: Path, size: int | None, number: int) -> str:
    if number not in (*FULL, errno.EFBIG):
        return "."
    parts = [] if size is None else [f"{_amount(size)} are needed"]
    if number in FULL:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        parts.append(f"{_amount(shutil.disk_usage(folder).free)} are free")
    kept = " The file that was there before is unchanged." if path.exists() else ""
    return f": {', '.join(parts)}.{kept}" if parts else f".{kept}"


def _amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size:,} bytes"
