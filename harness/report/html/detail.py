"""One cell as the page shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.qualified.records import QualifiedCell, Standing
from harness.report.evidence import arguments_text, observed_text
from harness.report.html.logs import Log, logs_of
from harness.report.html.space import Space, space_of
from harness.report.html.timeline import WITNESSES, Timeline, timeline_of
from harness.report.points import as_point, point_text
from harness.report.text import clean, fault_line, one_line, oracle_name, reasons, started, version_facts
from harness.results import CellResult, Check, Evidence, FaultRecord

SYMBOLS: Final = {
    Standing.PASS: "✓",
    Standing.KNOWN: "≈",
    Standing.FAIL: "✕",
    Standing.ERROR: "!",
    Standing.SKIP: "–",
}
WORDS: Final = {
    Standing.PASS: "passed",
    Standing.KNOWN: "known failure",
    Standing.FAIL: "failed",
    Standing.ERROR: "error",
    Standing.SKIP: "not run",
}

_ARGS: Final = 200
_OBSERVED: Final = 320
_STEPS: Final = 200
_FAULTS: Final = 60


@dataclass(frozen=True, slots=True)
class Row:
    """A step: number, kind, arguments, what was observed, seconds, its bar in percent, whether a check of it failed."""

    number: str
    kind: str
    args: str
    observed: str
    seconds: float
    bar: float
    failed: bool


@dataclass(frozen=True, slots=True)
class Detail:
    """A cell for the template; every text is clean.

    Args:
        id: of the element that has it.
        standing: ``pass``, ``known``, ``fail``, ``error``.
        word: the same in words.
        symbol: the same as a character.
        name: the scenario's id.
        point: in words.
        cell: the cell itself.
        result: its result that counts.
        reasons: why it did not pass, one line each.
        guest: how its guest was started.
        failed: the checks that failed.
        passed: the others.
        tables: name and steps of each guest.
        steps_left_out: steps that there was no room for.
        faults: witness and line of each.
        faults_left_out: how many more there were.
        timeline: the picture of them.
        space: the picture of the IOVA space.
        logs: the logs.
        stages: name, seconds, percent of the whole.
        manifest: what ran, by name.
        attempts: outcome, class, message, seconds of each, where there were several.
    """

    id: str
    standing: str
    word: str
    symbol: str
    name: str
    point: str
    cell: QualifiedCell
    result: CellResult
    reasons: tuple[str, ...]
    guest: str
    failed: tuple[Check, ...]
    passed: tuple[Check, ...]
    tables: tuple[tuple[str, tuple[Row, ...]], ...]
    steps_left_out: int
    faults: tuple[tuple[str, str], ...]
    faults_left_out: int
    timeline: Timeline | None
    space: Space | None
    logs: tuple[Log, ...]
    stages: tuple[tuple[str, float, float], ...]
    manifest: dict[str, str]
    attempts: tuple[tuple[str, str, str, float], ...]


def detail_of(number: int, cell: QualifiedCell, root: Path | None) -> Detail:
    """A cell for the page.

    Args:
        number: its place, which names its element.
        cell: the cell.
        root: the folder of all results.
    """
    result, passed = cell.result, cell.standing is Standing.PASS
    checks = () if result.verdict is None else result.verdict.checks
    faults = () if result.verdict is None else result.verdict.faults
    failed = tuple(check for check in checks if not check.passed)
    steps = [(name, *_rows(evidence, failed, name)) for name, evidence in _evidence(result)]
    return Detail(
        id=f"c{number}",
        standing=str(cell.standing),
        word=WORDS[cell.standing],
        symbol=SYMBOLS[cell.standing],
        name=one_line(cell.scenario),
        point=one_line(point_text(as_point(cell.point))),
        cell=cell,
        result=result,
        reasons=tuple(reasons(result)),
        guest=started(result),
        failed=failed,
        passed=tuple(check for check in checks if check.passed),
        tables=tuple((name, rows) for name, rows, _ in steps),
        steps_left_out=sum(more for _, _, more in steps),
        faults=tuple((WITNESSES[fault.witness], _fault(fault)) for fault in faults[:_FAULTS]),
        faults_left_out=max(len(faults) - _FAULTS, 0),
        timeline=timeline_of(result),
        space=space_of(result.evidence, [fault for fault in faults if fault.witness == "trace"]),
        logs=_logs(result, root, passed),
        stages=tuple(_stages(result)),
        manifest=_manifest(cell),
        attempts=tuple(_attempts(cell)) if len(cell.attempts) > 1 else (),
    )


def _logs(result: CellResult, root: Path | None, passed: bool) -> tuple[Log, ...]:
    """Of a cell that passed only what tells of faults; there may be a thousand."""
    if passed:
        return logs_of(result, root, context=0, tail=2, limit=12)
    return logs_of(result, root, context=3, tail=25, limit=120)


def _evidence(result: CellResult) -> Iterator[tuple[str, Evidence]]:
    if result.evidence is not None:
        yield ("Steps on usdm" if result.reference is not None else "Steps"), result.evidence
    if result.reference is not None:
        yield f"Steps on {oracle_name(result)}", result.reference


def _rows(evidence: Evidence, failed: tuple[Check, ...], name: str) -> tuple[tuple[Row, ...], int]:
    """The steps of a guest and how many are left out. A check of one guest of two begins with that guest's name."""
    side = name.removeprefix("Steps on ") if name != "Steps" else ""
    bad = {check.step for check in failed if not side or check.name.startswith(f"{side}:")}
    longest = max((step.seconds for step in evidence.steps), default=0.0) or 1.0
    rows = [
        Row(
            str(step.index),
            one_line(step.kind),
            _short(arguments_text(step), _ARGS),
            _short(observed_text(step), _OBSERVED),
            step.seconds,
            round(100 * step.seconds / longest, 1),
            step.index in bad,
        )
        for step in evidence.steps
    ]
    if len(rows) <= _STEPS:
        return tuple(rows), 0
    kept = [row for number, row in enumerate(rows) if number < _STEPS or row.failed]
    return tuple(kept), len(rows) - len(kept)


def _fault(fault: FaultRecord) -> str:
    time = "" if fault.time is None or fault.witness == "trace" else f"[{fault.time:.6f}] "
    return time + fault_line(fault)


def _stages(result: CellResult) -> Iterator[tuple[str, float, float]]:
    total = max(sum(result.stages.values()), 0.001)
    for stage, seconds in result.stages.items():
        if seconds >= 0.001:
            yield one_line(stage), seconds, round(100 * seconds / total, 2)


def _manifest(cell: QualifiedCell) -> dict[str, str]:
    """Everything that the result depends on, by name; only what is known."""
    result = cell.result
    facts = {} if result.versions is None else version_facts(result.versions)
    facts = {name.replace("_", " "): fact for name, fact in facts.items()}
    facts |= {"scenario file": result.file, "fingerprint": cell.fingerprint, "folder": result.folder}
    return {name: one_line(fact) for name, fact in facts.items() if fact}


def _attempts(cell: QualifiedCell) -> Iterator[tuple[str, str, str, float]]:
    for one in cell.attempts:
        yield str(one.outcome), str(one.failure_class or ""), one_line(one.message), one.seconds


def _short(text: str, width: int) -> str:
    text = clean(text)
    return text if len(text) <= width else text[: width - 4] + " ..."
