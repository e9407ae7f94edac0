"""Steps in which the kernel's own driver has a device: given to it, its disk used, and what it calls recorded."""

from __future__ import annotations

from harness.agent import pci
from harness.agent.outcome import DeviceBusy, NotSet, NotTaken, Outcome
from usdm.limits import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step
    from harness.agent.tracefs import Recording

DRIVER = "nvme"
MOST_CALLS = 12_000
"""How many calls of a recording are told; what is behind them is counted only."""

_recordings: dict[str, Recording] = {}
_told: dict[str, list[dict[str, Any]]] = {}


def kernel_driver(context: Context, args: dict[str, Any]) -> Outcome:
    """Give a device to a driver of the kernel; values: block, domain, counts (max_bytes, max_segments, alignment).

    `domain` is the type of the device's IOMMU domain: `identity`, `DMA` (each unmap invalidates at once) or `DMA-FQ`.

    Raises:
        DeviceBusy: The program has it open.
        NotSet, NotTaken: See `kernel_driver.give`.
    """
    from harness.agent import believed
    from harness.agent import kernel_driver as drivers

    name = args["device"]
    if name in context.devices:
        raise DeviceBusy(f"'{name}' is open in this program: close it first")
    block = drivers.give(context.address(name), args["driver"])
    domain = believed.group_type(context.address(name))
    return Outcome(values={"block": block, "domain": domain, "counts": drivers.limits(block)})


def disk_io(context: Context, args: dict[str, Any]) -> Outcome:
    """Read and write a disk; values: equal, first_difference (in the memory), counts (bytes).

    Raises:
        NotTaken: No driver of the kernel has the device.
        DiskError: The kernel refused.
    """
    from harness.agent import disk
    from harness.agent import kernel_driver as drivers

    address = context.address(args["device"])
    name = drivers.disk(address)
    if name is None or pci.driver_of(address) != DRIVER:
        raise NotTaken(f"'{args['device']}' is no disk: the step kernel_driver makes it one")
    shape = disk.Shape(
        args["piece"], args["pieces"], args.get("stride", 0), args["offset"], args["order"] == "scattered"
    )
    op: str = args["op"]
    different = disk.transfer(f"/dev/{name}", args["at"], shape, args["seed"], read=op != "write", write=op != "read")
    moved = shape.piece * shape.pieces * (2 if op == "both" else 1)
    values: dict[str, Any] = {"counts": {"bytes": moved}}
    if op != "write":
        values |= {"equal": different is None, "first_difference": different}
    return Outcome(values=values)


def trace(_context: Context, args: dict[str, Any]) -> Outcome:
    """Begin to record the kernel's dma_iova_* calls.

    Raises:
        NotSet: The kernel does not record them, or a recording runs already.
    """
    from harness.agent import iova_trace, tracefs

    name = args["name"]
    refuse_running()
    tracefs.mount()
    _recordings[name] = tracefs.Recording(iova_trace.DEFINITIONS, iova_trace.EVENTS)
    return Outcome()


def trace_end(_context: Context, args: dict[str, Any]) -> Outcome:
    """End a recording, and tell of it.

    Values: calls (see `iova_trace`), granule, and counts: calls, cut (calls that are not told), lost (events),
    unpaired, unread, maps, unmaps.

    Raises:
        NotSet: Nothing is being recorded by that name, or somebody else has taken the recording away.
    """
    from harness.agent import iova_trace

    recording = _recordings.pop(args["name"], None)
    if recording is None:
        raise NotSet(f"'{args['name']}' is not being recorded")
    text, lost = recording.end()
    found = iova_trace.read(text)
    told = found.calls[:MOST_CALLS]
    _told[args["name"]] = told
    counts = {
        "calls": len(found.calls),
        "cut": len(found.calls) - len(told),
        "lost": lost,
        "unpaired": found.unpaired,
        "unread": found.unread,
        "maps": found.maps,
        "unmaps": found.unmaps,
    }
    return Outcome(values={"counts": counts, "granule": PAGE_SIZE, "calls": told})


def refuse_running() -> None:
    """Raise `NotSet` while a recording runs."""
    if _recordings:
        raise NotSet(f"'{next(iter(_recordings))}' is being recorded: end it first")


def told(name: str) -> list[dict[str, Any]]:
    """Return the calls of a recording that has ended; raises `NotSet`."""
    try:
        return _told[name]
    except KeyError:
        raise NotSet(f"there is no recording '{name}'") from None


STEPS: dict[str, Step] = {
    "kernel_driver": kernel_driver,
    "disk_io": disk_io,
    "trace": trace,
    "trace_end": trace_end,
}
