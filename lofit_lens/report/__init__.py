"""A study as one page: `write_report`, or `lofit-lens report` on the command line."""

from lofit_lens.report.page import write_report

__all__ = ["write_report"]
