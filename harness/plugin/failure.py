"""What a test that did not pass shows: each reason with its place, the evidence, the commands to run it again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from harness.report.evidence import reference_table, steps_table
from harness.report.text import clean, fault_line, one_line, oracle_name, started, version_facts
from harness.results import CellResult, Check, Outcome
from harness.scenario.yaml_marks import Document, Path_, read_document

LOG_LINES: Final = 20
_STEP: Final = re.compile(r"(?:\w+: )?step (\d+)((?:\.\d+)*)\b")
_LOG: Final = re.compile(r"(?:\w+: )?kernel log /(.*)/", re.DOTALL)
_FAULTS: Final = re.compile(r"(?:\w+: )?faults")
_UNEXPECTED: Final = re.compile(r"unexpected: .*?\bstep (\d+)\b")

PlaceOf = Callable[[Check], str]
"""Where the step or the expectation of a check stands: ``file:line``."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell's result with what pytest shows of it.

    Args:
        result: the result.
        place_of: where what a check is about stands.
        rerun: pytest's own command to run it again.
        point: axis to value.
        note: what a reader should know beside.
    """

    result: CellResult
    place_of: PlaceOf
    rerun: str
    point: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


RESULT: Final = pytest.StashKey[Shown]()
"""On an item: what its cell came to."""


def failure_text(shown: Shown) -> str:
    """Why a cell did not pass, where its evidence is, and how to run it again."""
    result = shown.result
    lines = list(_reasons(shown))
    if shown.note:
        lines.append(f"note: {one_line(shown.note)}")
    if result.hint:
        lines.append(f"hint: {one_line(result.hint)}")
    if result.folder:
        lines.append(f"evidence: {result.folder}")
    lines.append(f"rerun: {shown.rerun}")
    if result.rerun and result.rerun != shown.rerun:
        lines.append(f"   or: {result.rerun}")
    return "\n".join(lines)


def _reasons(shown: Shown) -> Iterator[str]:
    result = shown.result
    if result.outcome is Outcome.ERROR or result.verdict is None:
        yield one_line(f"{result.file}: {result.failure_class or result.outcome}: {result.message}")
        return
    for check in result.verdict.checks:
        if not check.passed:
            yield one_line(f"{shown.place_of(check)}: {check.name}: {check.message}")


def sections(shown: Shown) -> Iterator[tuple[str, str]]:
    """The evidence that is attached to a test that did not pass, by its title."""
    result = shown.result
    table = steps_table(result)
    if table:
        yield "harness: steps" + (" on usdm" if result.reference else ""), clean(table)
    if result.reference is not None:
        yield f"harness: steps on {oracle_name(result)}", clean(reference_table(result))
    if result.verdict is not None and result.verdict.faults:
        lines = [f"{fault.witness}: {fault_line(fault)}" for fault in result.verdict.faults]
        yield "harness: faults", "\n".join(lines)
    if result.verdict is not None and result.verdict.notes:
        yield "harness: notes", "\n".join(one_line(note) for note in result.verdict.notes)
    log = result.evidence.kernel_log if result.evidence is not None else ()
    if log:
        left = len(log) - LOG_LINES
        head = [f"... {left} lines before are in kernel.log"] if left > 0 else []
        yield "harness: kernel log", "\n".join([*head, *map(clean, log[-LOG_LINES:])])
    if result.console_tail:
        yield "harness: console", clean("\n".join(result.console_tail))


def properties(shown: Shown) -> Iterator[tuple[str, str]]:
    """What JUnit XML says of a test."""
    result = shown.result
    facts = {f"harness.{axis}": value for axis, value in shown.point.items()}
    if result.versions is not None:
        facts |= {f"harness.versions.{name}": text for name, text in version_facts(result.versions).items()}
    facts |= {
        "harness.outcome": str(result.outcome),
        "harness.failure_class": str(result.failure_class or ""),
        "harness.start": started(result),
        "harness.evidence": result.folder,
        "harness.rerun": result.rerun,
        "harness.pytest": shown.rerun,
    }
    yield from ((name, clean(text)) for name, text in facts.items() if text)


def is_about_faults(check: Check) -> bool:
    """Whether a check compares the faults that happened with those that had to."""
    return _FAULTS.match(check.name) is not None


def step_of_fault(check: Check) -> int | None:
    """The step in which a fault happened that nobody expected; None where one is missing instead."""
    found = _UNEXPECTED.search(check.message)
    return int(found[1]) if found else None


class FilePlaces:
    """Where the parts of a scenario file stand.

    Args:
        file: the file.
        shown: how its name is written.
    """

    def __init__(self, file: Path, shown: str) -> None:
        self._shown = shown
        try:
            self._document = read_document(file.read_text(encoding="utf-8-sig"), file)
        except (OSError, UnicodeDecodeError):  # it was there when it was loaded; the name alone is a place too
            self._document = Document()

    def __call__(self, check: Check) -> str:
        """``file:line`` of the step or the expectation that a check is about; the file alone where it has none."""
        path = self._path(check)
        return f"{self._shown}:{self._document.place(path, key=True)[0]}" if path else self._shown

    def _path(self, check: Check) -> Path_:
        step = _STEP.match(check.name)
        if step is not None:
            return self._step(int(step[1]), [int(part) for part in step[2].split(".")[1:]])
        log = _LOG.match(check.name)
        if log is not None:
            patterns = self._at(("expect", "kernel_log"))
            wanted = [place for place, one in enumerate(patterns or ()) if one == log[1]]
            return ("expect", "kernel_log", *wanted[:1])
        if is_about_faults(check):
            at = step_of_fault(check)
            return ("expect", "faults") if at is None else ("steps", at)
        return ("steps", check.step) if check.step is not None else ()

    def _step(self, index: int, inner: list[int]) -> Path_:
        path: Path_ = ("steps", index)
        for position in inner:
            step = self._at(path)
            kind = next((key for key in step or () if isinstance(step[key], dict) and "steps" in step[key]), None)
            if kind is None:
                break
            path = (*path, kind, "steps", position)
        return path

    def _at(self, path: Path_) -> Any:
        """What stands at a path; None for nothing."""
        data = self._document.data
        for part in path:
            try:
                data = data[part]
            except (KeyError, IndexError, TypeError):
                return None
        return data


def attach_evidence(item: pytest.Item, report: pytest.TestReport) -> None:
    """Give a report what its cell left: sections where it failed, the item's place where it was skipped.

    Args:
        item: the test.
        report: the report of one of its phases.
    """
    shown = item.stash.get(RESULT, None)
    if report.failed and shown is not None and not any(title.startswith("harness: ") for title, _ in report.sections):
        report.sections.extend(sections(shown))
        if shown.rerun not in str(report.longrepr):
            report.sections.append(("harness: verdict", failure_text(shown)))
