"""An evaluation, or an index that tested itself, as a page to read: how often, where and why it is right."""

from sfrs.web.report.index_page import write_index_report
from sfrs.web.report.page import write_report
from sfrs.web.report.recorded import Overrides, Subject
from sfrs.web.report.subject import Running, read_subject

__all__ = ["Overrides", "Running", "Subject", "read_subject", "write_index_report", "write_report"]
