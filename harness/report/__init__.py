"""Results for people and for machines: terminal, JUnit XML, JSON, text. Reads results and nothing else.

So a report can be made again from a finished run's folder: ``load_run(folder)`` gives what the run gave.
"""

from typing import TYPE_CHECKING, Any

from harness.report.evidence import cell_text
from harness.report.json_report import load_run, run_json, write_cell, write_run
from harness.report.junit import junit_xml, write_junit

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """The terminal's report on its first use: it needs rich, which takes longer to load than a log line to explain."""
    if name == "TerminalReport":
        from harness.report.terminal import TerminalReport

        return TerminalReport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
