"""From an application to a listening server, and from Ctrl-C to a clean end."""

import errno
import ipaddress
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from sfrs.runtime.errors import UserError
from sfrs.web.serve.connection import CONNECTIONS, Connection

SHUTDOWN_SECONDS = 10


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        UserError: the port is taken or reserved, or this machine has no such address.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host is {host!r}, which is no address of this machine ({error}).") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(_why_not(error, host, port)) from None
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port is {port}, but another program listens there. Take another, or 0 for any free one."
    if error.errno == errno.EACCES:
        return f"--port is {port}, which this user may not open. Take one from 1024 on, or 0: any free one."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host is {host!r}, which is no address of this machine."
    return f"Cannot listen on {host}, port {port}: {error.strerror}."


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def url(listener: socket.socket) -> str:
    """The address to open: that of a listener on all interfaces is shown as the loopback's."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host) or host
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def server(app: FastAPI, *, log_level: str = "warning") -> uvicorn.Server:
    """What will serve the application once its ``run(sockets=[listener])`` is called."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level=log_level,
        server_header=False,
        limit_concurrency=2 * CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def run(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C: then no new requests, and those being answered are finished first."""
    with suppress(KeyboardInterrupt), listener:
        server(app).run(sockets=[listener])


def open_browser(address: str, open_page: Callable[[str], bool] = webbrowser.open) -> None:
    """Open the page, on a thread: a browser in the terminal returns only when it is left."""
    threading.Thread(target=open_page, args=(address,), daemon=True).start()
