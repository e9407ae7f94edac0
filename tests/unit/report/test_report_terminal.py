from __future__ import annotations

import io
import re

import pytest
from report_data import CRASHED, FAILED, PASSED, RUN, SKIPPED, cell
from rich.console import Console

from harness.report import TerminalReport
from harness.report.terminal import wants_live
from harness.results import Outcome, RunResult


def run(report, result=RUN):
    report.run_started(len(result.cells), result.jobs)
    report.message("building image trixie")
    for one in result.cells:
        report.cell_stage(one.scenario, "boot")
        report.cell_stage(one.scenario, "steps")
        report.cell_finished(one)
    report.run_finished(result)


def plain(result=RUN, width=60):
    file = io.StringIO()
    run(TerminalReport(Console(file=file, width=width, force_terminal=False)), result)
    return file.getvalue()


def terminal(width=200, **arguments):
    file = io.StringIO()
    return Console(file=file, width=width, force_terminal=True, _environ={"TERM": "xterm"}, **arguments), file


SNAPSHOT = """\
4 cells, 2 at once
building image trixie
PASS     2.2 s  dma/mapped_read
SKIP     0.0 s  usdm/needs_new  needs QEMU >=11.2, this is 11.1.3
FAIL     2.2 s  dma/unmapped_read  step 1 (dma_read): expected no error, observed the error X
ERROR    2.2 s  usdm/edge/panics  the kernel panicked: Oops [no]markup

ERROR    2.2 s  usdm/edge/panics  panic
       reason: the kernel panicked: Oops [no]markup
       console: first
       console: Kernel panic - not syncing
       console: last
       hint: see the console
       folder: /runs/1/usdm/edge/panics
       rerun: harness run usdm/edge/panics

FAIL     2.2 s  dma/unmapped_read  expectation  qemu 11.1.3, kernel 6.12.88
       reason: step 1 (dma_read): expected no error, observed the error X
       reason: faults: expected no faults, observed 1
       hint: read the evidence
       folder: /runs/1/dma/unmapped_read
       rerun: harness run dma/unmapped_read

SKIP     0.0 s  usdm/needs_new
       reason: needs QEMU >=11.2, this is 11.1.3

1 passed, 1 failed, 1 errors, 1 skipped in 12.3 s
"""


def test_plain_output():
    assert plain() == SNAPSHOT


def test_a_run_in_which_all_passed_is_short():
    result = RunResult(started="", argv=(), cells=(PASSED,), seconds=3.0)
    assert plain(result) == (
        "1 cell, 1 at once\nbuilding image trixie\nPASS     2.2 s  dma/mapped_read\n\n"
        "1 passed, 0 failed, 0 errors, 0 skipped in 3.0 s\n"
    )


def test_an_interrupted_run_says_so():
    assert plain(RUN.model_copy(update={"interrupted": True})).endswith("in 12.3 s (interrupted)\n")


def test_a_long_command_is_not_broken():
    rerun = "harness run " + "x" * 300
    result = RUN.model_copy(update={"cells": (cell("a/b", Outcome.FAIL, rerun=rerun),)})
    assert f"rerun: {rerun}\n" in plain(result, width=40)


@pytest.mark.parametrize(
    ("message", "short"),
    [
        ("x" * 121, "x" * 117 + "..."),
        ("x" * 120, "x" * 120),
    ],
)
def test_a_reason_is_short_at_first_and_whole_at_the_end(message: str, short: str):
    text = plain(RUN.model_copy(update={"cells": (cell("a", Outcome.FAIL, message=message, verdict=None),)}))
    assert re.findall(r"^FAIL .*? s  a  (.*)$", text, re.MULTILINE)[0] == short
    assert f"reason: {message}\n" in text


def test_many_reasons_are_cut():
    checks = tuple(
        FAILED.verdict.checks[1].model_copy(update={"name": f"step {i}", "message": f"bad {i:02}"}) for i in range(20)
    )
    failed = FAILED.model_copy(update={"verdict": FAILED.verdict.model_copy(update={"checks": checks}), "message": ""})
    text = plain(RUN.model_copy(update={"cells": (failed,)}))
    assert text.count("reason: ") == 6
    assert "reason: and 15 more, see the folder\n" in text


def test_no_escape_of_a_guest_reaches_the_terminal():
    text = plain()
    assert all(character == "\n" or character.isprintable() for character in text)


def test_live_shows_the_stage_and_takes_finished_cells_out():
    console, file = terminal(color_system=None)
    report = TerminalReport(console, live=True)
    report.run_started(2, 1)
    report.cell_stage("dma/mapped_read", "boot")
    report.cell_stage("dma/mapped_read", "steps")
    report.cell_stage("x/[bold]y", "connect")
    report._shown.refresh()
    shown = file.getvalue()
    assert re.search(r"dma/mapped_read +steps +\d:\d\d:\d\d", shown)
    assert re.search(r"x/\[bold\]y +connect +\d:\d\d:\d\d", shown)
    report.cell_finished(PASSED)
    assert [task.fields["name"] for task in report._shown.tasks] == ["run", "x/[bold]y"]
    assert report._shown.tasks[0].fields["stage"] == "1 of 2 done"
    report.run_finished(RunResult(started="", argv=(), cells=(PASSED,)))
    assert report._shown is None
    assert "1 passed, 0 failed, 0 errors, 0 skipped" in file.getvalue()


def test_live_with_colours_ends_cleanly():
    console, file = terminal(color_system="standard")
    run(TerminalReport(console, live=True))
    assert "\x1b[32mPASS" in file.getvalue()
    assert file.getvalue().rstrip().endswith("\x1b[0m")


def test_close_may_be_called_at_any_time():
    console, _ = terminal()
    report = TerminalReport(console, live=True)
    report.close()
    report.run_started(1, 1)
    report.close()
    report.close()
    report.cell_stage("a", "boot")
    report.cell_finished(SKIPPED)
    report.cell_finished(CRASHED)


@pytest.mark.parametrize(
    ("environ", "live"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"CI": "true"}, False), ({"NO_COLOR": ""}, True)],
)
def test_when_running_cells_are_shown(environ, live):
    console, _ = terminal()
    assert wants_live(console, environ) is live
    assert TerminalReport(console, environ=environ).live is live


def test_running_cells_are_not_shown_without_a_terminal():
    assert not wants_live(Console(file=io.StringIO(), force_terminal=False), {})
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert not wants_live(dumb, {})
