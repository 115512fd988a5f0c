"""Options of re-ranking, shared by the commands that search."""

from __future__ import annotations

from typing import Annotated

import typer

from sfrs.runtime.errors import UserError

Rerank = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        metavar="regions",
        help="Order the first images found anew: by how their regions match the query's.",
        rich_help_panel="Re-ranking",
        show_default=False,
    ),
]
RerankDepth = Annotated[
    int | None,
    typer.Option(
        "--rerank-depth",
        metavar="N",
        min=1,
        help="How many images to order anew. Default: 100.",
        rich_help_panel="Re-ranking",
        show_default=False,
    ),
]
RerankScore = Annotated[
    str | None,
    typer.Option(
        "--rerank-score",
        metavar="NAME",
        help="mixed (default), chamfer, nine-best, aligned, whole-query or best-pair; see docs/reranking.md.",
        rich_help_panel="Re-ranking",
        show_default=False,
    ),
]


def parse_reranking(rerank: str | None, depth: int | None, score: str | None) -> dict | None:
    """The options as keyword arguments ``depth`` and ``score``; None without re-ranking.

    Raises:
        UserError: an option has no meaning, or none without --rerank.
    """
    if rerank is None:
        for name, value in (("--rerank-depth", depth), ("--rerank-score", score)):
            if value is not None:
                raise UserError(f"{name} needs --rerank regions.")
        return None
    if rerank != "regions":
        raise UserError(f"--rerank is {rerank!r}; expected regions.")
    from sfrs.retrieval.region_rerank import DEFAULT_SCORE, DEPTH, parse_score

    parse_score(score or DEFAULT_SCORE)
    return {"depth": depth or DEPTH, "score": score or DEFAULT_SCORE}
