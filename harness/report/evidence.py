"""One cell as text for people: what ran, what each step did and when, what the witnesses saw, what failed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from harness.oracle_traits import TRAITS
from harness.report.devices import devices_text
from harness.report.mappings import KIND, mappings_text
from harness.report.text import clean, fault_line, one_line, oracle_name, started, version_facts
from harness.results import CellResult, Check, FaultRecord, StepEvidence

_ARGS: Final = 60
_SEEN: Final = 100


def steps_table(cell: CellResult) -> str:
    """The steps of a cell, one line each: number, kind, arguments, what was observed, time; failed ones marked.

    Empty for a cell without steps.
    """
    if cell.evidence is None or not cell.evidence.steps:
        return ""
    failed = {check.step for check in _failed(cell)}
    rows = [row for step in cell.evidence.steps for row in _rows(step, str(step.index), step.index in failed)]
    header = ("", "step", "kind", "seconds", "arguments", "observed")
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def reference_table(cell: CellResult) -> str:
    """The same of the oracle's guest, of a cell that ran on both; else empty."""
    return steps_table(cell.model_copy(update={"evidence": cell.reference}))


def cell_text(cell: CellResult) -> str:
    """The whole cell as text."""
    return "\n".join(_paragraphs(cell))


def _paragraphs(cell: CellResult) -> Iterator[str]:
    yield f"{cell.outcome.upper()} {one_line(cell.scenario)}: {one_line(cell.title)}"
    facts = {
        "class": cell.failure_class or "",
        "reason": cell.message,
        "hint": cell.hint or "",
        "source": cell.source,
        "file": cell.file,
        "guest": started(cell),
        "folder": cell.folder,
        "rerun": cell.rerun,
        "time": f"{cell.seconds:.1f} s"
        + "".join(f", {stage} {seconds:.2f} s" for stage, seconds in cell.stages.items()),
    }
    if cell.versions is not None:
        facts |= {name.replace("_", " "): text for name, text in version_facts(cell.versions).items()}
    yield "".join(f"  {name}: {one_line(text)}\n" for name, text in facts.items() if text)
    table = steps_table(cell)
    if table:
        yield f"Steps{' on usdm' if cell.reference else ''}\n{_indent(table)}"
    if cell.reference is not None:
        yield f"Steps on {oracle_name(cell)}\n{_indent(reference_table(cell))}"
    if cell.verdict is not None:
        faults = cell.verdict.faults
        yield f"Faults in the trace of QEMU\n{_faults([f for f in faults if f.witness == 'trace'])}"
        if cell.versions is not None and not cell.versions.kernel:
            yield f"Faults in the fault registers\n{_faults([f for f in faults if f.witness == 'registers'])}"
        else:
            yield f"Faults in the kernel's log\n{_faults([f for f in faults if f.witness == 'kernel'])}"
        if cell.verdict.findings:
            yield f"Known differences of {TRAITS[cell.oracle.name].title if cell.oracle else 'the oracle'}\n" + "".join(
                f"  {one.defect}{'' if one.step is None else f', step {one.step}'}: "
                f"{'; observed '.join(one_line(text) for text in (one.meaning, one.observed) if text)}\n"
                for one in cell.verdict.findings
            )
        if cell.verdict.notes:
            yield "Notes\n" + "".join(f"  {one_line(note)}\n" for note in cell.verdict.notes)
        marks = {True: "ok  ", False: "FAIL"}
        yield "Checks\n" + "".join(
            f"  {marks[check.passed]} {one_line(check.name)}: {one_line(check.message)}\n"
            for check in cell.verdict.checks
        )
    if cell.console_tail:
        yield "The console's last lines\n" + _indent(clean("\n".join(cell.console_tail)) + "\n")


def _failed(cell: CellResult) -> list[Check]:
    return [] if cell.verdict is None else [check for check in cell.verdict.checks if not check.passed]


def _rows(step: StepEvidence, number: str, failed: bool) -> Iterator[tuple[str, ...]]:
    yield (
        "!" if failed else "",
        number,
        one_line(step.kind),
        f"{step.seconds:.3f}",
        _short(arguments_text(step), _ARGS),
        _short(observed_text(step), _SEEN),
    )
    for position, child in enumerate(step.children):
        # Which child of a fork failed is not marked: a check knows its step only.
        yield from _rows(child, f"{number}.{position}", failed=False)


def arguments_text(step: StepEvidence) -> str:
    """A step's arguments in one line, without the steps of a fork."""
    return _pairs({key: value for key, value in step.args.items() if key != "steps"})


def observed_text(step: StepEvidence) -> str:
    """What a step observed in one line: error, return value, values, what the devices saw."""
    parts = []
    if step.error is not None:
        parts.append(f"{step.error.type}: {step.error.message}" if step.error.message else step.error.type)
    if step.returns is not None:
        parts.append(f"returns {_value(step.returns)}")
    if step.values:
        parts.append(mappings_text(step.values) if step.kind == KIND else _pairs(step.values))
    if step.trace:
        parts.append(f"{len(step.trace)} lines of trace")
    parts += [text for name, news in step.devices.items() if (text := devices_text(name, news))]
    return one_line(", ".join(parts))


def _pairs(values: dict[str, Any]) -> str:
    return one_line(" ".join(f"{name}={_value(value)}" for name, value in values.items()))


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 4096:
        return hex(value)
    if isinstance(value, list | tuple) and not any(isinstance(one, str) for one in value):
        return f"[{', '.join(map(_value, value))}]"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _faults(faults: Sequence[FaultRecord]) -> str:
    return "".join(f"  {_clock(fault)}{fault_line(fault)}\n" for fault in faults) or "  none\n"


def _clock(fault: FaultRecord) -> str:
    return "" if fault.time is None else f"[{fault.time:.6f}] "


def _indent(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
