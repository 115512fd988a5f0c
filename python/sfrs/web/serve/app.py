"""The HTTP application: one endpoint that locates, and those that the page needs."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sfrs.retrieval.index import Index
from sfrs.retrieval.locate import chosen_reranking
from sfrs.runtime.errors import UserError
from sfrs.runtime.terminal import show_error
from sfrs.web.overview import overview
from sfrs.web.serve import thumbnails
from sfrs.web.serve.answer import answer
from sfrs.web.serve.guard import Guard
from sfrs.web.serve.page import page
from sfrs.web.serve.queue import LocatingQueue
from sfrs.web.serve.refusal import Refusal, error_response
from sfrs.web.serve.uploads import FORMATS, RAW_TYPES, Limits, discard, read_photo

MOST_MATCHES = 50
BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {
    "schema": {
        "type": "object",
        "required": ["photo"],
        "properties": {"photo": {"type": "string", "format": "binary"}},
    }
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": FORM} | {kind: BINARY for kind in RAW_TYPES},
    }
}


def _error(description: str) -> dict:
    example = {"application/json": {"example": {"error": description}}}
    return {"description": description, "content": example}


REFUSALS: dict[int | str, dict[str, Any]] = {
    408: _error("The photo did not arrive in time."),
    413: _error("The photo has too many bytes or pixels."),
    415: _error("The body is no JPEG, PNG or WebP photo."),
    404: _error("No image of the index is in the circle."),
    422: _error("A parameter is wrong, or the form holds no photo."),
    500: _error("The index has a fault, or no photo that re-ranking needs can be read any more."),
    503: _error("Too many photos are waiting; Retry-After says when to come again."),
}


def create_app(index: Index, *, limits: Limits | None = None, hosts: Sequence[str] = ()) -> FastAPI:
    """The application that serves one index.

    Args:
        limits: of one request.
        hosts: names beside localhost and this machine's that it may be addressed by.
    """
    limits = limits or Limits()
    queue = LocatingQueue(limits.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(queue.close)

    app = FastAPI(
        title="sfrs serve",
        description="Locates photographs with an index of geo-tagged images.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page of the interface loads its script from another server
        redoc_url=None,
    )
    app.add_middleware(Guard, hosts=hosts)
    _answer_errors_as_json(app)
    _add_locate(app, index, limits, queue)
    _add_pictures(app, index)
    _add_page(app, index, limits, queue)
    return app


def _add_locate(app: FastAPI, index: Index, limits: Limits, queue: LocatingQueue) -> None:
    @app.post("/locate", openapi_extra=BODY, responses=REFUSALS)
    async def locate(
        request: Request,
        top: Annotated[int, Query(ge=1, le=MOST_MATCHES, description="How many matches to return.")] = 5,
        rerank: Annotated[
            Literal["regions", "none"] | None,
            Query(description="Re-rank the first matches by their regions. Default: as the self-test says."),
        ] = None,
        explain: Annotated[bool, Query(description="Say which regions of photo and matches agree.")] = True,
        near: Annotated[
            str | None,
            Query(max_length=80, description="LAT,LON,RADIUS: compare with images in this circle alone."),
        ] = None,
    ) -> Response:
        """Locate one photo: where it was taken, and the images of the index that say so."""
        if queue.full:
            refusal = queue.refusal()
            await discard(request, limits)
            raise refusal
        with queue.read():
            photo = await read_photo(request, limits)
        with queue.place():
            found = await queue.run(
                lambda: answer(index, photo, limits, top=top, rerank=rerank, explain=explain, near=near)
            )
        return _json(found)


def _add_pictures(app: FastAPI, index: Index) -> None:
    pictures = thumbnails.Thumbnails(index)

    @app.get("/images/{row}", responses={404: _error("There is no such image."), 304: {}})
    async def image(request: Request, row: int, side: Literal["256", "640", "1280"] = "640") -> Response:
        """An image of the index as JPEG, its longest side at most ``side`` pixels."""
        tag = await pictures.tag(row, int(side))
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if tag in [part.strip() for part in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(await pictures.jpeg(row, int(side)), media_type="image/jpeg", headers=headers)


def _add_page(app: FastAPI, index: Index, limits: Limits, queue: LocatingQueue) -> None:
    points = json.dumps(overview(index), separators=(",", ":")).encode()

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        document, policy = page()
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        return Response(document, media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/map")
    async def map_points() -> Response:
        """Where the index's images were taken, (row, easting, northing), thinned out if there are many; where
        places look alike, and where more photographs are wanted, by the self-test."""
        return Response(points, media_type="application/json")

    @app.get("/health")
    async def health() -> Response:
        """What is served, its limits, and how many photos are being located or wait."""
        return _json(
            {
                "status": "ok",
                "images": len(index),
                "kind": index.kind,
                "zone": index.zone,
                "fingerprint": index.fingerprint,
                "reranks": chosen_reranking(index, None) is not None,
                "busy": queue.taken + queue.reading,
                "limits": {
                    "megabytes": limits.megabytes,
                    "megapixels": limits.megapixels,
                    "waiting": limits.waiting,
                    "formats": FORMATS,
                    "matches": MOST_MATCHES,
                },
            }
        )


def _answer_errors_as_json(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> Response:
        return error_response(refusal.status, refusal.message, refusal.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:])
        message = f"{name} is {str(first.get('input'))[:80]!r}: {first['msg'].lower()}."
        return error_response(422, message)

    @app.exception_handler(HTTPException)
    async def no_such_thing(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {str(error.detail).lower()}."
        return error_response(error.status_code, message, dict(error.headers or {}))

    @app.exception_handler(UserError)
    async def index_is_broken(request: Request, error: UserError) -> Response:
        show_error(error)  # it names files, which are nobody's business over the wire
        return error_response(500, "The index here has a fault; the server's terminal says which.")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return error_response(500, "This failed here, not with you; the server's terminal says how.")


def _json(content: dict) -> Response:
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})
