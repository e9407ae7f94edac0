"""A reproduction as text for people: the two lines one above the other, and field by field what is equal."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report.text import one_line, variant
from harness.repro.run import Reproduction

_SIGNS = {True: "equal", False: "DIFFERENT", None: ""}


def show(found: Reproduction) -> Iterator[str]:
    """The lines of a report on a reproduction.

    Args:
        found: what came of it.
    """
    yield f"yours  {one_line(found.line)}"
    yield f"here   {one_line(found.seen_line) or 'no fault happened'}"
    if found.seen is not None and not found.printed:
        yield f"       ({_NOT_PRINTED[found.tier]})"
    yield ""
    if found.aspects:
        rows = [("", "yours", "here", "")] + [(a.name, a.wanted, a.seen, _SIGNS[a.equal]) for a in found.aspects]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for name, wanted, seen, sign in rows:
            yield f"{name:{widths[0]}}  {wanted:{widths[1]}}  {seen:{widths[2]}}  {sign}".rstrip()
        yield ""
    for remark in found.remarks:
        yield f"cannot be the same: {remark}"
    yield f"state     {found.state}"
    yield f"ran on    {variant(found.cell)}" + (f", {found.cell.start}d" if found.cell.start == "clone" else "")
    witnesses = sorted({fault.witness for fault in found.cell.verdict.faults}) if found.cell.verdict else []
    if witnesses:
        yield f"seen by   {', '.join(_WITNESSES[name] for name in witnesses)}"
    yield f"scenario  {found.scenario}"
    if found.cell.folder:
        yield f"evidence  {found.cell.folder}"
    if not found.same:
        yield ""
        yield f"not reproduced: {one_line(found.cell.message) or 'the fault that happened is another one'}"
        if found.cell.hint:
            yield f"hint: {one_line(found.cell.hint)}"


_NOT_PRINTED = {
    "guest": "as Linux would print it: the guest's kernel did not, QEMU's trace has it",
    "bare": "as Linux would print it: no system ran, QEMU's trace and the IOMMU's registers have it",
}
_WITNESSES = {"kernel": "the guest's kernel", "trace": "QEMU's trace", "registers": "the IOMMU's registers"}
