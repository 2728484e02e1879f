"""One page that shows what a space has learned, and whether it helped."""

from sona_pg.report.facts import Facts, gather
from sona_pg.report.page import check_report, render, save_report

__all__ = ["Facts", "check_report", "gather", "render", "save_report"]
