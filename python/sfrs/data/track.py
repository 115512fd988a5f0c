"""Where a photograph was taken by when: the points of a GPX track."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from xml.parsers import expat
from zoneinfo import ZoneInfo

import numpy as np

from sfrs.data.coordinates import geodesic
from sfrs.runtime.errors import UserError

GAP_SECONDS, GAP_METRES = 120.0, 25.0
"""Between two points of a track it is known where one was if they are this near in time or in space."""
EDGE_SECONDS = 60.0  # before the first and after the last point a position still holds


class Track:
    """Points of a GPX file, by time: Unix time, float64 ``[n]``, rising, and latitude and longitude, ``[n,
    2]``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        points = sorted(_points(path))
        if not points:
            raise UserError(f"{path}: no point of a track (trkpt) with a time in it; expected a GPX file.")
        self.seconds = np.array([point[0] for point in points])
        self.degrees = np.array([point[1:] for point in points])

    def at(self, when: datetime) -> tuple[float, float] | None:
        """Return latitude and longitude at a time that says its offset from UTC, or None if not known."""
        seconds = when.timestamp()
        after = int(np.searchsorted(self.seconds, seconds))
        if after < len(self.seconds) and self.seconds[after] == seconds:
            return self._point(self.degrees[after])
        if after in (0, len(self.seconds)):
            edge = min(after, len(self.seconds) - 1)
            near = abs(self.seconds[edge] - seconds) <= EDGE_SECONDS
            return self._point(self.degrees[edge]) if near else None
        start, end = self.seconds[after - 1], self.seconds[after]
        one, other = self.degrees[after - 1], self.degrees[after]
        if end - start > GAP_SECONDS and geodesic(one, other) > GAP_METRES:
            return None
        step = other - one
        step[1] = (step[1] + 180) % 360 - 180  # the short way round
        latitude, longitude = one + step * (seconds - start) / (end - start)
        return self._point((latitude, (longitude + 180) % 360 - 180))

    @staticmethod
    def _point(degrees: Any) -> tuple[float, float]:
        return float(degrees[0]), float(degrees[1])


def clock_of(text: str) -> Callable[[datetime], datetime]:
    """Return how the time that a camera's clock showed becomes one that says its offset from UTC.

    ``text`` says what the clock is ahead of UTC, "+02:00", "-5", "+02:00:37" (37 s fast), or a time zone,
    "Europe/Berlin"; "" changes nothing, so that a time without an offset of its own is refused.
    """
    if found := re.fullmatch(r"([+-])(\d{1,2})(?::(\d\d))?(?::(\d\d))?", text.strip()):
        hours, minutes, seconds = (int(part or 0) for part in found.groups()[1:])
        ahead = timedelta(hours=hours, minutes=minutes, seconds=seconds) * (-1 if found[1] == "-" else 1)
        if abs(ahead) < timedelta(hours=24):
            return lambda when: when.replace(tzinfo=timezone(ahead))
    elif text:
        try:
            zone = ZoneInfo(text.strip())
            return lambda when: when.replace(tzinfo=zone)
        except (KeyError, ValueError, OSError):  # no such name, or none of a file
            pass
    else:
        return lambda when: when
    raise UserError(
        f"--clock is {text!r}; expected what the camera's clock is ahead of UTC, as +02:00 or +02:00:37, or "
        "a time zone, as Europe/Berlin."
    )


def _points(path: Path) -> list[tuple[float, float, float]]:
    """Read (Unix time, latitude, longitude) of the points of all tracks that have a time."""
    points: list[tuple[float, float, float]] = []
    point: dict[str, str] = {}
    text: list[str] = []
    parser = expat.ParserCreate(namespace_separator=" ")

    def refuse(*_: object) -> None:
        # A GPX file needs none; entities defined in one can unfold to gigabytes.
        raise UserError(f"{path}: it defines entities or a document type, which no GPX file needs.")

    def start(name: str, attributes: dict[str, str]) -> None:
        text.clear()
        if _tag(name) == "trkpt":
            point.clear()
            point.update(attributes)

    def end(name: str) -> None:
        if _tag(name) == "time" and "lat" in point:
            point["time"] = "".join(text)
        elif _tag(name) == "trkpt" and "time" in point:
            points.append(_parse_point(f"{path}, line {parser.CurrentLineNumber}", point))
            point.clear()

    parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = refuse, refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except (OSError, expat.ExpatError) as error:
        raise UserError(f"{path}: this GPX file cannot be read ({error}).") from error
    return points


def _tag(name: str) -> str:
    return name.rpartition(" ")[2]


def _parse_point(where: str, point: dict[str, str]) -> tuple[float, float, float]:
    try:
        latitude, longitude = float(point["lat"]), float(point["lon"])
        time = re.fullmatch(r"(.{19})(\.\d+)?(Z|[+-]\d\d:\d\d)?", point["time"].strip())
        if time is None or not (abs(latitude) <= 90 and abs(longitude) <= 180):
            raise ValueError
        offset = "+00:00" if time[3] in ("Z", None) else time[3]
        when = datetime.fromisoformat(time[1] + offset).timestamp() + float(time[2] or 0)
    except (KeyError, ValueError, OverflowError):
        raise UserError(
            f"{where}: {point}; expected lat and lon in degrees and a time such as 2024-05-01T12:00:00Z."
        ) from None
    return when, latitude, longitude
