"""The step that says where a range of IOVAs should lead to, and where it does by the kernel's own word."""

from __future__ import annotations

from harness.agent import iommu_debugfs, pagemap
from harness.agent.outcome import NotAccessible, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.dma_ranges import Range
    from harness.agent.registry import Step


def mappings(context: Context, args: dict[str, Any]) -> Outcome:
    """Tell of a range; the host adds `tables`, its own reading of the IOMMU's tables.

    Values: iova, the first one; pages, the physical pages of the buffer, or of what is linked into the range
    (`pagemap.runs`), None without either; debugfs (`iommu_debugfs.runs`), None where the kernel has none. The device
    need not be open.
    """
    address = context.address(args["device"])
    iova = context.iova(args)
    size: int = args["size"]
    pages = None
    if args.get("range") is not None:
        # Of a range that begins within a page, from that page on.
        iova -= iova % pagemap.PAGE
        pages = _linked(context.dma.range(args["range"]), iova, size)
    elif args.get("buffer") is not None:
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


def _linked(held: Range, iova: int, size: int) -> list[list[int]]:
    """Return the physical pages of the memory that is linked at a range of IOVAs, as `pagemap.runs` does."""
    found = []
    for offset, link in sorted(held.links.items()):
        # Whole pages of the memory, and where they begin in the range that is asked for.
        inside = link.virt % pagemap.PAGE
        first = (held.iova or 0) + offset - inside - iova
        end = first + -(-(inside + link.size) // pagemap.PAGE) * pagemap.PAGE
        skip = max(0, -first)
        if first + skip < min(end, size):
            pieces = pagemap.runs(link.virt - inside + skip, min(end, size) - first - skip)
            found += [[first + skip + place, address, length] for place, address, length in pieces]
    return found


STEPS: dict[str, Step] = {"mappings": mappings}
