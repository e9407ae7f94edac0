"""Steps that call icp_sal_iommu, and the physical addresses that it takes."""

from __future__ import annotations

from harness.agent import own_memory, pagemap
from harness.agent.outcome import NoIova, NotAccessible, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Buffer, Context
    from harness.agent.registry import Step


def _look(buffer: Buffer, offset: int) -> tuple[int, int]:
    """Return the physical address of a byte, and how many bytes of the buffer follow each other from there on.

    The page is written to before, because one that was only read can be the kernel's page of zeros, which all share.

    Raises:
        NotAccessible: The program must not access the byte, or no page is there.
    """
    address = buffer.own(offset, 1, write=buffer.writable)
    if buffer.writable:
        own_memory.write(address, own_memory.read(address, 1))
    inside = address % pagemap.PAGE
    pages = -(-(inside + buffer.size - offset) // pagemap.PAGE)
    found = pagemap.runs(address - inside, pages * pagemap.PAGE)
    if not found or found[0][0] != 0:
        raise NotAccessible(f"no page of memory is at {offset} of '{buffer.name}'")
    return found[0][1] + inside, min(found[0][2] - inside, buffer.size - offset)


def physical_address(context: Context, args: dict[str, Any]) -> Outcome:
    """Take a physical address, which is the buffer's address for DMA from now on.

    Values: iova, the physical address; counts (contiguous: bytes of the buffer that follow each other from there on).
    """
    buffer, offset = context.buffer(args["buffer"]), args.get("offset", 0)
    address, contiguous = _look(buffer, offset)
    buffer.iova = address - offset
    return Outcome(values={"iova": address, "counts": {"contiguous": contiguous}})


def remap_size(context: Context, args: dict[str, Any]) -> Outcome:
    """Call icp_sal_iommu_get_remap_size, or ask for the rule of a build of the reference."""
    build = args.get("build", "documented")
    if build == "documented":
        returns, error = context.api.call("icp_sal_iommu_get_remap_size", args["size"])
        return Outcome(returns, error=error)
    from usdm.remap_size import remap_size_of

    return Outcome(remap_size_of(build, args["size"]))


def remap(context: Context, args: dict[str, Any]) -> Outcome:
    """Call icp_sal_iommu_map; values: phaddr, and when it succeeds iova."""
    buffer = None if args.get("buffer") is None else context.buffer(args["buffer"])
    offset: int = args.get("offset", 0)
    phaddr = args["phaddr"] if buffer is None else _look(buffer, offset)[0]
    iova: int = phaddr if args.get("iova") is None else args["iova"]
    returns, error = context.api.call("icp_sal_iommu_map", phaddr, iova, args["size"])
    if error is not None:
        return Outcome(returns, {"phaddr": phaddr}, error)
    if buffer is not None:
        buffer.iova = iova - offset
        buffer.remapped[offset] = iova
    return Outcome(returns, {"phaddr": phaddr, "iova": iova})


def unremap(context: Context, args: dict[str, Any]) -> Outcome:
    """Call icp_sal_iommu_unmap; values: iova."""
    iova = args["iova"] if args.get("buffer") is None else _remapped(context.buffer(args["buffer"]), args)
    returns, error = context.api.call("icp_sal_iommu_unmap", iova, args["size"])
    return Outcome(returns, {"iova": iova}, error)


def _remapped(buffer: Buffer, args: dict[str, Any]) -> int:
    """Return the IOVA of a place by the last remap that began there, or else before it."""
    offset: int = args.get("offset", 0)
    starts = [start for start in buffer.remapped if start <= offset]
    if not starts:
        raise NoIova(f"'{buffer.name}' has not been remapped at {offset} or before")
    return buffer.remapped[max(starts)] + offset - max(starts)


STEPS: dict[str, Step] = {
    "physical_address": physical_address,
    "remap_size": remap_size,
    "remap": remap,
    "unremap": unremap,
}
