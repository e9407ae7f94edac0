"""Steps that call USDM by its C names: the return value and the error behind it are what is observed."""

from __future__ import annotations

from harness.agent.context import Buffer
from harness.agent.outcome import Outcome
from usdm import errors, qae_mem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def alloc(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemAllocNUMA; values: iova."""
    address = qae_mem.qaeMemAllocNUMA(args["size"], args.get("node", -1), args.get("align", 4096))
    error = qae_mem.last_error()
    buffer = context.buffers[args["as"]] = Buffer(args["as"], "alloc", address, args["size"])
    if error is not None or address is None:
        return Outcome(address, error=error)
    iova = qae_mem.qaeVirtToPhysNUMA(address)
    error = qae_mem.last_error()
    if error is None:
        buffer.iova = iova
    return Outcome(address, {"iova": iova}, error)


def free(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemFreeNUMA or qaeMemFreeNonZeroNUMA."""
    buffer = context.buffer(args["buffer"])
    pointer = qae_mem.Pointer(buffer.place(args.get("offset", 0)))
    (qae_mem.qaeMemFreeNUMA if args.get("zero", True) else qae_mem.qaeMemFreeNonZeroNUMA)(pointer)
    error = qae_mem.last_error()
    buffer.gone = buffer.gone or error is None
    return Outcome(error=error)


def alloc_plain(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemAlloc."""
    address = qae_mem.qaeMemAlloc(args["size"])
    context.buffers[args["as"]] = Buffer(args["as"], "alloc_plain", address, args["size"])
    return Outcome(address, error=qae_mem.last_error())


def free_plain(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemFree."""
    buffer = context.buffer(args["buffer"])
    qae_mem.qaeMemFree(qae_mem.Pointer(buffer.address))
    error = qae_mem.last_error()
    buffer.gone = buffer.gone or error is None
    return Outcome(error=error)


def map_(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemMapContiguousIova; values: iova, when there is one."""
    iova = qae_mem.qaeMemMapContiguousIova(context.virtual_address(args), args["size"])
    error = qae_mem.last_error()
    if iova and args.get("buffer") is not None:
        context.buffer(args["buffer"]).iova = iova - args.get("offset", 0)
    return Outcome(iova, {"iova": iova} if iova else None, error)


def unmap(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemUnmapContiguousIova."""
    returns = qae_mem.qaeMemUnmapContiguousIova(context.virtual_address(args), args["size"])
    return Outcome(returns, error=qae_mem.last_error())


def translate(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeVirtToPhysNUMA for addresses of a range.

    Values: how many addresses are present and absent, whether those present ascend with their addresses from the
    first one (contiguous), and the first one's IOVA (first; None when all are absent).
    """
    buffer = context.buffer(args["buffer"])
    offset: int = args.get("offset", 0)
    size = args.get("size")
    end = buffer.size if size is None else offset + size
    present = absent = 0
    contiguous = True
    first: tuple[int, int] | None = None
    for place in range(offset, end, args.get("stride", 4096)):
        iova = qae_mem.qaeVirtToPhysNUMA(buffer.place(place))
        error = qae_mem.last_error()
        if error is None:
            present += 1
            first = first or (place, iova)
            contiguous = contiguous and iova - first[1] == place - first[0]
        elif isinstance(error, errors.NotMapped):
            absent += 1
        else:
            return Outcome(error=error)
    values = {
        "present": present,
        "absent": absent,
        "contiguous": contiguous and present > 0,
        "first": None if first is None else first[1],
    }
    return Outcome(values=values)


def translate_back(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaePhysToVirtNUMA of qaeVirtToPhysNUMA; values: same, found."""
    address = context.virtual_address(args)
    iova = qae_mem.qaeVirtToPhysNUMA(address)
    error = qae_mem.last_error()
    if error is not None:
        return Outcome(error=error)
    found = qae_mem.qaePhysToVirtNUMA(iova)
    return Outcome(values={"same": found == address, "found": found}, error=qae_mem.last_error())


STEPS: dict[str, Step] = {
    "alloc": alloc,
    "free": free,
    "alloc_plain": alloc_plain,
    "free_plain": free_plain,
    "map": map_,
    "unmap": unmap,
    "translate": translate,
    "translate_back": translate_back,
}
