"""Results for people and for machines: terminal, JUnit XML, JSON, text. Reads results and nothing else.

So a report can be made again from a finished run's folder: ``load_run(folder)`` gives what the run gave.
"""

from harness.report.evidence import cell_text
from harness.report.json_report import load_run, run_json, write_cell, write_run
from harness.report.junit import junit_xml, write_junit
from harness.report.terminal import TerminalReport

__all__ = [
    "TerminalReport",
    "cell_text",
    "junit_xml",
    "load_run",
    "run_json",
    "write_cell",
    "write_junit",
    "write_run",
]
