"""The step that does a recording's calls again on usdm.dma_iova, watched by the kernel's tracing."""

from __future__ import annotations

import os
import re

from harness.agent import own_memory, steps_kernel, tracefs
from harness.agent.outcome import NotSet, Outcome
from usdm.limits import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step
    from usdm.dma_iova import VfioDma

# What the kernel is asked for by this process, and what it then does to the IOMMU: neither is usdm's own word.
_EVENTS = ("syscalls/sys_enter_ioctl", "iommu/map", "iommu/unmap")
_LINE = re.compile(r"\s*.+-(?P<pid>\d+)\s+\[\d+\](?:\s+\S+)?\s+[\d.]+: (?P<rest>.*)")
_MARK = re.compile(r"tracing_mark_write: (?:call (\d+)|rest)")
_IOCTL = re.compile(r"sys_ioctl\(fd: \w+, cmd: (\w+),")


def replay(context: Context, args: dict[str, Any]) -> Outcome:
    """Do a recording's calls again; the default instance of usdm has the device's container registered.

    Each range gets memory of its own, whose pieces lie at the places in their pages that the recording's had.

    Values: calls, one for each of the recording's that has a state, in its order: `call`, `state`, `result`, `addr` and
    `range` after the call, `place` (of the memory in its page), `map_calls` and `unmap_calls` (VFIO's ioctls), `maps`
    and `unmaps` as in `iova_trace`, `refused` (the class of usdm's error); counts: calls, ranges, links,
    left (ranges that the recording does not end; they are ended here).

    Raises:
        DeviceNotOpen: The device is not open.
        NotSet: There is no such recording, another one runs, or the kernel does not record what it does.
        UsdmError: A range that the recording does not end could not be ended.
    """
    from usdm.dma_iova import VfioDma

    context.device(args["device"])
    steps_kernel.refuse_running()
    wanted = [call for call in steps_kernel.told(args["trace"]) if "state" in call]
    tracefs.mount()
    recording = tracefs.Recording((), _EVENTS)
    doing = _Replay(VfioDma(), recording)
    try:
        done = doing.run(wanted)
    finally:
        text, lost = recording.end()
    if lost:
        raise NotSet(f"the kernel lost {lost} events of the replay")
    _witnessed(text, done)
    counts = {
        "calls": len(done),
        "ranges": sum(one["call"] == "dma_iova_try_alloc" and one["result"] == 1 for one in done),
        "links": sum(one["call"] == "dma_iova_link" and one["result"] == 0 for one in done),
        "left": doing.left,
    }
    return Outcome(values={"counts": counts, "calls": done})


class _Held:
    """A range that is being replayed: its state, and memory of which `used` bytes are linked."""

    __slots__ = ("memory", "size", "state", "used")

    def __init__(self, size: int) -> None:
        from usdm.dma_iova import DmaIovaState

        self.state = DmaIovaState()
        self.size = size
        self.memory = own_memory.take(size, "anonymous") if size else 0
        self.used = 0

    def next(self, place: int, size: int) -> int:
        """Return the address of `size` bytes at a place in a page that nothing else has."""
        address = self.memory + self.used + place
        self.used += -(-(place + size) // PAGE_SIZE) * PAGE_SIZE
        return address

    def end(self, device: VfioDma) -> bool:
        """End the range if there is one, and give the memory back; return whether there was one.

        Raises:
            UsdmError: The kernel refused. The memory stays, as the device may reach it.
        """
        held = self.state.range
        if held is not None:
            for at, (end, direction, _) in sorted(held.links.items()):
                device.unlink(self.state, at, end - at, direction)
            device.free(self.state)
        self._give_back()
        return held is not None

    def _give_back(self) -> None:
        if self.memory:
            own_memory.give_back(self.memory, self.size)
            self.memory = 0


class _Replay:
    """Does calls again.

    Attributes:
        left: Ranges that the calls did not end.
    """

    def __init__(self, device: VfioDma, recording: tracefs.Recording) -> None:
        self._device = device
        self._recording = recording
        self._held: dict[int, _Held] = {}
        self._needed: dict[int, list[int]] = {}
        self.left = 0

    def run(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._needed = _memory(calls)
        done = []
        try:
            for index, call in enumerate(calls):
                if call["call"] == "dma_iova_try_alloc":
                    self._end(call["state"])
                self._recording.mark(f"call {index}")
                done.append(self._call(call))
        finally:
            for number in list(self._held):
                self._end(number)
        return done

    def _end(self, number: int) -> None:
        """End what a state has, outside all calls."""
        if number in self._held:
            self._recording.mark("rest")
            self.left += self._held.pop(number).end(self._device)

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        from usdm import dma_iova as api

        device, name, number = self._device, call["call"], call["state"]
        result: int | None = None
        place = call["phys"] % PAGE_SIZE if "phys" in call else None
        if name == "dma_iova_try_alloc":
            self._held[number] = _Held(self._needed[number].pop(0))
        if number not in self._held:  # a call that the recording has no range for
            self._held[number] = _Held(0)
        held = self._held[number]
        state = held.state
        if name == "dma_iova_try_alloc":
            result = int(api.dma_iova_try_alloc(device, state, held.memory + (place or 0), call["size"]))
        elif name == "dma_iova_link":
            memory = held.next(place or 0, call["size"])
            size, access = call["size"], call["dir"]
            result = api.dma_iova_link(device, state, memory, call["offset"], size, access, call["attrs"])
        elif name == "dma_iova_sync":
            result = api.dma_iova_sync(device, state, call["offset"], call["size"])
        elif name == "dma_iova_unlink":
            api.dma_iova_unlink(device, state, call["offset"], call["size"], call["dir"], call["attrs"])
        elif name == "dma_iova_free":
            api.dma_iova_free(device, state)
        else:
            api.dma_iova_destroy(device, state, call["size"], call["dir"], call["attrs"])
        error = api.last_error()
        row: dict[str, Any] = {"call": name, "state": number, "result": result, "addr": state.addr}
        row |= {"range": state.size, "place": place, "refused": type(error).__name__ if error else ""}
        return {**row, "map_calls": 0, "unmap_calls": 0, "maps": [], "unmaps": []}


def _memory(calls: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Return how many bytes of memory each range of a state needs, in the order of its ranges."""
    needed: dict[int, list[int]] = {}
    for call in calls:
        sizes = needed.setdefault(call["state"], [])
        if call["call"] == "dma_iova_try_alloc":
            sizes.append(PAGE_SIZE)
        elif call["call"] == "dma_iova_link" and sizes:
            sizes[-1] += -(-(call["phys"] % PAGE_SIZE + call["size"]) // PAGE_SIZE) * PAGE_SIZE
    return needed


def _witnessed(text: str, done: list[dict[str, Any]]) -> None:
    """Add to each call what the kernel saw between its mark and the next one."""
    from usdm import vfio_uapi

    me, row = str(os.getpid()), None
    kinds = {vfio_uapi.IOMMU_MAP_DMA: "map_calls", vfio_uapi.IOMMU_UNMAP_DMA: "unmap_calls"}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match["pid"] != me:
            continue
        rest = match["rest"]
        name, _, said = rest.partition(": ")
        if mark := _MARK.match(rest):
            row = done[int(mark[1])] if mark[1] else None
        elif row is None:
            continue
        elif ioctl := _IOCTL.match(rest):
            kind = kinds.get(int(ioctl[1], 16))
            if kind is not None:
                row[kind] += 1
        elif name == "map" and (event := tracefs.MAP.match(said)):
            row["maps"].append([int(event[1], 16), int(event[2], 16), int(event[3])])
        elif name == "unmap" and (event := tracefs.UNMAP.match(said)):
            row["unmaps"].append([int(event[1], 16), int(event[2]), int(event[3])])


STEPS: dict[str, Step] = {"replay": replay}
