"""What reports say about how a guest was started: cloned from which template, or booted."""

from __future__ import annotations

import io
import json
import re
from xml.etree import ElementTree as ET

import pytest
from report_data import FAILED, PASSED, VERSIONS, cell
from rich.console import Console

from harness.report import TerminalReport, cell_text, junit_xml, load_run, run_json, write_cell, write_run
from harness.results import CellResult, Outcome, RunResult

KEY = "60c2e5460d0f" + "e" * 52
CLONED = FAILED.model_copy(update={"start": "clone", "versions": VERSIONS.model_copy(update={"template": KEY})})
BOOTED = FAILED.model_copy(update={"start": "boot"})
WITHOUT = FAILED.model_copy(update={"start": "clone"})
SAID = [
    (CLONED, "clone of template 60c2e5460d0f"),
    (BOOTED, "booted"),
    (WITHOUT, "none, its template could not be made"),
]


def run(*cells: CellResult) -> RunResult:
    return RunResult(started="", argv=(), cells=cells, seconds=1.0)


def plain(result: RunResult) -> str:
    file = io.StringIO()
    TerminalReport(Console(file=file, width=60, force_terminal=False)).run_finished(result)
    return file.getvalue()


@pytest.mark.parametrize(("failed", "said"), SAID)
def test_a_failure_says_how_its_guest_was_started(failed: CellResult, said: str):
    assert f"       guest: {said}\n" in plain(run(failed))
    assert f"  guest: {said}\n" in cell_text(failed)


def test_where_no_guest_was_started_nothing_is_said():
    assert "guest:" not in plain(run(FAILED))
    assert "guest:" not in cell_text(FAILED)


def test_the_summary_is_the_same_however_guests_were_started():
    lines = {plain(run(*cells)).splitlines()[-1] for cells in ([CLONED], [BOOTED], [FAILED])}
    assert lines == {"0 passed, 1 failed, 0 errors, 0 skipped in 1.0 s"}
    passed = PASSED.model_copy(update={"start": "boot"})
    assert plain(run(passed)) == "\n1 passed, 0 failed, 0 errors, 0 skipped in 1.0 s\n"


def test_junit_has_it_as_properties():
    def properties(one: CellResult) -> dict[str | None, str | None]:
        root = ET.fromstring(junit_xml(run(one)))  # noqa: S314
        return {item.get("name"): item.get("value") for item in root.iterfind(".//testcase/properties/property")}

    cloned, booted, unknown = properties(CLONED), properties(BOOTED), properties(FAILED)
    assert (cloned["start"], cloned["template"]) == ("clone", KEY)
    assert booted["start"] == "boot"
    assert "template" not in booted
    assert not {"start", "template"} & set(unknown)


def test_json_has_it_in_each_cell(tmp_path):
    cells = json.loads(run_json(run(CLONED, BOOTED)))["cells"]
    assert [one["start"] for one in cells] == ["clone", "boot"]
    verdict = json.loads(write_cell(CLONED, tmp_path).read_text())
    assert (verdict["start"], verdict["versions"]["template"]) == ("clone", KEY)


def test_stages_of_a_clone_are_fine_enough_to_be_seen():
    stages = {"start": 0.093, "restore": 0.041, "steps": 1.2}
    text = cell_text(cell("dma/a", stages=stages, start="clone"))
    assert "  time: 2.2 s, start 0.09 s, restore 0.04 s, steps 1.20 s\n" in text


def test_a_run_that_was_written_before_there_were_clones_can_be_read(tmp_path):
    document = json.loads(write_run(run(CLONED, PASSED), tmp_path).read_text())
    for one in document["cells"]:
        del one["start"], one["versions"]["template"]
    (tmp_path / "run.json").write_text(json.dumps(document))
    read = load_run(tmp_path)
    assert [(one.start, one.versions.template) for one in read.cells] == [("", "")] * 2
    assert "guest:" not in plain(read)


@pytest.mark.parametrize(
    "stages",
    [
        ("template", "start", "restore", "identity", "connect", "worker", "steps", "judge"),
        ("start", "boot", "identity", "connect", "worker", "steps", "judge"),
    ],
    ids=["clone", "boot"],
)
def test_live_shows_each_stage_of_a_guest_as_one_word(stages: tuple[str, ...]):
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    report = TerminalReport(console, live=True)
    report.run_started(1, 1)
    for stage in stages:
        report.cell_stage("dma/a", stage)
        assert report._shown is not None
        report._shown.refresh()
    report.cell_finished(cell("dma/a", Outcome.PASS))
    report.close()
    shown = re.findall(r"dma/a +(\w+) +\d:\d\d:\d\d", file.getvalue())
    assert list(dict.fromkeys(shown)) == list(stages)
