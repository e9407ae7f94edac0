"""The oracle in results and reports: its name and version, older run folders, the kernel's differences."""

# ruff: noqa: S314 - the XML that is parsed is our own
from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from pydantic import ValidationError
from report_data import EVIDENCE, VERDICT, VERSIONS, cell
from rich.console import Console

from harness.report import TerminalReport, cell_text, junit_xml, load_run, run_json, write_cell
from harness.report.text import variant
from harness.results import CellResult, Evidence, Finding, Oracle, RunResult, Verdict, Versions

KERNEL = Oracle(name="kernel", version="7.2.12+deb13-amd64")
ON_KERNEL = VERSIONS.model_copy(update={"kernel": KERNEL.version, "oracle": KERNEL})
FINDINGS = (Finding(defect="K9", step=0, observed="no error"), Finding(defect="K1", step=None, observed="no fault"))
BOTH = cell(
    "iova/free",
    implementation="both",
    versions=ON_KERNEL,
    evidence=EVIDENCE,
    reference=EVIDENCE.model_copy(update={"oracle": KERNEL}),
    verdict=Verdict(passed=True, checks=VERDICT.checks[:1], findings=FINDINGS),
)


# ---- run folders


def test_what_runs_had_before_is_read(tmp_path: Path):
    """When the C library was the only oracle its version stood by itself, empty for usdm."""
    old = json.loads(BOTH.model_dump_json())
    for part, version in (("versions", "26.08.0-2"), ("evidence", ""), ("reference", "26.08.0-2")):
        del old[part]["oracle"]
        old[part]["libusdm"] = version
    (tmp_path / "verdict.json").write_text(json.dumps(old))
    (found,) = load_run(tmp_path).cells
    assert found.versions is not None
    assert found.versions.oracle == Oracle(name="libusdm", version="26.08.0-2")
    assert found.evidence is not None
    assert found.evidence.oracle is None
    assert found.oracle == found.versions.oracle


def test_what_is_written_is_read_and_has_the_old_name_too(tmp_path: Path):
    library = Oracle(name="libusdm", version="26.08.0-2")
    one = BOTH.model_copy(update={"versions": VERSIONS.model_copy(update={"oracle": library})})
    written = json.loads(write_cell(one, tmp_path).read_text())
    assert (written["versions"]["libusdm"], written["versions"]["oracle"]["name"]) == ("26.08.0-2", "libusdm")
    assert (written["reference"]["libusdm"], written["reference"]["oracle"]["name"]) == ("", "kernel")
    assert written["evidence"]["oracle"] is None
    assert load_run(tmp_path).cells == (one,)


@pytest.mark.parametrize("model", [Evidence, Versions])
def test_another_key_is_still_refused(model: type[Evidence] | type[Versions]):
    with pytest.raises(ValidationError):
        model.model_validate({"libusdm": "", "other": ""})


def test_a_cell_on_usdm_has_none():
    assert cell("x", evidence=EVIDENCE).oracle is None
    assert CellResult.model_validate(BOTH.model_dump()).oracle == KERNEL


# ---- reports


def test_the_terminal_names_what_was_compared_with():
    file = io.StringIO()
    report = TerminalReport(Console(file=file, width=60, force_terminal=False))
    report.run_started(1, 1)
    report.cell_finished(BOTH)
    assert file.getvalue().splitlines()[1] == "PASS     2.2 s  iova/free  kernel: K9, K1"


def test_cells_on_the_kernel_are_told_apart_by_it():
    assert variant(BOTH) == "qemu 11.1.3, kernel 7.2.12+deb13-amd64, oracle kernel"


def test_a_cell_as_text_has_both_sides_and_the_differences():
    text = cell_text(BOTH)
    assert "Steps on usdm\n" in text
    assert "Steps on kernel\n" in text
    assert "Known differences of the kernel\n  K9, step 0: no error\n  K1: no fault\n" in text
    assert "  oracle: kernel 7.2.12+deb13-amd64\n" in text
    assert "libusdm" not in text


def test_junit_has_it():
    root = ET.fromstring(junit_xml(RunResult(started="", argv=(), cells=(BOTH,), seconds=1.0)))
    values = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert values["oracle"] == "kernel 7.2.12+deb13-amd64"
    assert "libusdm" not in values
    assert "on kernel\n" in (root.findtext(".//system-out") or "")


def test_json_has_it():
    (found,) = json.loads(run_json(RunResult(started="", argv=(), cells=(BOTH,), seconds=1.0)))["cells"]
    assert found["versions"]["oracle"] == {"name": "kernel", "version": KERNEL.version}
    assert [one["defect"] for one in found["verdict"]["findings"]] == ["K9", "K1"]
