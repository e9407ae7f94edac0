"""An explanation of a log on a terminal: a table of the faults, then each with its meaning, causes and checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from harness.report.text import one_line
from harness.results import Explanation, FaultRecord, LogExplanation

_HEAD: Final = ("", "line", "IOMMU", "requester", "access", "address", "reason", "count")
_VENDORS: Final = {
    "intel": "VT-d",
    "xen": "VT-d (Xen)",
    "freebsd": "VT-d (FreeBSD)",
    "amd": "AMD-Vi",
    "arm": "SMMUv3",
    "virtio": "virtio-iommu",
}


def explanation_text(log: LogExplanation) -> str:
    """The whole explanation as plain text."""
    return "\n".join([*table_lines(log), "", *detail_lines(log)]).rstrip() + "\n"


def print_explanation(log: LogExplanation) -> None:
    """The explanation on a terminal, with a table that fits its width."""
    from rich.table import Table
    from rich.text import Text

    from harness.report.console import Terminal

    console = Terminal(highlight=False)
    head, *rows = table_rows(log)
    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()
    for line in detail_lines(log):
        style = "bold" if line[:1].isdigit() and ". " in line[:9] else "dim" if line.startswith("   ") else ""
        console.print(Text(line, style=style if line[3:4] != " " else ""), soft_wrap=True)


def explanation_data(log: LogExplanation) -> dict[str, Any]:
    """The faults for another program."""
    return {"faults": [_data(one.fault) for one in log.explanations], "suppressed": log.suppressed}


def table_rows(log: LogExplanation) -> list[tuple[str, ...]]:
    """The table's head and one row for each kind of fault."""
    return [_HEAD, *(_row(number, one.fault) for number, one in enumerate(log.explanations, 1))]


def table_lines(log: LogExplanation) -> list[str]:
    """The table as plain lines."""
    rows = table_rows(log)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def detail_lines(log: LogExplanation) -> Iterator[str]:
    """What stands below the table. Advice that was given is not given again."""
    given: dict[tuple[str, ...], int] = {}
    for number, one in enumerate(log.explanations, 1):
        yield from _details(number, one, given.get(one.causes))
        given.setdefault(one.causes, number)
    if log.suppressed:
        yield f"The rate limit left out {log.suppressed} message{'s' * (log.suppressed != 1)}: there were more faults."
    for note in log.notes:
        yield one_line(note)


def _details(number: int, one: Explanation, before: int | None) -> Iterator[str]:
    yield f"{number}. {fault_headline(one)}"
    for fact in one.facts:
        yield f"   {one_line(fact)}"
    if before is not None:
        yield f"   causes and checks: as for {before}"
        yield ""
        return
    yield "   usual causes"
    for text in one.causes:
        yield f"     - {one_line(text)}"
    yield "   check next"
    for text in one.checks:
        yield f"     - {one_line(text)}"
    if one.scenarios:
        yield "   see it happen"
        yield f"     harness run {' '.join(f'scenarios/{name}.yaml' for name in one.scenarios[:3])}"
    yield ""


def fault_headline(one: Explanation) -> str:
    """The fault in a line: who did what, and why it was refused."""
    fault = one.fault
    did = {"read": "read", "write": "wrote", "interrupt": "sent an interrupt", None: "made a request"}[fault.access]
    where = "" if fault.address is None else f" {'to' if fault.access == 'interrupt' else 'at'} {fault.address:#x}"
    where += "" if fault.index is None else f" with index {fault.index:#x}"
    code = "" if fault.reason is None else f"{_code(fault)}, "
    times = "" if fault.count == 1 else f" {fault.count} times"
    return one_line(f"{fault.requester} {did}{where}{times}: {code}{one.name}")


def _row(number: int, fault: FaultRecord) -> tuple[str, ...]:
    address = "-" if fault.address is None else f"{fault.address:#x}"
    if fault.index is not None:
        address = f"index {fault.index:#x}"
    return (
        str(number),
        str(fault.line),
        _VENDORS[fault.vendor],
        fault.requester,
        fault.access or "-",
        address,
        "-" if fault.reason is None else _code(fault),
        str(fault.count),
    )


def _code(fault: FaultRecord) -> str:
    if fault.vendor in ("amd", "arm") and fault.reason_text:
        return one_line(fault.reason_text)
    return f"{fault.reason:#04x}"


def _data(fault: FaultRecord) -> dict[str, Any]:
    names = ("vendor", "access", "requester", "address", "reason", "reason_text", "pasid", "count", "line")
    return {name: getattr(fault, name) for name in names}
