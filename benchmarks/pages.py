"""Recorded figures in Markdown pages, between the comments ``MARK: begin`` and ``MARK: end``."""

from pathlib import Path

from .record import write_text


def with_text(page: str, mark: str, text: str) -> str:
    """The page with ``text`` between the comments of ``mark``; leaves the program if they are missing."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    if begin not in page or end not in page:
        raise SystemExit(f"the page lacks the lines {begin} and {end}")
    return f"{page.split(begin)[0]}{begin}\n{text}\n{end}{page.split(end)[1]}"


def show(page: Path, mark: str, text: str, *, check: bool = False) -> None:
    """Put ``text`` into a page; with ``check`` leave the program if it is not what the page shows."""
    old = page.read_text(encoding="utf-8")
    new = with_text(old, mark, text)
    if check and new != old:
        raise SystemExit(f"{page.name} does not show the recorded results ({mark}); run `make report`")
    if not check:
        write_text(page, new)
