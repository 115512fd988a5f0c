"""``sfrs serve``: a page to drop photos on, and an HTTP endpoint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sfrs.commands import network as shared
from sfrs.runtime.errors import UserError

EXAMPLES = """
[b]Examples[/b]

  sfrs serve --index city.index --open

  sfrs serve --index city.index --port 0 --max-megabytes 8

  curl -F photo=@photo.jpg "http://127.0.0.1:8000/locate?top=3"
"""
NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python-multipart": "python_multipart"}
"""Package -> module of the extra ``serve``."""


def register(app: typer.Typer) -> None:
    app.command("serve", epilog=EXAMPLES)(serve)


def serve(
    index: Annotated[Path, typer.Option("--index", help="An index of sfrs index.", show_default=False)],
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. Another than this machine's own lets others in.",
            rich_help_panel="Address",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="0: any free one.", rich_help_panel="Address"),
    ] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Another name that browsers may address this server by; may be repeated.",
            rich_help_panel="Address",
            show_default=False,
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.", rich_help_panel="Address")
    ] = False,
    max_megabytes: Annotated[
        float,
        typer.Option(
            "--max-megabytes", min=0.01, max=1000, help="Size of a photo's file.", rich_help_panel="Limits"
        ),
    ] = 20.0,
    max_megapixels: Annotated[
        float,
        typer.Option(
            "--max-megapixels", min=0.01, max=170, help="Width times height of it.", rich_help_panel="Limits"
        ),
    ] = 50.0,
    max_waiting: Annotated[
        int,
        typer.Option(
            "--max-waiting",
            min=0,
            max=1000,
            help="Photos that may wait for the one being located; more are told to come again.",
            rich_help_panel="Limits",
        ),
    ] = 16,
    device: shared.Device = "auto",
) -> None:
    """Serve a page: drop a photo, see where it was taken, its matches, and the regions that matched.

    POST /locate does the same for programs. Nothing leaves this machine, and by default only this machine
    is let in.
    """
    missing = [package for package, module in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UserError(f'sfrs serve needs {", ".join(missing)}: pip install "sfrs-ext[serve]".')
    device = shared.parse_device(device)

    from sfrs.retrieval.index import Index
    from sfrs.runtime.terminal import messages
    from sfrs.web.serve import server
    from sfrs.web.serve.app import create_app
    from sfrs.web.serve.uploads import Limits

    opened = Index.open(index, device=device)
    if len(opened) == 0:
        raise UserError(f"{index}: this index holds no images, so there is nothing to locate photos with.")
    limits = Limits(megabytes=max_megabytes, megapixels=max_megapixels, waiting=max_waiting)
    app = create_app(opened, limits=limits, hosts=[host, *(allow_host or [])])
    listener = server.listen(host, port)
    address = server.url(listener)
    if not server.is_loopback(listener.getsockname()[0]):
        messages.print(
            f"[bold yellow]Warning:[/bold yellow] everybody who reaches this machine at {host} can locate "
            "photos and see the index's images; there is no password and no encryption.",
            soft_wrap=True,
            highlight=False,
        )
    print(f"{len(opened):,} images of {index} at {address}", flush=True)
    messages.print("Ctrl-C stops.")
    if open_page:
        server.open_browser(address)
    server.run(app, listener)
    messages.print("Stopped.")
