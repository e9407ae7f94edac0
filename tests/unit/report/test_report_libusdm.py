"""What reports say of Intel's library: its known differences, both sides' steps, its version."""

# ruff: noqa: S314 - the XML that is parsed is our own
from __future__ import annotations

import io
import json
from xml.etree import ElementTree as ET

import pytest
from report_data import EVIDENCE, FAILED, PASSED, VERDICT, VERSIONS, cell
from rich.console import Console

from harness.report import TerminalReport, cell_text, junit_xml, load_run, run_json, write_cell, write_run
from harness.report.text import known, variant
from harness.results import Evidence, Finding, Oracle, Outcome, RunResult, StepEvidence, Verdict

WITH_LIBRARY = VERSIONS.model_copy(update={"oracle": Oracle(name="libusdm", version="26.08.0-2")})
REFERENCE = Evidence(
    steps=(
        StepEvidence(index=0, kind="alloc", args={"as": "b", "size": 65536}, returns=0x7F1111111000),
        StepEvidence(index=1, kind="dma_read", args={"device": "edu0"}, values={"completed": True, "only": "theirs"}),
    ),
    libusdm="26.08.0-2",
)
FINDINGS = (
    Finding(defect="D1", step=0, observed="3 addresses translated,\n1 not"),
    Finding(defect="D10", step=None, observed="no fault in the trace"),
    Finding(defect="D1", step=2, observed="the same again"),
)
BOTH = cell(
    "usdm/unmap",
    implementation="both",
    versions=WITH_LIBRARY,
    evidence=EVIDENCE,
    reference=REFERENCE,
    verdict=Verdict(passed=True, checks=VERDICT.checks[:1], findings=FINDINGS),
)


def printed(*cells):
    file = io.StringIO()
    report = TerminalReport(Console(file=file, width=60, force_terminal=False))
    report.run_started(len(cells), 1)
    for one in cells:
        report.cell_finished(one)
    report.run_finished(RunResult(started="", argv=(), cells=cells, seconds=1.0))
    return file.getvalue().splitlines()


# ---- the terminal


def test_the_known_differences_are_on_the_line_of_a_cell_that_passed():
    assert known(BOTH) == "D1, D10"
    assert printed(BOTH)[1] == "PASS     2.2 s  usdm/unmap  libusdm: D1, D10"


def test_without_any_nothing_is_said():
    none = BOTH.model_copy(update={"verdict": Verdict(passed=True, checks=())})
    assert printed(none)[1] == printed(PASSED.model_copy(update={"scenario": "usdm/unmap"}))[1]
    assert (known(none), known(PASSED)) == ("", "")


def test_a_cell_that_failed_says_why_instead():
    verdict = VERDICT.model_copy(update={"findings": FINDINGS})
    line = printed(FAILED.model_copy(update={"verdict": verdict}))[1]
    assert "expected no error, observed the error X" in line
    assert "libusdm" not in line


def test_the_version_of_the_library_tells_cells_apart():
    assert variant(BOTH) == "qemu 11.1.3, kernel 6.12.88, libusdm 26.08.0-2"
    assert variant(PASSED) == "qemu 11.1.3, kernel 6.12.88"
    failed = BOTH.model_copy(update={"outcome": Outcome.FAIL, "message": "m"})
    assert any(line.endswith("libusdm 26.08.0-2") for line in printed(failed))


# ---- a cell as text


def paragraphs(one):
    """The text's paragraphs by their first line."""
    return {part.splitlines()[0]: part for part in cell_text(one).split("\n\n") if part}


def test_the_steps_of_both_sides_stand_one_below_the_other():
    found = paragraphs(BOTH)
    assert "Steps" not in found
    ours, theirs = found["Steps on usdm"], found["Steps on libusdm"]
    assert list(found).index("Steps on usdm") < list(found).index("Steps on libusdm")
    assert "0x7f0000000000" in ours
    assert "NotAligned" in ours
    assert "only=theirs" not in ours
    assert "0x7f1111111000" in theirs
    assert "only=theirs" in theirs
    assert "fork" not in theirs


def test_a_cell_on_one_implementation_has_one_table():
    found = paragraphs(PASSED)
    assert "Steps" in found
    assert not [name for name in found if name.startswith("Steps on")]


def test_the_library_alone_has_one_table_and_its_version():
    alone = BOTH.model_copy(update={"evidence": REFERENCE, "reference": None, "implementation": "libusdm"})
    assert "only=theirs" in paragraphs(alone)["Steps"]
    assert "  libusdm: 26.08.0-2\n" in cell_text(alone)


def test_a_side_that_never_ran_a_step_is_said_to_be_empty():
    stopped = BOTH.model_copy(update={"reference": Evidence(libusdm="26.08.0-2"), "verdict": None})
    assert paragraphs(stopped)["Steps on libusdm"].strip() == "Steps on libusdm"


def test_the_findings_are_listed_with_their_steps():
    text = paragraphs(BOTH)["Known differences of the C library"]
    assert text.splitlines()[1:] == [
        "  D1, step 0: 3 addresses translated, 1 not",
        "  D10: no fault in the trace",
        "  D1, step 2: the same again",
    ]
    assert "Known differences of the C library" not in paragraphs(PASSED)


def test_a_finding_says_what_the_difference_is():
    meant = FINDINGS[0].model_copy(update={"meaning": "only the first page has no translation any more"})
    verdict = VERDICT.model_copy(update={"findings": (meant,)})
    lines = paragraphs(BOTH.model_copy(update={"verdict": verdict}))["Known differences of the C library"].splitlines()
    said = "only the first page has no translation any more; observed 3 addresses translated, 1 not"
    assert lines[1:] == [f"  D1, step 0: {said}"]


# ---- files


def test_junit_has_the_version_of_the_library():
    root = ET.fromstring(junit_xml(RunResult(started="", argv=(), cells=(BOTH, PASSED), seconds=1.0)))
    versions = {
        case.get("name"): [one.get("value") for one in case.iter("property") if one.get("name") == "libusdm"]
        for case in root.iter("testcase")
    }
    assert versions == {"unmap": ["26.08.0-2"], "mapped_read": []}


def test_both_sides_come_back_from_the_run_folder(tmp_path):
    run = RunResult(started="", argv=(), cells=(BOTH,), seconds=1.0)
    write_run(run, tmp_path)
    assert load_run(tmp_path) == run
    killed = tmp_path / "killed"
    write_cell(BOTH, killed / "a")
    assert load_run(killed).cells == (BOTH,)


def test_the_json_of_a_run_has_the_findings():
    (found,) = json.loads(run_json(RunResult(started="", argv=(), cells=(BOTH,), seconds=1.0)))["cells"]
    assert found["implementation"] == "both"
    assert [one["defect"] for one in found["verdict"]["findings"]] == ["D1", "D10", "D1"]
    assert found["versions"]["libusdm"] == "26.08.0-2"


@pytest.mark.parametrize("which", ["evidence", "reference"])
def test_the_json_of_a_run_has_nobodys_evidence(which):
    """It is in the cells' folders."""
    (found,) = json.loads(run_json(RunResult(started="", argv=(), cells=(BOTH,), seconds=1.0)))["cells"]
    assert which not in found
