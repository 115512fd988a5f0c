"""A model as one file for other programs, put in place once it describes images as the original does."""

from sfrs.models.export.shapes import ImageShape
from sfrs.models.export.write import FORMATS, Agreement, ExportError, choose_format, compare, export

__all__ = ["FORMATS", "Agreement", "ExportError", "ImageShape", "choose_format", "compare", "export"]
