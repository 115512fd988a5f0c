"""A descriptor network as one file for other programs, in place once it describes as the original does."""

from sfrs.models.export.compare import Agreement
from sfrs.models.export.formats import FORMATS, ExportError, Format, choose_format
from sfrs.models.export.shapes import ImageShape
from sfrs.models.export.write import Exported, export

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
