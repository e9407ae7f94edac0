"""Results as JUnit XML, for CI systems that show test results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from harness.report.evidence import cell_text, reference_table, steps_table
from harness.report.text import clean, counts, one_line, oracle_name, reasons, variant, version_facts, write_text
from harness.results import CellResult, Outcome, RunResult

_NAME: Final = "usdm-harness"


def junit_xml(result: RunResult) -> str:
    """The run as a JUnit XML document: a suite for each family of scenarios, a test case for each cell."""
    root = ET.Element("testsuites", _totals(_NAME, result.cells, result.seconds))
    repeated = {scenario for scenario, number in Counter(c.scenario for c in result.cells).items() if number > 1}
    ordered = sorted(result.cells, key=_family)
    for family, group in groupby(ordered, key=_family):
        cells = list(group)
        suite = ET.SubElement(root, "testsuite", _totals(family, cells, sum(cell.seconds for cell in cells)))
        if result.started:
            suite.set("timestamp", clean(result.started))
        _properties(suite, result.host)
        for cell in cells:
            _case(suite, cell, family, distinct=cell.scenario in repeated)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def write_junit(result: RunResult, path: Path) -> Path:
    """Write the run as JUnit XML and return the file's path."""
    return write_text(path, junit_xml(result))


def _family(cell: CellResult) -> str:
    """The folder of the scenario: ``dma`` of ``dma/unmapped_read``."""
    return one_line(cell.scenario).rpartition("/")[0] or _NAME


def _totals(name: str, cells: Sequence[CellResult], seconds: float) -> dict[str, str]:
    number = counts(cells)
    return {
        "name": name,
        "tests": str(len(cells)),
        "failures": str(number[Outcome.FAIL]),
        "errors": str(number[Outcome.ERROR]),
        "skipped": str(number[Outcome.SKIP]),
        "time": f"{seconds:.3f}",
    }


def _properties(parent: ET.Element, values: dict[str, str]) -> None:
    if values:
        holder = ET.SubElement(parent, "properties")
        for name, value in values.items():
            ET.SubElement(holder, "property", name=clean(name), value=clean(value))


def _case(suite: ET.Element, cell: CellResult, family: str, *, distinct: bool) -> None:
    name = one_line(cell.scenario).rpartition("/")[2]
    if distinct and variant(cell):
        name += f" [{variant(cell)}]"
    case = ET.SubElement(suite, "testcase", classname=family.replace("/", "."), name=name, time=f"{cell.seconds:.3f}")
    if cell.file:
        case.set("file", clean(cell.file))
    facts = {
        "title": cell.title,
        "source": cell.source,
        "failure_class": cell.failure_class or "",
        "start": cell.start,
        "folder": cell.folder,
        "rerun": cell.rerun,
        "hint": cell.hint or "",
    }
    versions = {} if cell.versions is None else version_facts(cell.versions)
    stages = {f"stage.{stage}": f"{seconds:.3f}" for stage, seconds in cell.stages.items()}
    _properties(case, {k: v for k, v in {**facts, **versions, **stages}.items() if v})
    _outcome(case, cell)
    table = steps_table(cell)
    if cell.reference is not None:
        table = f"on usdm\n{table}\non {oracle_name(cell)}\n{reference_table(cell)}"
    if table:
        ET.SubElement(case, "system-out").text = clean(table)
    if cell.console_tail:
        ET.SubElement(case, "system-err").text = clean("\n".join(cell.console_tail))


def _outcome(case: ET.Element, cell: CellResult) -> None:
    message = next(iter(reasons(cell)), "no reason was given")
    kind = cell.failure_class or cell.outcome
    match cell.outcome:
        case Outcome.SKIP:
            ET.SubElement(case, "skipped", message=message)
        case Outcome.FAIL:
            ET.SubElement(case, "failure", type=str(kind), message=message).text = clean(cell_text(cell))
        case Outcome.ERROR:
            ET.SubElement(case, "error", type=str(kind), message=message).text = clean(cell_text(cell))
        case Outcome.PASS:
            pass
