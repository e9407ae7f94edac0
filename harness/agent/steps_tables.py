"""The step that says where a range of IOVAs should lead to, and where it does by the kernel's own word."""

from __future__ import annotations

from harness.agent import iommu_debugfs, pagemap
from harness.agent.outcome import NotAccessible, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def mappings(context: Context, args: dict[str, Any]) -> Outcome:
    """Tell of a range; the host adds `tables`, its own reading of the IOMMU's tables.

    Values: iova, the first one; pages, the buffer's physical pages (`pagemap.runs`), None without a buffer; debugfs
    (`iommu_debugfs.runs`), None where the kernel has none. The device need not be open.
    """
    address = context.address(args["device"])
    iova = context.iova(args)
    size: int = args["size"]
    pages = None
    if args.get("buffer") is not None:
        held = context.buffer(args["buffer"])
        place = held.place(args.get("offset", 0))
        if place is None:
            raise NotAccessible(f"'{held.name}' is NULL")
        if place % pagemap.PAGE or iova % pagemap.PAGE:
            raise NotAccessible(f"'{held.name}' at {args.get('offset', 0)} does not begin at a page")
        pages = pagemap.runs(place, size)
    elif iova % pagemap.PAGE:
        raise NotAccessible(f"{iova:#x} does not begin at a page")
    return Outcome(values={"iova": iova, "pages": pages, "debugfs": iommu_debugfs.runs(address, iova, size)})


STEPS: dict[str, Step] = {"mappings": mappings}
