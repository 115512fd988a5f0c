"""Where a photograph was taken, as its camera wrote it into the file."""

import math
import struct
from pathlib import Path

from PIL import ExifTags, Image

from sfrs.data.images import BadImageError

GPS = ExifTags.GPS


def gps(file: str | Path | Image.Image) -> tuple[float, float] | None:
    """Latitude and longitude in degrees (WGS 84) from an image's EXIF; None if it carries none.

    Counts as none: a block that is broken, and what cameras write without a fix, which is an interrupted
    measurement, a value that is no number or out of range, and exactly 0, 0.

    Args:
        file: a path, or an open image.

    Raises:
        BadImageError: there is no such file, or it is no image.
    """
    if isinstance(file, Image.Image):
        return _read(file)
    try:
        with Image.open(file) as image:
            return _read(image)
    except FileNotFoundError:
        raise BadImageError(f"{file}: there is no such image file.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImageError(f"{file}: this image cannot be read ({error}).") from error


def _read(image: Image.Image) -> tuple[float, float] | None:
    try:
        fields = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except (OSError, ValueError, SyntaxError, struct.error):
        return None
    if _text(fields.get(GPS.GPSStatus, "A")) == "V":
        return None
    latitude = _degrees(fields.get(GPS.GPSLatitude), fields.get(GPS.GPSLatitudeRef), "NS")
    longitude = _degrees(fields.get(GPS.GPSLongitude), fields.get(GPS.GPSLongitudeRef), "EW")
    if latitude is None or longitude is None or not (abs(latitude) <= 90 and abs(longitude) <= 180):
        return None
    return None if latitude == longitude == 0 else (latitude, longitude)


def _degrees(value: object, reference: object, signs: str) -> float | None:
    """Degrees, minutes, seconds (any of the last two may be missing) with their sign; None if unusable."""
    letter = _text(reference)
    if letter not in tuple(signs) or not isinstance(value, (tuple, list)) or not 1 <= len(value) <= 3:
        return None
    try:
        degrees = sum(float(part) / 60**i for i, part in enumerate(value))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (-degrees if letter == signs[1] else degrees) if math.isfinite(degrees) else None


def _text(value: object) -> str:
    """First letter of an EXIF string, which may be padded or come as bytes; "" if there is none."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return text.strip(" \0").upper()[:1] if isinstance(text, str) else ""
