"""What every request passes first: who is addressed, from which page; and the headers of every answer."""

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfrs.web.serve.refusal import error_response

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Refuses requests that a foreign web page caused.

    A page of another site can make a browser send requests here, under its own origin, or, by pointing its
    domain name at this machine (DNS rebinding), under this one. The first carries a foreign ``Origin``
    or ``Sec-Fetch-Site``, the second a foreign ``Host``. Hosts that are addresses, not names, cannot be
    rebound and are taken.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()):
        self.app = app
        self.hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        app = error_response(*refusal, {"Connection": "close"}) if refusal else self.app
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        name = _host_name(host)
        if name not in self.hosts and not _is_address(name):
            return 421, (
                f"This server does not answer to the name {name!r}; give it to sfrs serve as --allow-host."
            )
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        embedded = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        followed_a_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if foreign or (embedded and not followed_a_link):
            return 403, "Requests from pages of other sites are refused."
        return None


def _host_name(host: str) -> str:
    """Host header -> name or address, without port and without the brackets of IPv6.

    A header with more in it, as ``x@localhost``, is no host and is returned as it is.
    """
    if "@" in host:
        return host
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
