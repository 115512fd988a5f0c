"""Why a request is turned down, in words for whoever sent it."""

from fastapi.responses import JSONResponse


class Refusal(Exception):
    """Answers a request with an error status and a sentence.

    Attributes:
        status: HTTP status code, 4xx or 5xx.
        message: what was wrong, what came, what was expected.
        headers: sent with the answer.
    """

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one form of every error: ``{"error": "..."}``."""
    return JSONResponse({"error": message}, status, {"Cache-Control": "no-store"} | (headers or {}))
