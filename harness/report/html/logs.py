"""What of a guest's logs a reader needs: lines that tell of faults and of what broke, with what stands around them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.report.json_report import CELL_FILE
from harness.report.text import clean
from harness.results import CellResult

_QEMU: Final = "QEMU's messages"
_FILES: Final = {"kernel.log": "Kernel log", "console.log": "Console", "qemu.stderr": _QEMU}
_BYTES: Final = 1 << 20
_LINE: Final = 240

_BROKEN: Final = re.compile(
    r"Kernel panic|\bOops\b|BUG:|Call Trace|general protection|segfault|Out of memory|oom-kill|soft lockup"
    r"|hung task|RIP:|end trace|KASAN|UBSAN|^Traceback|Error\b",
    re.IGNORECASE,
)
# The kernel's own, which it writes so; the warnings of QEMU ("warning: '-mon' is deprecated") break nothing.
_KERNEL_WARNING: Final = re.compile(r"\bWARNING:")
_FAULT: Final = re.compile(
    r"DMAR|AMD-Vi|IOMMU|virtio_iommu|arm-smmu|fault (?:addr|reason|status)|vtd_|amdvi_|IO_PAGE_FAULT|dma_iova|swiotlb",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log: its number from 1, its words, and ``fault``, ``broken`` or nothing."""

    number: int
    text: str
    mark: str


@dataclass(frozen=True, slots=True)
class Log:
    """What is shown of a log.

    Args:
        name: as a heading has it.
        lines: in order; a None stands for lines that are left out.
        total: lines of the whole log.
        marked: how many lines are marked.
        file: where the whole log is; empty when only the evidence has it.
    """

    name: str
    lines: tuple[Line | None, ...]
    total: int
    marked: int
    file: str


def logs_of(cell: CellResult, root: Path | None, *, context: int, tail: int, limit: int) -> tuple[Log, ...]:
    """The logs of a cell, from its folder where that is still there, else from what its result keeps.

    Args:
        cell: the result.
        root: the folder of all results, where a cell's is looked for that has been moved with it.
        context: lines shown before and after a marked one.
        tail: lines shown from the end.
        limit: marked lines at most, of each log.
    """
    found: dict[str, tuple[Sequence[str], str]] = {}
    for folder, who in _folders(cell, root):
        for file, title in _FILES.items():
            if (folder / file).is_file():
                lines = _read(folder / file)
                if lines:
                    found[f"{title}{who}"] = (lines, str(folder / file))
    if not found:
        for evidence, who in (
            (cell.evidence, " of usdm" * (cell.reference is not None)),
            (cell.reference, " of the oracle"),
        ):
            if evidence is not None and evidence.kernel_log:
                found[f"Kernel log{who}"] = (evidence.kernel_log, "")
        if cell.console_tail:
            found["Console, its last lines"] = (cell.console_tail, "")
    return tuple(_log(name, lines, file, context, tail, limit) for name, (lines, file) in found.items())


def _folders(cell: CellResult, root: Path | None) -> Iterable[tuple[Path, str]]:
    """The folders with a cell's logs: its own, or one for each guest of a cell that ran on two."""
    if not cell.folder:
        return
    folder = Path(cell.folder)
    if root is not None and not folder.is_dir():
        moved = [root / folder.name, root / "cells" / folder.name, root]
        folder = next((one for one in moved if (one / CELL_FILE).is_file()), folder)
    yield folder, ""
    for name in ("usdm", "kernel", "libusdm"):
        yield folder / name, f" of {name}"


def _read(file: Path) -> list[str]:
    """The last MiB of a log as lines; nothing when it cannot be read."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(size - _BYTES, 0))
            return stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _mark(text: str, *, kernel: bool) -> str:
    if _BROKEN.search(text) or (kernel and _KERNEL_WARNING.search(text)):
        return "broken"
    return "fault" if _FAULT.search(text) else ""


def _log(name: str, lines: Sequence[str], file: str, context: int, tail: int, limit: int) -> Log:
    marks = [_mark(line, kernel=not name.startswith(_QEMU)) for line in lines]
    marked = [number for number, mark in enumerate(marks) if mark]
    # What broke is never pushed out by faults, and of each the first ones tell most.
    chosen = sorted(marked, key=lambda number: marks[number] != "broken")[:limit]
    shown = {
        near for number in chosen for near in range(max(number - context, 0), min(number + context + 1, len(lines)))
    } | set(range(max(len(lines) - tail, 0), len(lines)))
    out: list[Line | None] = []
    before = -1
    for number in sorted(shown):
        if number != before + 1:
            out.append(None)
        text = clean(lines[number].rstrip())
        out.append(Line(number + 1, text if len(text) <= _LINE else text[:_LINE] + " ...", marks[number]))
        before = number
    if before != len(lines) - 1 and lines:
        out.append(None)
    return Log(name, tuple(out), len(lines), len(marked), file)
