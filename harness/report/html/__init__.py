"""A qualification as one HTML file that needs nothing else: no network, no server, and to be read no script."""

from harness.report.html.page import html_report, write_html

__all__ = ["html_report", "write_html"]
