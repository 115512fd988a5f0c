"""``sfrs locate``: coordinates of photographs, by an index of photographs whose coordinates are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfrs.commands import options
from sfrs.runtime.errors import UserError

if TYPE_CHECKING:
    from sfrs.retrieval.index import Index
    from sfrs.retrieval.locate import Found
    from sfrs.retrieval.region_rerank import Reranking

EXAMPLES = """
[b]Examples[/b]

  sfrs locate photo.jpg --index city.index

  sfrs locate holiday/ --index city.index --rerank regions --geojson holiday.geojson

  sfrs locate photo.jpg --index city.index --top 1 --json
"""


@dataclass(frozen=True)
class Output:
    """What is printed and written."""

    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="How many matches to show.")] = 5
    as_json: Annotated[bool, options.option("--json", "Print JSON instead of text.", "Output")] = False
    geojson: Annotated[
        Path | None,
        options.option(
            "--geojson",
            "Also write estimates and matches as GeoJSON, for any map.",
            "Output",
            metavar="FILE",
        ),
    ] = None


def register(app: typer.Typer) -> None:
    app.command("locate", epilog=EXAMPLES)(options.grouped(locate))


def locate(
    path: Annotated[
        Path,
        typer.Argument(help="An image, or a folder of images (subfolders included).", show_default=False),
    ],
    index: Annotated[Path, options.option("--index", "An index that sfrs index made.")],
    rerank: options.Rerank,
    output: Output,
    running: options.Running,
    skip_bad_images: options.SkipBadImages = False,
) -> None:
    """Say where photographs were taken: easting and northing, and latitude and longitude.

    The position is a weighted mean of where similar images of the index were taken; the confidence says how
    likely it is within 25 m. Photographs that carry their position, in their name (@easting@northing@...) or
    as EXIF, are not helped by it: it only shows the error.
    """
    reranking, geojson = rerank.parse(), output.geojson
    if geojson is not None and not geojson.parent.is_dir():
        raise UserError(f"--geojson is {geojson}, but there is no folder {geojson.parent}.")
    from sfrs.data.images import images_at

    files = images_at(path)
    settings = running.begin()

    from sfrs.retrieval import locate as locating
    from sfrs.retrieval.index import Index
    from sfrs.runtime.atomic_io import write_json
    from sfrs.runtime.terminal import progress_tasks

    opened = Index.open(index, device=running.on_device())
    if geojson is not None:
        locating.check_degrees(opened)
    with progress_tasks() as tasks:
        if skip_bad_images:
            files = options.readable(files, path, settings["workers"], tasks)
        _warn_of_slow_reranking(opened, reranking, output.top)
        founds = locating.locate(opened, files, top=output.top, rerank=reranking, tasks=tasks, **settings)
    _tell_left_out(founds, opened)
    if geojson is not None:
        write_json(geojson, locating.as_geojson(founds))
    if output.as_json:
        _print_json(founds, opened)
    else:
        _print_text(founds, opened, geojson)


def _warn_of_slow_reranking(index: Index, reranking: Reranking | None, top: int) -> None:
    if reranking is None or index.has_regions:
        return
    from sfrs.retrieval.candidates import reranked_depth
    from sfrs.runtime.terminal import messages

    depth = min(reranked_depth(reranking.depth, top), len(index))
    messages.print(
        f"This index keeps no regions: the first {depth} images of every photograph are described "
        "again. sfrs index --regions keeps them.",
        highlight=False,
        soft_wrap=True,
    )


def _tell_left_out(founds: list[Found], index: Index) -> None:
    rows = sorted({row for found in founds for row in found.left_out})
    if not rows:
        return
    from rich.text import Text

    from sfrs.runtime.terminal import messages

    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    messages.print(
        Text.assemble(
            ("Left out of re-ranking", "yellow"),
            f", because the file cannot be read any more: {index.files[rows[0]]}{more}. An index built with "
            "--regions re-ranks without the files.",
        ),
        soft_wrap=True,
    )


def _print_json(founds: list[Found], index: Index) -> None:
    import json

    from sfrs.retrieval.locate import as_json, summary

    queries = [as_json(found, index) for found in founds]
    print(json.dumps({"queries": queries, "summary": summary(founds)}, indent=2, allow_nan=False))


def _print_text(founds: list[Found], index: Index, geojson: Path | None) -> None:
    from sfrs.retrieval.locate import summary

    for found in founds:
        print(found.query)
        for line in (*_location_lines(found, index.zone), *_match_lines(found)):
            print(f"  {line}")
        print()
    spent = {name: sum(f.milliseconds[name] for f in founds) for name in founds[0].milliseconds}
    each = ", ".join(f"{name} {total / len(founds):.1f}" for name, total in spent.items())
    print(f"{len(founds)} located among {len(index):,} images; ms per photograph: {each}")
    errors = summary(founds) if len(founds) > 1 else None
    if errors:
        shares = ", ".join(
            f"{100 * share:.1f} % within {metres}" for metres, share in errors["within"].items()
        )
        median = errors["median_error"]
        print(
            f"{errors['queries']} say where they were taken: {shares}; median error "
            + (f"{median:.1f} m" if median is not None else "unknown")
            + f"; mean confidence {errors['mean_confidence']:.2f}"
        )
    if geojson is not None:
        print(f"Written to {geojson}")


def _location_lines(found: Found, zone: str) -> list[str]:
    import math

    place = found.location
    if not math.isfinite(place.easting):
        return ["no position: none of the images found has one"]
    where = f"{place.easting:.1f} E  {place.northing:.1f} N" + (f"  (UTM {zone})" if zone else "  (metres)")
    if place.latitude is not None:
        where += f"   {place.latitude:.6f}, {place.longitude:.6f}"
    trust = f"confidence {min(place.confidence, 0.99):.2f}, spread {place.spread:.1f} m"
    if found.error is not None:
        trust += f", error {found.error:.1f} m"
    return [where, trust]


def _match_lines(found: Found) -> list[str]:
    import math

    from sfrs.retrieval.explain import REGION_NAMES

    place, lines = found.location, []
    for rank, match in enumerate(found.matches, start=1):
        away = math.hypot(match.easting - place.easting, match.northing - place.northing)
        metres = f"{away:,.0f} m" if math.isfinite(away) else "-"
        line = f"{rank:>2}  {match.similarity:.3f}  {metres:>9}  {match.file.name}"
        if match.regions is not None:
            line += f"   ({REGION_NAMES[match.regions[0]]} ~ {REGION_NAMES[match.regions[1]]})"
        lines.append(line)
    return lines
