"""Steps that call USDM by its C names: the return value and the error behind it are what is observed.

They run on either implementation (`harness.agent.implementations`).
"""

from __future__ import annotations

from harness.agent.context import Buffer
from harness.agent.outcome import Outcome, StepError
from usdm.qae_mem import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def alloc(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemAllocNUMA; values: iova."""
    api = context.api
    address, error = api.call("qaeMemAllocNUMA", args["size"], args.get("node", -1), args.get("align", 4096))
    buffer = context.buffers[args["as"]] = Buffer(args["as"], "alloc", address, args["size"])
    if error is not None or address is None:
        return Outcome(address, error=error)
    iova, error = api.call("qaeVirtToPhysNUMA", address)
    if error is None:
        buffer.iova = iova
    return Outcome(address, {"iova": iova}, error)


def _free(context: Context, args: dict[str, Any], function: str) -> Outcome:
    buffer = context.buffer(args["buffer"])
    pointer = Pointer(buffer.place(args.get("offset", 0)))
    _, error = context.api.call(function, pointer)
    buffer.gone = buffer.gone or error is None
    return Outcome(values={"pointer": "null" if pointer.value is None else "kept"}, error=error)


def free(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemFreeNUMA or qaeMemFreeNonZeroNUMA; values: pointer (null or kept)."""
    return _free(context, args, "qaeMemFreeNUMA" if args.get("zero", True) else "qaeMemFreeNonZeroNUMA")


def alloc_plain(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemAlloc."""
    address, error = context.api.call("qaeMemAlloc", args["size"])
    context.buffers[args["as"]] = Buffer(args["as"], "alloc_plain", address, args["size"])
    return Outcome(address, error=error)


def free_plain(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemFree; values: pointer (null or kept)."""
    return _free(context, args, "qaeMemFree")


def map_(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemMapContiguousIova; values: iova, when there is one."""
    iova, error = context.api.call("qaeMemMapContiguousIova", context.virtual_address(args), args["size"])
    if iova and args.get("buffer") is not None:
        context.buffer(args["buffer"]).iova = iova - args.get("offset", 0)
    return Outcome(iova, {"iova": iova} if iova else None, error)


def unmap(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemUnmapContiguousIova."""
    returns, error = context.api.call("qaeMemUnmapContiguousIova", context.virtual_address(args), args["size"])
    return Outcome(returns, error=error)


def map_each(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemMapContiguousIova for one piece of a buffer after the other, until one fails; values: done."""
    return _each(context, args, "qaeMemMapContiguousIova", lambda iova: bool(iova))


def unmap_each(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeMemUnmapContiguousIova for one piece of a buffer after the other, until one fails; values: done."""
    return _each(context, args, "qaeMemUnmapContiguousIova", lambda status: status == 0)


def _each(context: Context, args: dict[str, Any], function: str, good: Callable[[int], bool]) -> Outcome:
    buffer = context.buffer(args["buffer"])
    size: int = args["size"]
    done = 0
    for done in range(args["count"]):
        value, error = context.api.call(function, buffer.place(args.get("offset", 0) + done * size), size)
        if error is not None or not good(value):
            return Outcome(value, {"done": done}, error)
    return Outcome(value, {"done": done + 1})


def translate(context: Context, args: dict[str, Any]) -> Outcome:
    """Call qaeVirtToPhysNUMA for addresses of a range.

    Values: how many addresses are present and absent, whether those present ascend with their addresses from the
    first one (contiguous), and the first one's IOVA (first; None when all are absent).
    """
    api, buffer = context.api, context.buffer(args["buffer"])
    offset, size = buffer.span(args)
    present = absent = 0
    contiguous = True
    first: tuple[int, int] | None = None
    for place in range(offset, offset + size, args.get("stride", 4096)):
        iova, error = api.call("qaeVirtToPhysNUMA", buffer.place(place))
        if error is None:
            present += 1
            first = first or (place, iova)
            contiguous = contiguous and iova - first[1] == place - first[0]
        elif api.is_absent(error):
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
    iova, error = context.api.call("qaeVirtToPhysNUMA", address)
    if error is not None:
        return Outcome(error=error)
    found, error = context.api.call("qaePhysToVirtNUMA", iova)
    return Outcome(values={"same": found == address, "found": found}, error=error)


def at_fork(context: Context, _args: dict[str, Any]) -> Outcome:
    """Call qaeAtFork."""
    return Outcome(error=context.api.call("qaeAtFork")[1])


def mem_init(context: Context, _args: dict[str, Any]) -> Outcome:
    """Call qaeMemInit."""
    returns, error = context.api.call("qaeMemInit")
    return Outcome(returns, error=error)


def mem_destroy(context: Context, _args: dict[str, Any]) -> Outcome:
    """Call qaeMemDestroy."""
    return Outcome(error=context.api.call("qaeMemDestroy")[1])


def mem_init_fd(context: Context, _args: dict[str, Any]) -> Outcome:
    """Call qaeMemInitAndReturnFd."""
    returns, error = context.api.call("qaeMemInitAndReturnFd", Pointer())
    return Outcome(returns, error=error)


def statistics(context: Context, _args: dict[str, Any]) -> Outcome:
    """Give the statistics of `usdm`; values: counts."""
    from usdm import qae_mem

    if context.api.name != "usdm":
        raise StepError("the C library has no statistics")
    return Outcome(values={"counts": qae_mem.default_instance().statistics()})


STEPS: dict[str, Step] = {
    "alloc": alloc,
    "free": free,
    "alloc_plain": alloc_plain,
    "free_plain": free_plain,
    "map": map_,
    "unmap": unmap,
    "map_each": map_each,
    "unmap_each": unmap_each,
    "translate": translate,
    "translate_back": translate_back,
    "at_fork": at_fork,
    "mem_init": mem_init,
    "mem_destroy": mem_destroy,
    "mem_init_fd": mem_init_fd,
    "statistics": statistics,
}
