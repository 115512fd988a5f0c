"""Where and when a photograph was taken, as its camera wrote it into the file."""

import math
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from sfrs.data.images import BROKEN_EXIF, opened

GPS, BASE = ExifTags.GPS, ExifTags.Base


def gps(file: str | Path | Image.Image) -> tuple[float, float] | None:
    """Read latitude and longitude in degrees (WGS 84) from the EXIF of a file or an open image, or None.

    Counts as none: a block that is broken, and what cameras write without a fix, which is an interrupted
    measurement, a value that is no number or out of range, and exactly 0, 0. Raises `BadImageError` if
    there is no such file or it is no image.
    """
    fields = _block(file, ExifTags.IFD.GPSInfo)
    if _text(fields.get(GPS.GPSStatus))[:1] == "V":
        return None
    latitude = _degrees(fields.get(GPS.GPSLatitude), fields.get(GPS.GPSLatitudeRef), "NS")
    longitude = _degrees(fields.get(GPS.GPSLongitude), fields.get(GPS.GPSLongitudeRef), "EW")
    known = abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude, longitude) != (0, 0)
    return (latitude, longitude) if known else None


def taken(file: str | Path) -> datetime | None:
    """Read when a photograph was taken from its EXIF, or None.

    It is the camera's own clock (DateTimeOriginal), with its offset from UTC where the camera wrote it
    (OffsetTimeOriginal), else naive; without that, the time of the GPS fix, in UTC. Raises as `gps`.
    """
    fields = _block(file, ExifTags.IFD.Exif)
    offset = _text(fields.get(BASE.OffsetTimeOriginal))
    with suppress(ValueError):  # of the time: there is none, or it is made of blanks or zeros
        clock = datetime.strptime(_text(fields.get(BASE.DateTimeOriginal)), "%Y:%m:%d %H:%M:%S")
        with suppress(ValueError):  # of the offset
            clock = datetime.strptime(f"{clock:%Y-%m-%d %H:%M:%S} {offset}", "%Y-%m-%d %H:%M:%S %z")
        subsecond = _text(fields.get(BASE.SubsecTimeOriginal))
        return clock + timedelta(seconds=float(f"0.{subsecond}") if subsecond.isdecimal() else 0.0)
    fields = _block(file, ExifTags.IFD.GPSInfo)
    with suppress(
        ValueError, TypeError, OverflowError, ZeroDivisionError
    ):  # no time of the fix, or none that can be
        day = datetime.strptime(_text(fields.get(GPS.GPSDateStamp)), "%Y:%m:%d").replace(tzinfo=timezone.utc)
        hours, minutes, seconds = map(float, fields[GPS.GPSTimeStamp])
        return day + timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return None


def _block(file: str | Path | Image.Image, block: ExifTags.IFD) -> dict[int, Any]:
    """Read one block of fields; empty where there is none or it is broken."""
    if not isinstance(file, Image.Image):
        with opened(file) as image:
            return _block(image, block)
    try:
        return dict(file.getexif().get_ifd(block))
    except BROKEN_EXIF:
        return {}


def _degrees(value: Any, reference: Any, signs: str) -> float:
    """Add up degrees, minutes, seconds (the last two may be missing) with their sign; nan if unusable."""
    sign = {signs[0]: 1, signs[1]: -1}.get(_text(reference)[:1], math.nan)
    value = value if isinstance(value, tuple | list) else (value,)  # some write one number
    try:
        degrees = sum(float(part) / 60**i for i, part in enumerate(value))
        return sign * degrees if 1 <= len(value) <= 3 else math.nan
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan


def _text(value: Any) -> str:
    """Return an EXIF string, which may be padded or come as bytes, in capitals; "" for anything else."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return text.strip(" \0").upper() if isinstance(text, str) else ""
