"""The report of a compression as one HTML page that needs nothing else: no script, no font, no other file."""

from pyquant.report_page.page import check_page, render_page, write_page

__all__ = ["check_page", "render_page", "write_page"]
