"""Small pieces of text that all reports share."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from harness.oracle_traits import TRAITS
from harness.results import CellResult, FaultRecord, Outcome, RunResult, Versions

# Sequences that move the cursor, change colours or set the window's title; then every other character that has no
# place in a text: a guest can print anything, and a report must neither disturb a terminal nor break an XML file.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-Z\\^_])")
_FORBIDDEN: Final = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_WEB: Final = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9./?#:@!$&*+,;=%_~()\[\]-]*", re.IGNORECASE)

_KEY_DIGITS: Final = 12

ORDER: Final = (Outcome.ERROR, Outcome.FAIL, Outcome.SKIP, Outcome.PASS)
"""Outcomes, the worst first."""


def clean(text: str) -> str:
    """The text without escape sequences and control characters; line breaks and tabs stay."""
    return _FORBIDDEN.sub("", _ESCAPES.sub("", text))


def one_line(text: str) -> str:
    """The text as one clean line."""
    return " ".join(clean(text).split())


def is_web_link(text: str) -> bool:
    """Whether a text is nothing but an address of http or https, with no character that could end a link."""
    return _WEB.fullmatch(text) is not None


def counts(cells: Iterable[CellResult]) -> dict[Outcome, int]:
    """How many cells had each outcome."""
    found = Counter(cell.outcome for cell in cells)
    return {outcome: found[outcome] for outcome in Outcome}


def summary(result: RunResult) -> str:
    """The run in one line: ``3 passed, 1 failed, 0 errors, 2 skipped in 12.3 s``."""
    number = counts(result.cells)
    text = (
        f"{number[Outcome.PASS]} passed, {number[Outcome.FAIL]} failed, {number[Outcome.ERROR]} errors,"
        f" {number[Outcome.SKIP]} skipped in {result.seconds:.1f} s"
    )
    return text + (" (interrupted)" if result.interrupted else "")


def variant(cell: CellResult) -> str:
    """What tells cells of one scenario apart: ``qemu 11.1.3, kernel 6.12.88``; empty when nothing is known."""
    if cell.versions is None:
        return ""
    oracle = cell.versions.oracle
    beside = "" if oracle is None else f", {oracle}"
    if oracle is not None and TRAITS[oracle.name].of_the_guest:
        beside = f", oracle {oracle.name}"
    kernel = f", kernel {cell.versions.kernel}" if cell.versions.kernel else ""
    return one_line(f"qemu {cell.versions.qemu}{kernel}{beside}")


def oracle_name(cell: CellResult) -> str:
    """What a cell's steps ran on instead of usdm, or beside it, by its name; empty for usdm alone."""
    return "" if cell.oracle is None else cell.oracle.name


def version_facts(versions: Versions) -> dict[str, str]:
    """What ran, by name; empty for what did not."""
    facts = versions.model_dump(exclude={"oracle"})
    return {name: str(fact) for name, fact in facts.items()} | {"oracle": str(versions.oracle or "")}


def started(cell: CellResult) -> str:
    """How a cell's guest was started: ``clone of template 60c2e5460d0f``, or ``booted``; empty without one."""
    if cell.start == "boot":
        return "booted"
    if cell.start == "clone":
        key = cell.versions.template if cell.versions is not None else ""
        return f"clone of template {one_line(key)[:_KEY_DIGITS]}" if key else "none, its template could not be made"
    return ""


def known(cell: CellResult) -> str:
    """The known differences of the oracle that a cell has shown: ``D1, D2``; empty without one."""
    return ", ".join(dict.fromkeys(one.defect for one in cell.verdict.findings)) if cell.verdict is not None else ""


def reasons(cell: CellResult) -> list[str]:
    """Why a cell did not pass, one line each: its message first, then further failed checks."""
    message = one_line(cell.message)
    lines = [message] if message else []
    for check in cell.verdict.checks if cell.verdict is not None else ():
        line = one_line(f"{check.name}: {check.message}")
        # The message of a failed cell repeats a check; its words may stand with or without the check's name.
        if not check.passed and one_line(check.message) not in " ".join(lines):
            lines.append(line)
    return lines


def fault_line(fault: FaultRecord) -> str:
    """A fault record in one line."""
    address = "address not said" if fault.address is None else f"{fault.address:#x}"
    if fault.access == "interrupt":
        address = "index not said" if fault.index is None else f"index {fault.index:#x}"
    reason = "reason not said" if fault.reason is None else f"reason 0x{fault.reason:02x}"
    text = f"{one_line(fault.requester)} {fault.access or 'access not said'} {address} {reason}"
    text += "" if fault.reason_text is None else f" {one_line(fault.reason_text)}"
    text += "" if fault.pasid is None else f", PASID {fault.pasid:#x}"
    text += f", {fault.count} times" if fault.count > 1 else ""
    return text + ("" if fault.step is None else f", step {fault.step}")


def write_text(path: Path, text: str) -> Path:
    """Write a file so that a reader never sees half of it, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
