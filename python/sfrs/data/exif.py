"""Where a photograph was taken, as its camera wrote it into the file."""

import math
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from sfrs.data.images import BROKEN_EXIF, opened

GPS = ExifTags.GPS


def gps(file: str | Path | Image.Image) -> tuple[float, float] | None:
    """Read latitude and longitude in degrees (WGS 84) from the EXIF of a file or an open image, or None.

    Counts as none: a block that is broken, and what cameras write without a fix, which is an interrupted
    measurement, a value that is no number or out of range, and exactly 0, 0. Raises `BadImageError` if
    there is no such file or it is no image.
    """
    if isinstance(file, Image.Image):
        return _read(file)
    with opened(file) as image:
        return _read(image)


def _read(image: Image.Image) -> tuple[float, float] | None:
    try:
        fields = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except BROKEN_EXIF:
        return None
    if _letter(fields.get(GPS.GPSStatus)) == "V":
        return None
    latitude = _degrees(fields.get(GPS.GPSLatitude), fields.get(GPS.GPSLatitudeRef), "NS")
    longitude = _degrees(fields.get(GPS.GPSLongitude), fields.get(GPS.GPSLongitudeRef), "EW")
    known = abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude, longitude) != (0, 0)
    return (latitude, longitude) if known else None


def _degrees(value: Any, reference: Any, signs: str) -> float:
    """Add up degrees, minutes, seconds (the last two may be missing) with their sign; nan if unusable."""
    sign = {signs[0]: 1, signs[1]: -1}.get(_letter(reference), math.nan)
    value = value if isinstance(value, tuple | list) else (value,)  # some write one number
    try:
        degrees = sum(float(part) / 60**i for i, part in enumerate(value))
        return sign * degrees if 1 <= len(value) <= 3 else math.nan
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan


def _letter(value: Any) -> str:
    """Return the first letter of an EXIF string, which may be padded or come as bytes, or ""."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return text.strip(" \0").upper()[:1] if isinstance(text, str) else ""
