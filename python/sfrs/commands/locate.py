"""``sfrs locate``: coordinates of photographs, by an index of photographs whose coordinates are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sfrs.commands import data_options, options
from sfrs.commands.flags import argument, command, option
from sfrs.runtime.atomic_io import write_json
from sfrs.runtime.errors import UserError, counted
from sfrs.runtime.terminal import progress_tasks, say, show

if TYPE_CHECKING:
    from sfrs.retrieval.found import Found
    from sfrs.retrieval.index import Index
    from sfrs.retrieval.region_rerank import Reranking


@dataclass(frozen=True)
class Output:
    """The form of the answer."""

    top: int = option("How many matches to show.", default=5, metavar="N", min=1)
    as_json: bool = option("Print JSON instead of text.", "Output", default=False, flag="--json")
    geojson: Path | None = option(
        "Also write estimates and matches as GeoJSON, for any map.", "Output", metavar="FILE"
    )
    near: str | None = option(
        "Compare with images within RADIUS metres of a point alone.", "Output", metavar="LAT,LON,RADIUS"
    )


@command(
    "sfrs locate photo.jpg --index city.index",
    "sfrs locate holiday/ --index city.index --rerank regions --geojson holiday.geojson",
    "sfrs locate photo.jpg --index city.index --top 1 --json",
    "sfrs locate photo.jpg --index milvus://db:19530/city --near 55.70,13.19,500",
)
def locate(
    *,
    path: Path = argument("An image, or a folder of images (subfolders included)."),
    index: Path = option("An index of sfrs index, or its address in Milvus.", default=...),
    rerank: options.Rerank,
    output: Output,
    coordinates: data_options.Coordinates,
    running: options.Running,
    skip_bad_images: bool = options.SKIP_BAD_IMAGES,
) -> None:
    """Say where photographs were taken: easting and northing, and latitude and longitude.

    The position is a weighted mean of where similar images of the index were taken; the confidence says how
    likely it is within 25 m, by the self-test of sfrs index. A place that the index does not hold is refused.
    Photographs that carry their position, in their name (@easting@northing@...) or as EXIF (or by --positions
    or --track), are not helped by it: it only shows the error.
    """
    reranking, geojson = rerank.parse(), output.geojson
    if geojson is not None and not geojson.parent.is_dir():
        raise UserError(f"--geojson is {geojson}, but there is no folder {geojson.parent}.")

    from sfrs.data.photo_files import images_at
    from sfrs.retrieval.found import as_geojson, summary
    from sfrs.retrieval.index import Index
    from sfrs.retrieval.near import Near

    near = None if output.near is None else Near.parse(output.near)
    files, settings = images_at(path), running.begin()
    opened = Index.open(index, device=running.on_device())
    if geojson is not None and not opened.zone:
        raise UserError(
            f"GeoJSON needs latitude and longitude, but {opened.path} has metres of an unknown UTM zone. "
            "Build it with the zone, as sfrs index PHOTOS --zone 33N."
        )
    with progress_tasks() as tasks:
        if skip_bad_images:
            files = options.readable(files, path, settings["workers"], tasks)
        reranking = _chosen(opened, reranking, output.top)
        founds = opened.locate(
            files,
            top=output.top,
            rerank=reranking,
            near=near,
            sources=coordinates.sources(),
            tasks=tasks,
            **settings,
        )
    _show_left_out(founds, opened)
    if geojson is not None:
        write_json(geojson, as_geojson(founds))
    if output.as_json:
        found = {"queries": [found.as_json() for found in founds], "summary": summary(founds)}
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        _print_text(founds, opened, geojson)


def _chosen(index: Index, asked: Reranking | Literal["none"] | None, top: int) -> Reranking | Literal["none"]:
    """The re-ranking to do, and a word about it where it was not asked for or will take its time."""
    from sfrs.retrieval.locate import chosen_reranking, reranked_depth

    reranking = chosen_reranking(index, asked)
    if reranking is None:
        return "none"
    if asked is None:
        say("Re-ranked by regions, which finds more of this index's own photos; --rerank none leaves it out.")
    elif not index.has_regions:
        depth = min(reranked_depth(reranking, top), len(index))
        say(
            f"This index keeps no regions: the first {counted(depth, 'image')} of every photograph must be "
            "described again. sfrs index --regions keeps them."
        )
    return reranking


def _show_left_out(founds: list[Found], index: Index) -> None:
    rows = sorted({row for found in founds for row in found.left_out})
    if rows:
        from sfrs.runtime.terminal import say

        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        why = f", because the file cannot be read any more: {index.files[rows[0]]}{more}. "
        help = "An index built with --regions re-ranks without the files."
        say(("Left out of re-ranking", "yellow"), why, help)


def _print_text(founds: list[Found], index: Index, geojson: Path | None) -> None:
    from sfrs.retrieval.found import summary

    for found in founds:
        show(found.query)
        for line in (*found.lines(), *_match_lines(found)):
            show(f"  {line}")
        show()
    spent = {name: sum(f.milliseconds[name] for f in founds) for name in founds[0].milliseconds}
    each = ", ".join(f"{name} {total / len(founds):.1f}" for name, total in spent.items())
    show(f"{len(founds):,} located among {counted(len(index), 'image')}; ms per photograph: {each}")
    elsewhere = sum(found.in_index is False for found in founds)
    if elsewhere and len(founds) > 1:
        show(f"{counted(elsewhere, 'is', 'are')} not in this index, by all that it knows")
    errors = summary(founds) if len(founds) > 1 else None
    if errors:
        within = ", ".join(f"{100 * share:.1f} % within {d}" for d, share in errors["within"].items())
        median = "unknown" if errors["median_error"] is None else f"{errors['median_error']:.1f} m"
        say = "says" if errors["queries"] == 1 else "say"
        show(
            f"{errors['queries']:,} {say} where they were taken: {within}; median error {median}; "
            f"mean confidence {errors['mean_confidence']:.2f}"
        )
    if geojson is not None:
        show(f"Written to {geojson}")


def _match_lines(found: Found) -> list[str]:
    lines = []
    for rank, match in enumerate(found.matches, start=1):
        line = f"{rank:>2}  {match.similarity:.3f}  {found.metres(match):>9}  {match.file.name}"
        lines.append(line if match.region_names is None else f"{line}   ({' ~ '.join(match.region_names)})")
    return lines
