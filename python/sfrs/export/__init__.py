"""A descriptor network as one file for other programs, in place once it describes as the original does."""

from sfrs.export.compare import Agreement
from sfrs.export.formats import FORMATS, ExportError, Format, choose_format
from sfrs.export.shapes import ImageShape
from sfrs.export.write import Exported, export

__all__ = [
    "FORMATS",
    "Agreement",
    "ExportError",
    "Exported",
    "Format",
    "ImageShape",
    "choose_format",
    "export",
]
