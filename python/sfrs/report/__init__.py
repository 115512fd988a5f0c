"""An evaluation as a page to read: how often, where and why it is right or wrong."""

from sfrs.report.page import write_report
from sfrs.report.recorded import Overrides, Subject
from sfrs.report.subject import Running, read_subject

__all__ = ["Overrides", "Running", "Subject", "read_subject", "write_report"]
