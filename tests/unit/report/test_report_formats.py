# ruff: noqa: S314 - the XML that is parsed is our own
from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from report_data import RUN, cell
from report_qualified import EVERY, KNOWN, qualification, qualified
from rich.console import Console

from harness.errors import ConfigurationError
from harness.qualified.compare import compare
from harness.qualified.records import NotRun, from_run
from harness.report import write_cell, write_run
from harness.report.html import html_report
from harness.report.json_lines import SCHEMA, json_lines, schema
from harness.report.junit import qualified_xml
from harness.report.load import load, load_results
from harness.report.markdown import LIMIT, markdown
from harness.report.qualified_terminal import print_qualification
from harness.results import Outcome

HOSTILE = "</script></summary><b>|`@you*_[x](y) \x1b[31m\x00\ud800\r\n# head"


# JSON lines


def test_the_schema_in_the_repository_is_that_of_the_models():
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(schema())), "python -m harness.report.json_lines"


@pytest.mark.parametrize(
    "one", [EVERY, from_run(RUN), EVERY.model_copy(update={"comparison": compare(from_run(RUN), EVERY, 1.5)})]
)
def test_every_line_is_as_the_schema_says(one):
    checker = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    lines = [json.loads(line) for line in json_lines(one)]
    for line in lines:
        checker.validate(line)
    kinds = ["qualification", *["cell"] * len(one.cells), *["not-run"] * len(one.not_run)]
    assert [line["type"] for line in lines] == kinds


def test_the_schema_refuses_what_is_no_line():
    checker = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    line = json.loads(next(iter(json_lines(EVERY))))
    assert not checker.is_valid(line | {"counts": None})
    assert not checker.is_valid(line | {"type": "else"})


def test_json_lines_tell_what_counts_and_every_attempt():
    lines = [json.loads(line) for line in json_lines(EVERY)]
    assert (lines[0]["exit_code"], lines[0]["counts"]["known"], lines[0]["format"]) == (3, 1, 1)
    late = next(line for line in lines if line.get("scenario") == "usdm/late")
    assert [one["outcome"] for one in late["attempts"]] == ["error", "error"]
    assert late["attempts"][0]["failure_class"] == "infrastructure"


def test_json_lines_are_lines_whatever_a_guest_prints():
    lines = list(json_lines(qualification(qualified("a", fields={"message": HOSTILE, "seconds": float("inf")}))))
    assert all(line.isascii() and "\n" not in line for line in lines)
    assert json.loads(lines[1])["attempts"][0]["message"] == HOSTILE


# Markdown


def test_markdown_has_verdict_points_failures_and_what_was_not_run():
    text = markdown(EVERY)
    assert text.startswith(
        "### ❌ release 1\n\n**Works on 1 of 3 points. Fails on QEMU 11.1 with kernel 6.12: 1 scenario (dma/b). Not "
    )
    assert "| ❌ QEMU 11.1, kernel 6.12, intel-iommu | 1 | 2 | 0 |" in text
    assert "<code>dma/b</code>" in text
    assert "```\nharness run dma/b\n```" in text
    assert "* 1 × 6.1 tells it twice (docs/known.md), until 2027-03-01" in text
    assert "* 2 × needs 6.12" in text
    assert "attempt 2; before: no space left" in text


def test_markdown_takes_nothing_for_markup():
    text = markdown(
        qualification(qualified("a", outcome=Outcome.FAIL, fields={"message": HOSTILE, "rerun": "a ```` b"}))
    )
    assert "<b>" not in text
    assert "@you" not in text
    assert "</script>" not in text
    assert text.count("<details>") == text.count("</details>") == 1
    assert "`````\na ```` b\n`````" in text


def test_the_link_of_a_known_failure_is_a_link():
    link = "https://example.org/my_repo/issues/1#issuecomment-2"
    cell = qualified("a", outcome=Outcome.FAIL, known=KNOWN.model_copy(update={"link": link}))
    assert f"(<{link}>), until" in markdown(qualification(cell))
    assert f'(<a rel="noreferrer" href="{link}">{link}</a>, known-failures.yaml:3)' in html_report(qualification(cell))


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "https://a b", "https://a><b>", 'https://a"onclick=x', "x https://a"]
)
def test_what_is_no_address_of_the_web_is_no_link(link):
    cell = qualified("a", outcome=Outcome.FAIL, known=KNOWN.model_copy(update={"link": link}))
    assert f"<{link}>" not in markdown(qualification(cell))
    assert "<a rel=" not in html_report(qualification(cell))


def test_markdown_is_never_longer_than_github_takes():
    cells = [qualified(f"dma/{n}", outcome=Outcome.FAIL, fields={"message": "x" * 900}) for n in range(400)]
    text = markdown(qualification(*cells))
    assert len(text) <= LIMIT
    assert "further parts left out" in text.splitlines()[-1]
    assert text.count("<details>") == text.count("</details>")


def test_markdown_closes_what_was_not_run_also_when_there_is_no_room():
    gone = tuple(NotRun(scenario="a", reason=f"{n} " + "y" * 3000) for n in range(30))
    text = markdown(qualification(qualified("a"), not_run=gone), 10_000)
    assert text.count("<details>") == text.count("</details>")
    assert len(text) <= 10_000


# JUnit XML


def test_junit_has_a_suite_for_each_point():
    root = ET.fromstring(qualified_xml(EVERY))
    assert root.attrib == {
        "name": "release 1",
        "tests": "7",
        "failures": "1",
        "errors": "1",
        "skipped": "3",
        "time": "0.000",
    }
    suites = {suite.get("name"): suite for suite in root}
    assert "QEMU 11.1, kernel 6.1, intel-iommu" in suites
    for suite in root:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
    known = suites["QEMU 11.1, kernel 6.1, intel-iommu"].find("testcase/skipped").get("message")
    assert known.startswith("known failure until 2027-03-01: 6.1 tells it twice (docs/known.md)")
    late = root.find(".//testcase[@name='late']")
    properties = {one.get("name"): one.get("value") for one in late.iter("property")}
    assert properties["attempt.1"] == "error, infrastructure: no space left"
    assert (properties["point.kernel"], properties["note"]) == ("6.12", "it was odd")


# Terminal


def test_the_terminal_ends_with_the_verdict(capsys):
    one = EVERY.model_copy(update={"comparison": compare(qualification(qualified("dma/b")), EVERY, 1.5)})
    print_qualification(one, Console(width=500, color_system=None))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("Works on 1 of 3 points.")
    text = "\n".join(lines)
    for part in ("FAIL  dma/b", "rerun: harness run dma/b", "known failures: 1", "not run: 3", "newly failing: 1"):
        assert part in text
    assert "attempts: 2; before: no space left" in text


# Folders


def test_a_run_folder_and_a_cell_folder_are_read(tmp_path):
    write_run(RUN, tmp_path)
    found, run = load_results(tmp_path / "run.json")
    assert (run, found) == (RUN, from_run(RUN))
    write_cell(RUN.cells[0], tmp_path / "one")
    assert [one.scenario for one in load(tmp_path / "one").cells] == [RUN.cells[0].scenario]


def test_a_result_of_an_earlier_version_is_read(tmp_path):
    write_run(RUN, tmp_path)
    document = json.loads((tmp_path / "run.json").read_text())
    for one in document["cells"]:
        for name in ("reference", "implementation", "start"):
            del one[name]
        if one["versions"]:
            del one["versions"]["oracle"], one["versions"]["template"]
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert len(load(tmp_path).cells) == 3


@pytest.mark.parametrize("name", ["run.json", "verdict.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"cells": [\xff')
    with pytest.raises(ConfigurationError, match=f"{name} is no result of a run") as caught:
        load(tmp_path)
    assert "run the scenarios again" in caught.value.hint


def test_a_path_that_is_no_result(tmp_path):
    (tmp_path / "x.html").write_text("")
    for path, words in ((tmp_path / "x.html", "is no folder of results"), (tmp_path / "none", "does not exist")):
        with pytest.raises(ConfigurationError, match=words):
            load(path)


def test_a_cell_without_a_name_of_an_axis_has_no_point():
    assert from_run(RUN.model_copy(update={"cells": (cell("a"),)})).cells[0].point == {}
