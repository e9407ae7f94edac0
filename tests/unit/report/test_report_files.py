# ruff: noqa: S314 - the XML that is parsed is our own
from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_data import CRASHED, EVIDENCE, FAILED, PASSED, RUN, SKIPPED, VERSIONS, cell

from harness.errors import ConfigurationError
from harness.report import cell_text, junit_xml, load_run, run_json, write_cell, write_junit, write_run
from harness.report.evidence import observed_text, steps_table
from harness.report.json_report import exit_code
from harness.report.text import clean, one_line, summary
from harness.results import Evidence, Outcome, RunResult, StepEvidence


def suites(result=RUN):
    root = ET.fromstring(junit_xml(result))
    return root, {suite.get("name"): suite for suite in root}


def properties(element):
    return {one.get("name"): one.get("value") for one in element.findall("properties/property")}


# JUnit XML


def test_junit_totals():
    root, found = suites()
    assert root.attrib == {
        "name": "usdm-harness", "tests": "4", "failures": "1", "errors": "1", "skipped": "1", "time": "12.340",
    }  # fmt: skip
    assert set(found) == {"dma", "usdm", "usdm/edge"}
    assert (found["dma"].get("tests"), found["dma"].get("failures")) == ("2", "1")
    assert found["dma"].get("timestamp") == "2026-01-02T03:04:05Z"
    assert properties(found["dma"]) == {"cores": "2"}


def test_junit_failure():
    _, found = suites()
    case = found["dma"].find("testcase[@name='unmapped_read']")
    assert (case.get("classname"), case.get("time")) == ("dma", "2.250")
    assert case.get("file") == "scenarios/dma/unmapped_read.yaml"
    failure = case.find("failure")
    assert failure.get("type") == "expectation"
    assert failure.get("message") == "step 1 (dma_read): expected no error, observed the error X"
    assert "FAIL faults: expected no faults, observed 1" in failure.text
    assert properties(case)["rerun"] == "harness run dma/unmapped_read"
    assert properties(case)["qemu"] == "11.1.3"
    assert properties(case)["failure_class"] == "expectation"


def test_junit_error_has_its_class_and_no_control_characters():
    _, found = suites()
    error = found["usdm/edge"].find("testcase/error")
    assert error.get("type") == "panic"
    assert error.get("message") == "the kernel panicked: Oops [no]markup"
    assert found["usdm/edge"].find("testcase/system-err").text == "first\nKernel panic - not syncing\nlast"


def test_junit_skip_and_pass():
    _, found = suites()
    assert found["usdm"].find("testcase/skipped").get("message") == "needs QEMU >=11.2, this is 11.1.3"
    case = found["dma"].find("testcase[@name='mapped_read']")
    assert {child.tag for child in case} == {"properties", "system-out"}
    assert properties(case)["stage.boot"] == "1.500"
    assert "dma_read" in case.find("system-out").text


def test_junit_tells_cells_of_one_scenario_apart():
    other = PASSED.model_copy(update={"versions": VERSIONS.model_copy(update={"qemu": "7.2.22"})})
    _, found = suites(RUN.model_copy(update={"cells": (PASSED, other)}))
    assert [case.get("name") for case in found["dma"].iter("testcase")] == [
        "mapped_read [qemu 11.1.3, kernel 6.12.88]",
        "mapped_read [qemu 7.2.22, kernel 6.12.88]",
    ]


def test_junit_of_a_run_without_cells():
    root, found = suites(RunResult(started="", argv=()))
    assert (root.get("tests"), found) == ("0", {})


@settings(deadline=None)
@given(st.text() | st.text(st.characters(min_codepoint=0, max_codepoint=0xA0)))
def test_junit_is_valid_xml_whatever_a_guest_prints(text):
    texts = dict.fromkeys(("message", "title", "source", "hint"), text)
    step = StepEvidence(index=0, kind=text, args={text: text}, values={text: text})
    evidence = Evidence(steps=(step,))
    odd = cell("a/b", Outcome.ERROR, **texts, console_tail=(text,), stages={text: 1.0}, evidence=evidence)
    root = ET.fromstring(junit_xml(RunResult(started=text, argv=(), host={text: text}, cells=(odd,))))
    assert root.find("testsuite/testcase/error").get("message")


def test_write_junit(tmp_path):
    path = write_junit(RUN, tmp_path / "new" / "junit.xml")
    assert ET.parse(path).getroot().get("tests") == "4"
    assert [one.name for one in path.parent.iterdir()] == ["junit.xml"]


# JSON


def test_a_run_is_read_back_as_it_was(tmp_path):
    write_run(RUN, tmp_path)
    assert load_run(tmp_path) == RUN


def test_reports_of_a_run_read_back_are_the_same(tmp_path):
    write_run(RUN, tmp_path)
    assert junit_xml(load_run(tmp_path)) == junit_xml(RUN)
    assert run_json(load_run(tmp_path)) == run_json(RUN)


def test_a_run_that_was_killed_is_collected_from_its_cells(tmp_path):
    for one in (PASSED, FAILED):
        write_cell(one, tmp_path / one.scenario)
    result = load_run(tmp_path)
    assert result.cells == (PASSED, FAILED)
    assert result.interrupted
    assert result.seconds == 4.5


def test_one_cell_is_not_an_interrupted_run(tmp_path):
    write_cell(PASSED, tmp_path)
    result = load_run(tmp_path)
    assert (result.cells, result.interrupted, exit_code(result)) == ((PASSED,), False, 0)


def test_cells_are_not_searched_for_in_folders_that_are_no_run_s(tmp_path):
    write_cell(PASSED, tmp_path / "a" / "b" / "c")
    with pytest.raises(ConfigurationError, match="has no results"):
        load_run(tmp_path)


def test_a_qualification_without_its_file_is_no_interrupted_run(tmp_path):
    write_cell(PASSED, tmp_path / "cells" / "a")
    (tmp_path / "cells" / "a" / "row.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "cells"):
        with pytest.raises(ConfigurationError, match="cells of a qualification") as caught:
            load_run(folder)
        assert "--rebuild" in (caught.value.hint or "")
    assert load_run(tmp_path / "cells" / "a").cells == (PASSED,)


def test_a_cell_is_written_whole(tmp_path):
    path = write_cell(FAILED, tmp_path)
    assert path.name == "verdict.json"
    document = json.loads(path.read_text())
    assert document["outcome"] == "fail"
    assert document["failure_class"] == "expectation"
    assert document["verdict"]["checks"][1]["passed"] is False
    assert document["evidence"]["steps"][1]["values"]["iova"] == 0x900000


def test_a_folder_without_results(tmp_path):
    with pytest.raises(ConfigurationError, match="has no results") as caught:
        load_run(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "Expecting"), ("[]", "valid dictionary"), ('{"argv": []}', "started: Field required")]
)
def test_a_file_that_is_no_result(tmp_path, text, reason):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load_run(tmp_path)
    assert "run.json is no result of a run" in caught.value.message


def test_output_for_programs():
    document = json.loads(run_json(RUN))
    assert document["counts"] == {"pass": 1, "fail": 1, "error": 1, "skip": 1}
    assert document["exit_code"] == 4
    assert [one["scenario"] for one in document["cells"]] == [one.scenario for one in RUN.cells]
    assert "evidence" not in document["cells"][0]
    assert document["cells"][2]["verdict"]["faults"][0]["address"] == 0x900000
    assert json.loads(run_json(RunResult(started="", argv=(), cells=(PASSED,))))["exit_code"] == 0


def test_json_of_values_that_json_does_not_have(tmp_path):
    odd = Evidence(steps=(StepEvidence(index=0, kind="x", args={}, values={"a": [float("nan")], "b": "\udc80"}),))
    path = write_cell(PASSED.model_copy(update={"evidence": odd}), tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    values = json.loads(path.read_text(), parse_constant=refuse)["evidence"]["steps"][0]["values"]
    assert values == {"a": [None], "b": "\udc80"}


# Text


TABLE = """\
   step  kind      seconds  arguments                         observed
   0     alloc     0.010    as=b size=0x10000                 returns 0x7f0000000000, iova=0x100000
!  1     dma_read  0.125    device=edu0 iova=0x900000 size=16  completed=true iova=0x900000, 4 lines of trace
   2     fork      0.500
   2.0   map       0.002    buffer=b size=1                   NotAligned: size 1 is no multiple of 4096, returns 0
"""


def test_steps_table():
    assert steps_table(FAILED).replace(" ", "") == TABLE.replace(" ", "")
    lines = steps_table(FAILED).splitlines()
    column = lines[0].index("observed")
    assert all(len(line) < column or line[column - 1] == " " != line[column] for line in lines)
    assert steps_table(SKIPPED) == ""


def test_text_of_a_cell():
    text = cell_text(FAILED)
    assert text.startswith("FAIL dma/unmapped_read: A title\n")
    assert "  rerun: harness run dma/unmapped_read\n" in text
    assert "  02:00.0 read 0x900000 reason 0x06, 4 times, step 1\n" in text
    assert "  [9.500000] 02:00.0 read 0x900000 reason 0x06 PTE Read\n" in text
    assert "  ok   step 0 (alloc): no error\n" in text
    assert "  FAIL faults: expected no faults, observed 1\n" in text
    assert "  only the trace has something: compression\n" in text


def test_text_of_a_cell_without_faults_says_so():
    verdict = FAILED.verdict.model_copy(update={"faults": ()})
    text = cell_text(FAILED.model_copy(update={"verdict": verdict}))
    assert "Faults in the trace of QEMU\n  none\n" in text
    assert "Faults in the kernel's log\n  none\n" in text


def test_text_of_a_crash_has_the_console():
    assert "The console's last lines\n  first\n  Kernel panic - not syncing\n  last\n" in cell_text(CRASHED)


def test_clean():
    assert clean("a\x1b[31;1mb\x1b[0m\x1b]0;title\x07c\x00\x7f\x9bd\te\n\r\ufffe\ud800") == "abcd\te\n"
    assert clean("naïve → 木 😀") == "naïve → 木 😀"
    assert one_line(" a\n\tb  c ") == "a b c"


def test_summary():
    assert summary(RUN) == "1 passed, 1 failed, 1 errors, 1 skipped in 12.3 s"


def test_evidence_is_not_needed():
    assert "Steps" not in cell_text(SKIPPED)
    assert EVIDENCE.steps


def test_the_exit_code_says_interrupted_and_nothing_run():
    skipped = [cell.model_copy(update={"outcome": Outcome.SKIP, "failure_class": None}) for cell in RUN.cells]
    assert exit_code(RUN.model_copy(update={"cells": tuple(skipped)})) == 2
    assert exit_code(RUN.model_copy(update={"cells": ()})) == 2
    assert exit_code(RUN.model_copy(update={"interrupted": True})) == 130


def test_addresses_in_lists_are_written_as_addresses():
    values = {"iova_ranges": [[0, 0xFEDFFFFF], [0xFEF00000, (1 << 48) - 1]], "names": ["a", "b"], "left": 12, "no": []}
    step = StepEvidence(index=0, kind="open", args={}, seconds=0.1, values=values)
    assert observed_text(step) == (
        'iova_ranges=[[0, 0xfedfffff], [0xfef00000, 0xffffffffffff]] names=["a", "b"] left=12 no=[]'
    )
