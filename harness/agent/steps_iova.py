"""Steps that call two-step DMA mapping and the streaming API by the kernel's names."""

from __future__ import annotations

import errno

from harness.agent.dma_ranges import GRANULE, Link, Stream
from harness.agent.outcome import NotAccessible, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.dma_ranges import Range
    from harness.agent.registry import Step

SCATTER = 7
"""As in `harness.scenario.args_iova`: piece i of a scattered range is the buffer's piece 7 * i modulo the count."""

_DIRECTIONS = {"both": 0, "to_device": 1, "from_device": 2, "none": 3}
_ACCESS = {"both": "rw", "to_device": "r", "from_device": "w"}


def _virt(context: Context, args: dict[str, Any]) -> int:
    buffer = context.buffer(args["buffer"])
    virt = buffer.place(args.get("offset", 0))
    if virt is None:
        raise NotAccessible(f"'{buffer.name}' is NULL")
    return virt


def _way(args: dict[str, Any]) -> tuple[int, int]:
    """Return the direction and the attributes as the functions take them."""
    from usdm import dma_iova

    bits = {
        "mmio": dma_iova.DMA_ATTR_MMIO,
        "require_coherent": dma_iova.DMA_ATTR_REQUIRE_COHERENT,
        "skip_cpu_sync": dma_iova.DMA_ATTR_SKIP_CPU_SYNC,
    }
    attrs = 0
    for name in args.get("attrs", ()):
        attrs |= bits[name]
    return _DIRECTIONS[args.get("direction", "both")], attrs


def _gone(error: Exception) -> bool:
    """Whether unmapping failed because it had been done already: usdm tells it, and has forgotten the mappings."""
    from usdm.errors import UnmapFailed

    return isinstance(error, UnmapFailed) and error.errno == errno.ENOENT


def dma_limits(context: Context, args: dict[str, Any]) -> Outcome:
    """Set what a device can address, and whether it is trusted."""
    context.device(args["device"])
    context.dma.limit(args["device"], args.get("bits", 64), args.get("untrusted", False))
    return Outcome()


def merge_boundary(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_get_merge_boundary."""
    returns, error = context.api.call("dma_get_merge_boundary", context.dma.device(context, args["device"]))
    return Outcome(returns, error=error)


def iova_alloc(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_iova_try_alloc; values: iova, of the first byte; inside, the memory's offset in its granule."""
    dev, virt = context.dma.device(context, args["device"]), _virt(context, args)
    one = context.dma.new_range(context, args["as"], dev)
    good, error = context.api.call("dma_iova_try_alloc", dev, one.state, virt, args["size"])
    if error is not None or not good:
        return Outcome(int(bool(good)), error=error)
    one.end()
    one.dev, one.iova, one.space = dev, one.state.addr, context.dma.space(context, args["device"])
    return Outcome(1, {"iova": one.iova, "inside": virt % GRANULE})


def _link(context: Context, one: Range, virt: int, at: int, args: dict[str, Any]) -> tuple[Any, Exception | None]:
    size: int = args["size"]
    value, error = context.api.call("dma_iova_link", one.dev, one.state, virt, at, size, *_way(args))
    if error is None and value == 0:
        one.links[at] = Link(virt, size, _ACCESS[args.get("direction", "both")])
    return value, error


def iova_link(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_iova_link."""
    one = context.dma.range(args["range"])
    returns, error = _link(context, one, _virt(context, args), args.get("at", 0), args)
    return Outcome(returns, error=error)


def iova_link_each(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_iova_link for one piece after the other, until one fails; values: done."""
    one, virt = context.dma.range(args["range"]), _virt(context, args)
    at, size, count = args.get("at", 0), args["size"], args["count"]
    step = SCATTER if args.get("order") == "scattered" else 1
    returns: Any = None
    for piece in range(count):
        returns, error = _link(context, one, virt + piece * step % count * size, at + piece * size, args)
        if error is not None or returns != 0:
            return Outcome(returns, {"done": piece}, error)
    return Outcome(returns, {"done": count})


def iova_sync(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_iova_sync."""
    one = context.dma.range(args["range"])
    at, size = args.get("at", 0), args["size"]
    returns, error = context.api.call("dma_iova_sync", one.dev, one.state, at, size)
    if error is None and returns == 0:
        for offset in one.inside(at, size):
            one.links[offset].synced = True
    else:
        # What the kernel did not take back of a sync that failed: the first of the links, as usdm says.
        left = one.state.info().get("synced", 0) - sum(link.synced for link in one.links.values())
        for offset in [offset for offset in one.inside(at, size) if not one.links[offset].synced][: max(0, left)]:
            one.links[offset].synced = True
    return Outcome(returns, error=error)


def iova_unlink(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_iova_unlink."""
    one = context.dma.range(args["range"])
    at, size = args.get("at", 0), args["size"]
    _, error = context.api.call("dma_iova_unlink", one.dev, one.state, at, size, *_way(args))
    if error is None or _gone(error):
        one.unlink(at, size)
    return Outcome(error=error)


def iova_free(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_iova_free."""
    one = context.dma.range(args["range"])
    _, error = context.api.call("dma_iova_free", one.dev, one.state)
    if error is None:
        one.end()
    return Outcome(error=error)


def iova_destroy(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_iova_destroy."""
    one = context.dma.range(args["range"])
    _, error = context.api.call("dma_iova_destroy", one.dev, one.state, args["size"], *_way(args))
    if error is None or not context.api.call("dma_use_iova", one.state)[0]:
        one.end()
    return Outcome(error=error)


def iova_info(context: Context, args: dict[str, Any]) -> Outcome:
    """Look at a range; values: counts (links, synced, mappings, reserved, in_use as dma_use_iova says)."""
    one = context.dma.range(args["range"])
    used, error = context.api.call("dma_use_iova", one.state)
    return Outcome(values={"counts": {**one.state.info(), "in_use": int(used)}}, error=error)


def stream_map(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_map_single; values: iova; inside, the memory's offset in its granule."""
    dev, virt, offset = context.dma.device(context, args["device"]), _virt(context, args), args.get("offset", 0)
    iova, error = context.api.call("dma_map_single", dev, virt, args["size"], *_way(args))
    if error is not None:
        return Outcome(iova, error=error)
    context.buffer(args["buffer"]).iova = iova - offset
    access, space = _ACCESS[args.get("direction", "both")], context.dma.space(context, args["device"])
    made = context.dma.streams.setdefault((args["buffer"], offset), [])
    made.append(Stream(iova, args["size"], access, space))
    return Outcome(iova, {"iova": iova, "inside": virt % GRANULE})


def stream_unmap(context: Context, args: dict[str, Any]) -> Outcome:
    """Call dma_unmap_single of what the buffer was mapped to at this offset last; values: iova."""
    dev = context.dma.device(context, args["device"])
    made = context.dma.streams.get((args["buffer"], args.get("offset", 0)))
    iova = made[-1].iova if made else context.iova(args)
    _, error = context.api.call("dma_unmap_single", dev, iova, args["size"], *_way(args))
    if error is None or _gone(error):
        context.dma.end_stream(iova, context.dma.space(context, args["device"]))
    return Outcome(values={"iova": iova}, error=error)


STEPS: dict[str, Step] = {
    "dma_limits": dma_limits,
    "merge_boundary": merge_boundary,
    "iova_alloc": iova_alloc,
    "iova_link": iova_link,
    "iova_link_each": iova_link_each,
    "iova_sync": iova_sync,
    "iova_unlink": iova_unlink,
    "iova_free": iova_free,
    "iova_destroy": iova_destroy,
    "iova_info": iova_info,
    "stream_map": stream_map,
    "stream_unmap": stream_unmap,
}
