"""The page, put together into one document that asks nobody else for anything."""

import base64
import hashlib
from functools import cache
from importlib import resources

PARTS = {
    "{{style}}": (
        ("sfrs.web", "style.css"),
        ("sfrs.web.serve", "page.css"),
        ("sfrs.web.serve", "answer.css"),
    ),
    "{{script}}": (
        ("sfrs.web", "map.js"),
        ("sfrs.web", "coverage.js"),
        ("sfrs.web.serve", "answer.js"),
        ("sfrs.web.serve", "page.js"),
    ),
}


@cache
def page() -> tuple[bytes, str]:
    """The document and its Content-Security-Policy, which lets its own script and style run and no other."""
    document = _read("sfrs.web.serve", "page.html")
    hashes = {}
    for mark, files in PARTS.items():
        text = "\n".join(_read(*file) for file in files)
        document = document.replace(mark, text)
        digest = hashlib.sha256(text.encode()).digest()
        hashes[mark] = f"'sha256-{base64.b64encode(digest).decode()}'"
    policy = (
        "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
        f"script-src {hashes['{{script}}']}; style-src {hashes['{{style}}']}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return document.encode(), policy


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")
