"""Connections of the server: who sends no whole request in time makes room, and refusals are JSON."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 256
"""Open at once; beyond them the one that has waited longest for its next request is closed."""
HEAD_SECONDS = 10.0
"""From a connection, or an answer on it, to the end of the next request's head."""


class Connection(H11Protocol):
    """uvicorn's connection with a deadline for the head of a request, however slowly its bytes arrive."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.deadline: asyncio.TimerHandle | None = None
        self._await_request()
        if len(self.connections) > CONNECTIONS:
            idle = [other for other in self.connections if isinstance(other, Connection) and other.idle]
            min(idle, key=lambda other: other.since, default=self).close_if_idle()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def close_if_idle(self) -> None:
        if self.idle and not self.transport.is_closing():
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": f"This is no HTTP request: {msg}"}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        answer = h11.Response(
            status_code=400, headers=[*headers, ("Connection", "close")], reason=b"Bad Request"
        )
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_request(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.since = self.loop.time()
        self.deadline = self.loop.call_later(HEAD_SECONDS, self.close_if_idle)
