"""``sfrs serve``: a page to drop photos on, and an HTTP endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sfrs.commands import options
from sfrs.commands.flags import command, option
from sfrs.runtime.errors import UserError, counted
from sfrs.runtime.terminal import say, show

NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python-multipart": "python_multipart"}
"""Package -> module of the extra ``serve``."""


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str = option(
        "Address to listen on. Another than this machine's own lets others in.",
        "Address",
        default="127.0.0.1",
    )
    port: int = option("0: any free one.", "Address", default=8000, min=0, max=65535)
    allow_host: list[str] | None = option(
        "Another name that browsers may address this server by; may be repeated.", "Address", metavar="NAME"
    )
    open_page: bool = option("Open the page in the browser.", "Address", default=False, flag="--open")


@dataclass(frozen=True)
class Limits:
    """What is let in."""

    max_megabytes: float = option("Size of a photo's file.", "Limits", default=20.0, min=0.01, max=1000)
    max_megapixels: float = option("Width times height of it.", "Limits", default=50.0, min=0.01, max=170)
    max_waiting: int = option(
        "Photos that may wait for the one being located; more have to come again.",
        "Limits",
        default=16,
        min=0,
        max=1000,
    )


@command(
    "sfrs serve --index city.index --open",
    "sfrs serve --index city.index --port 0 --max-megabytes 8",
    "sfrs serve --index milvus://db:19530/country --near 55.70,13.19,3000",
    'curl -F photo=@photo.jpg "http://127.0.0.1:8000/locate?top=3"',
)
def serve(
    *,
    index: Path = option("An index of sfrs index, or its address in Milvus.", default=...),
    near: str | None = option(
        "Serve the images within RADIUS metres of a point alone.", metavar="LAT,LON,RADIUS"
    ),
    address: Address,
    limits: Limits,
    running: options.Running,
) -> None:
    """Serve a page: drop a photo, see where it was taken, its matches, and the regions that matched.

    POST /locate does the same for programs. Nothing leaves this machine, and by default only this machine
    is let in.
    """
    missing = [package for package, module in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UserError(f'sfrs serve needs {", ".join(missing)}: pip install "sfrs-ext[serve]".')
    running.begin()

    from sfrs.retrieval.index import Index
    from sfrs.retrieval.near import Near
    from sfrs.web.serve import server, uploads
    from sfrs.web.serve.app import create_app

    circle = None if near is None else Near.parse(near)
    opened = Index.open(index, device=running.on_device(), near=circle)
    if len(opened) == 0:
        raise UserError(f"{index}: this index holds no images, so there is nothing to locate photos with.")
    allowed = uploads.Limits(
        megabytes=limits.max_megabytes, megapixels=limits.max_megapixels, waiting=limits.max_waiting
    )
    app = create_app(opened, limits=allowed, hosts=[address.host, *(address.allow_host or [])])
    listener = server.listen(address.host, address.port)
    url = server.url(listener)
    if not server.is_loopback(listener.getsockname()[0]):
        say(
            ("Warning:", "bold yellow"),
            f" everybody who reaches this machine at {address.host} can "
            "locate photos and see the index's images; there is no password and no encryption.",
        )
    where = "" if circle is None else f" within {circle.radius:g} m of {circle.latitude}, {circle.longitude}"
    show(f"{counted(len(opened), 'image')} of {index}{where} at {url}")
    say("Ctrl-C stops.")
    if address.open_page:
        server.open_browser(url)
    server.run(app, listener)
    say("Stopped.")
