"""Answers about photographs, in every form they are shown in: objects, text, JSON, GeoJSON, HTML."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sfrs.data.coordinates import geodesic, in_own_zone, metres_between
from sfrs.data.images import BadImageError, Photograph
from sfrs.retrieval.explain import REGION_NAMES, draw_region, jpeg_uri, open_photograph
from sfrs.retrieval.location import Location, Place, rounded

SHOWN, SIDE = 4, 240  # matches in a notebook, and the longer side of a picture there in pixels
NOT_IN_INDEX = "not in this index, by all that it knows; what looks most like it:"


@dataclass(frozen=True)
class Match(Place):
    """An image of the index that looks like the query, and where it was taken."""

    file: Path
    similarity: float  # of the descriptors, or the score of re-ranking
    row: int  # of the index
    regions: tuple[int, int] | None = None
    """After re-ranking the regions of query and image that match best, indices into ``sfrs_ext.REGIONS``."""

    @property
    def region_names(self) -> list[str] | None:
        return self.regions and [REGION_NAMES[region] for region in self.regions]


@dataclass(frozen=True)
class Found:
    """The answer about one photograph. A notebook shows it as pictures."""

    query: str  # its path, or "photo N" for the N-th image in memory
    location: Location  # the estimate
    matches: list[Match]  # the best ones, best first
    # Of describing, searching and re-ranking; for all photographs at once, divided by them.
    milliseconds: dict[str, float]
    photo: Photograph = field(repr=False)  # the photograph, as it was given
    zone: str = ""  # UTM zone, or system of several, of all metres; "" where it is not known
    truth: Place | None = None  # where the photograph itself says it was taken, if it does
    # Rows that re-ranking could not compare, because their files cannot be read any more.
    left_out: tuple[int, ...] = ()
    in_index: bool | None = None  # whether the place may be in the index; None where that is not known

    @property
    def error(self) -> float | None:
        """Metres from where the photograph says it was taken; None if it does not or nothing was found."""
        there, here = self.truth, self.location
        if there is None or not math.isfinite(here.easting):
            return None
        if math.isfinite(there.easting):
            return self._metres(there, here)
        return geodesic(*(np.array([place.latitude, place.longitude], np.float64) for place in (there, here)))

    @property
    def own_zone(self) -> str:
        """UTM zone of the location; "" where it is not known."""
        return in_own_zone((self.location.easting, self.location.northing), self.zone)[2]

    def lines(self) -> list[str]:
        """Say the location in words: coordinates, then how far they can be trusted."""
        place = self.location
        if not math.isfinite(place.easting):
            return ["no position: none of the images found has one"]
        unit = f"UTM {self.own_zone}" if self.zone else "metres"
        easting = in_own_zone((place.easting, place.northing), self.zone)[0]
        where = f"{easting:.1f} E  {place.northing:.1f} N  ({unit})"
        if place.latitude is not None:
            where += f"   {place.latitude:.6f}, {place.longitude:.6f}"
        trust = f"confidence {min(place.confidence, 0.99):.2f}, spread {place.spread:.1f} m"
        lines = [where, trust if self.error is None else f"{trust}, error {self.error:.1f} m"]
        return [NOT_IN_INDEX, *lines] if self.in_index is False else lines

    def metres(self, match: Match) -> str:
        """Distance of a match from the location, in words."""
        away = self._metres(match, self.location)
        return f"{away:,.0f} m" if math.isfinite(away) else "-"

    def _metres(self, one: Place, other: Place) -> float:
        if not math.isfinite(one.easting + other.easting):
            return math.nan
        pair = (one.easting, one.northing), (other.easting, other.northing)
        return float(metres_between(*pair, self.zone))

    def as_json(self) -> dict:
        """Return the form of ``--json`` and of the server. What is not known is null."""
        location = self.location
        return {
            "query": self.query,
            "zone": self.own_zone or None,
            "location": location.coordinates(self.zone)
            | {"confidence": round(location.confidence, 4), "spread": rounded(location.spread, 2)},
            "matches": [
                {
                    "rank": rank,
                    "file": str(match.file),
                    "row": match.row,
                    "similarity": round(match.similarity, 6),
                    **match.coordinates(self.zone),
                    "away": rounded(self._metres(match, location), 2),
                    "regions": match.region_names,
                }
                for rank, match in enumerate(self.matches, start=1)
            ],
            "milliseconds": {name: round(spent, 2) for name, spent in self.milliseconds.items()},
            "truth": self.truth and self.truth.coordinates(self.zone),
            "error": rounded(self.error, 2),
            "left_out": list(self.left_out),
            "in_index": self.in_index,
        }

    def _repr_html_(self) -> str:
        """Show photograph, best matches and, re-ranked, the regions that match best; nothing is linked."""
        figures = [_figure([(self.photo, None)], [Path(self.query).name, *self.lines()])]
        for match in self.matches[:SHOWN]:
            text = [match.file.name, f"{match.similarity:.3f}, {self.metres(match)}"]
            pictures = [(match.file, None)]
            if match.regions is not None:
                pictures = [(self.photo, match.regions[0]), (match.file, match.regions[1])]
                text.append(" ~ ".join(match.region_names or ()))
            figures.append(_figure(pictures, text))
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(figures)}</div>'


def as_geojson(founds: Sequence[Found]) -> dict:
    """Make a GeoJSON feature collection (RFC 7946) of points of kind ``estimate``, ``match`` and, where a
    photograph says where it was taken, ``query``; each says in ``query`` what it belongs to. What has no
    latitude and longitude is left out.
    """
    features = []
    for found in (found.as_json() for found in founds):
        points = [("estimate", found["location"], ("confidence", "spread"))]
        points += [("match", match, ("rank", "similarity", "file")) for match in found["matches"]]
        points += [("query", found["truth"], ())] if found["truth"] else []
        for kind, place, names in points:
            if place["latitude"] is None:
                continue
            about = {"kind": kind, "query": found["query"], **{name: place[name] for name in names}}
            if kind == "estimate" and found["error"] is not None:
                about["error"] = found["error"]
            point = {"type": "Point", "coordinates": [place["longitude"], place["latitude"]]}
            features.append({"type": "Feature", "geometry": point, "properties": about})
    return {"type": "FeatureCollection", "features": features}


def summary(founds: Sequence[Found]) -> dict | None:
    """Sum up the errors of all photographs that say where they were taken; None if none does.

    A photograph for which no position was found counts as located nowhere.
    """
    own = [found for found in founds if found.truth is not None]
    if not own:
        return None
    errors = np.array([math.inf if found.error is None else found.error for found in own])
    return {
        "queries": len(own),
        "within": {f"{metres} m": float((errors <= metres).mean()) for metres in (5, 25, 100)},
        "median_error": rounded(float(np.median(errors)), 2),
        "mean_confidence": round(float(np.mean([found.location.confidence for found in own])), 4),
    }


def _figure(pictures: Sequence[tuple[Photograph, int | None]], text: Sequence[str]) -> str:
    """Pictures one below the other, each with a region framed or None, and lines of text."""
    parts = []
    for photo, region in pictures:
        try:
            image = open_photograph(photo)
        except BadImageError:
            parts.append(f'<div style="width:{SIDE}px">cannot be read any more</div>')
            continue
        image.thumbnail((SIDE, SIDE))
        uri = jpeg_uri(image if region is None else draw_region(image, region), SIDE)
        parts.append(f'<img src="{uri}" alt="" style="display:block;margin-bottom:4px">')
    lines = "<br>".join(html.escape(line) for line in text)
    style = f"margin:0;max-width:{SIDE}px;overflow-wrap:anywhere;font-size:smaller"
    return f'<figure style="{style}">{"".join(parts)}<figcaption>{lines}</figcaption></figure>'
