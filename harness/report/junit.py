"""Results as JUnit XML, for CI systems that show test results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from harness.qualified.records import NotRun, Qualification, QualifiedCell, Standing
from harness.report.evidence import cell_text, reference_table, steps_table
from harness.report.points import Point, as_point, point_text, varying
from harness.report.text import clean, counts, one_line, oracle_name, reasons, variant, version_facts, write_text
from harness.report.verdict import totals
from harness.results import CellResult, Outcome, RunResult

_NAME: Final = "usdm-harness"


def junit_xml(result: RunResult) -> str:
    """The run as a JUnit XML document: a suite for each family of scenarios, a test case for each cell.

    Args:
        result: the result of the run.
    """
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
    """Write the run as JUnit XML and return the file's path.

    Args:
        result: the result of the run.
        path: the file; one that is there is overwritten.
    """
    return write_text(path, junit_xml(result))


def qualified_xml(one: Qualification) -> str:
    """A qualification as a JUnit XML document: a suite for each point, a test case for each cell.

    A known failure counts as skipped, with the reason; what was not run is a skipped case of its point. Attempts that
    do not count are properties of their case.
    """
    axes = varying(one.axes)
    items: dict[Point, list[QualifiedCell | NotRun]] = {}
    every: tuple[QualifiedCell | NotRun, ...] = (*one.cells, *one.not_run)
    for item in every:
        items.setdefault(as_point(item.point, axes), []).append(item)
    root = ET.Element("testsuites", _qualified_totals(one.title or _NAME, one.cells, len(one.not_run), one.seconds))
    for point, mine in items.items():
        cells = [item for item in mine if isinstance(item, QualifiedCell)]
        seconds = sum(cell.result.seconds for cell in cells)
        name = point_text(point) or "all points"
        suite = ET.SubElement(root, "testsuite", _qualified_totals(name, cells, len(mine) - len(cells), seconds))
        if one.started:
            suite.set("timestamp", clean(one.started))
        _properties(suite, {**one.host, **{f"point.{axis}": value for axis, value in point}})
        for item in mine:
            family, _, last = one_line(item.scenario).rpartition("/")
            if isinstance(item, QualifiedCell):
                _case(suite, item.result, family or _NAME, distinct=False, cell=item).set("name", last)
                continue
            case = ET.SubElement(
                suite, "testcase", classname=(family or _NAME).replace("/", "."), name=last, time="0.000"
            )
            ET.SubElement(case, "skipped", message=one_line(item.reason))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def write_qualified_junit(one: Qualification, path: Path) -> Path:
    """Write a qualification as JUnit XML and return the file's path."""
    return write_text(path, qualified_xml(one))


def _qualified_totals(name: str, cells: Sequence[QualifiedCell], not_run: int, seconds: float) -> dict[str, str]:
    number = totals(cells)
    return {
        "name": one_line(name),
        "tests": str(len(cells) + not_run),
        "failures": str(number[Standing.FAIL]),
        "errors": str(number[Standing.ERROR]),
        "skipped": str(number[Standing.KNOWN] + number[Standing.SKIP] + not_run),
        "time": f"{seconds:.3f}",
    }


def _qualified_facts(cell: QualifiedCell) -> dict[str, str]:
    facts = {f"point.{axis}": value for axis, value in cell.point.items()} | {"note": cell.note}
    for number, attempt in enumerate(cell.attempts, 1):
        if attempt is cell.result:
            continue
        facts[f"attempt.{number}"] = one_line(f"{attempt.outcome}, {attempt.failure_class or '-'}: {attempt.message}")
    return facts | {"fingerprint": cell.fingerprint}


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


def _case(
    suite: ET.Element, result: CellResult, family: str, *, distinct: bool, cell: QualifiedCell | None = None
) -> ET.Element:
    """A test case for a result; of a qualification's cell with what that adds to it."""
    name = one_line(result.scenario).rpartition("/")[2]
    if distinct and variant(result):
        name += f" [{variant(result)}]"
    case = ET.SubElement(suite, "testcase", classname=family.replace("/", "."), name=name, time=f"{result.seconds:.3f}")
    if result.file:
        case.set("file", clean(result.file))
    facts = {
        "title": result.title,
        "source": result.source,
        "failure_class": result.failure_class or "",
        "start": result.start,
        "folder": result.folder,
        "rerun": result.rerun,
        "hint": result.hint or "",
    }
    versions = {} if result.versions is None else version_facts(result.versions)
    stages = {f"stage.{stage}": f"{seconds:.3f}" for stage, seconds in result.stages.items()}
    more = {} if cell is None else _qualified_facts(cell)
    _properties(case, {k: v for k, v in {**facts, **versions, **stages, **more}.items() if v})
    if cell is not None and cell.standing is Standing.KNOWN and cell.known is not None:
        known = cell.known
        why = f"known failure until {known.until}: {known.reason} ({known.link}): {result.message}"
        ET.SubElement(case, "skipped", message=one_line(why))
    else:
        _outcome(case, result)
    table = steps_table(result)
    if result.reference is not None:
        table = f"on usdm\n{table}\non {oracle_name(result)}\n{reference_table(result)}"
    if table:
        ET.SubElement(case, "system-out").text = clean(table)
    if result.console_tail:
        ET.SubElement(case, "system-err").text = clean("\n".join(result.console_tail))
    return case


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
