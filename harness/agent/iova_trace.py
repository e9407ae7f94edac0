"""The kernel's dma_iova_* calls out of a recording of its tracing.

Each function has two events, where it begins and where it returns; `iommu:map` and `iommu:unmap` between them are its
own. An interrupt's calls lie within those of the task that it interrupted, so what is open in a task is a stack. The
idle tasks have the same number on every CPU, so they are told apart by the CPU.

A call is a dictionary: `call`, the function's name; `time`, seconds of the monotonic clock when it began; `seconds`,
how long it took; `maps`, each `[iova, physical address, bytes]`; `unmaps`, each `[iova, bytes, bytes that were
mapped]`; and of its arguments and results, as the function has them: `device`, its name; `state`, a number of the state
from 1, not its address; `phys`, `offset`, `size`, `dir`, `attrs`; `result`; `addr` and `range`, the state's IOVA and
size when dma_iova_try_alloc returned, or dma_iova_destroy and dma_iova_free began.

`dma_map_phys` and `dma_unmap_phys`, what drivers use where the API cannot be used, have events of their own, which come
when they have done their work: `device`, `phys`, `addr`, `size`, `dir` (the kernel's name of it).
"""

from __future__ import annotations

import re

from harness.agent.tracefs import GROUP, MAP, UNMAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Frames = list[dict[str, Any]]

_DEVICE = "device=+0(+0($arg1)):string"  # struct device begins with a kobject, which begins with its name
_STATE = "state=$arg2:x64"
_HELD = "addr=+0($arg2):x64 range=+8($arg2):x64"  # struct dma_iova_state
_ARGUMENTS = {
    "dma_iova_try_alloc": f"{_DEVICE} {_STATE} phys=$arg3:x64 size=$arg4:x64",
    "dma_iova_link": f"{_DEVICE} {_STATE} phys=$arg3:x64 offset=$arg4:x64 size=$arg5:x64 dir=$arg6:u32 attrs=$arg7:x64",
    "dma_iova_sync": f"{_DEVICE} {_STATE} offset=$arg3:x64 size=$arg4:x64",
    "dma_iova_unlink": f"{_DEVICE} {_STATE} offset=$arg3:x64 size=$arg4:x64 dir=$arg5:u32 attrs=$arg6:x64",
    "dma_iova_free": f"{_DEVICE} {_STATE} {_HELD}",
    "dma_iova_destroy": f"{_DEVICE} {_STATE} size=$arg3:x64 dir=$arg4:u32 attrs=$arg5:x64 {_HELD}",
}
_RESULTS = {
    "dma_iova_try_alloc": f"result=$retval:u8 {_HELD}",
    "dma_iova_link": "result=$retval:s32",
    "dma_iova_sync": "result=$retval:s32",
}
FUNCTIONS = tuple(_ARGUMENTS)
"""The functions that are recorded."""

DEFINITIONS = tuple(
    text
    for name in FUNCTIONS
    for text in (
        f"f:{GROUP}/{name}_enter {name} {_ARGUMENTS[name]}",
        f"f:{GROUP}/{name}_exit {name}%return {_STATE} {_RESULTS.get(name, '')}".rstrip(),
    )
)
"""Function events for both ends of each function, as the kernel's `dynamic_events` takes them."""

EVENTS = ("iommu/map", "iommu/unmap", "dma/dma_map_phys", "dma/dma_unmap_phys")
"""The kernel's own events that are recorded beside them."""

_LINE = re.compile(
    r"\s*(?P<task>.+)-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\](?:\s+\S+)?\s+(?P<time>\d+\.\d+): (?P<name>\w+): (?P<rest>.*)"
)
_FIELD = re.compile(r"(\w+)=(\S*)")
_PHYS = re.compile(
    r"(?P<device>\S+) dir=(?P<dir>\w+) dma_addr=(?P<addr>\w+) size=(?P<size>\d+)(?: phys_addr=(?P<phys>\w+))?"
)
_NAMED = ("device",)


class Calls:
    """What a recording tells.

    Attributes:
        calls: The calls, in the order in which they began.
        unpaired: Calls of which only one end was recorded; they are not among `calls`.
        unread: Lines that nothing here knows.
        maps, unmaps: How many events there were of iommu:map and iommu:unmap, whosever they were.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.unpaired = 0
        self.unread = 0
        self.maps = 0
        self.unmaps = 0


def read(text: str) -> Calls:
    """Read a recording as tracefs prints it."""
    return _Reader().read(text)


class _Reader:
    def __init__(self) -> None:
        self._found = Calls()
        self._open: dict[str, Frames] = {}  # what has begun in a task and not returned
        self._loose: dict[str, tuple[list[list[int]], list[list[int]]]] = {}  # maps and unmaps of no open call
        self._states: dict[str, int] = {}

    def read(self, text: str) -> Calls:
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            match = _LINE.match(line)
            if match is None:
                self._found.unread += 1
                continue
            task = match["pid"] if match["pid"] != "0" else f"idle {match['cpu']}"
            self._event(task, float(match["time"]), match["name"], match["rest"])
        self._found.unpaired += sum(len(frames) for frames in self._open.values())
        self._found.calls.sort(key=lambda call: float(call["time"]))
        return self._found

    def _event(self, task: str, time: float, name: str, rest: str) -> None:
        if name in ("map", "unmap"):
            self._iommu(task, name, rest)
        elif name in ("dma_map_phys", "dma_unmap_phys"):
            self._phys(task, time, name, rest)
        elif name.endswith("_enter"):
            call = {"call": name.removesuffix("_enter"), "time": time, "seconds": 0.0, **self._fields(rest)}
            self._open.setdefault(task, []).append({**call, "maps": [], "unmaps": []})
        elif name.endswith("_exit"):
            self._exit(task, time, name.removesuffix("_exit"), self._fields(rest))
        else:
            self._found.unread += 1

    def _fields(self, rest: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, text in _FIELD.findall(rest):
            if name in _NAMED:
                fields[name] = text.strip('"')
            elif name == "state":
                fields[name] = self._states.setdefault(text, len(self._states) + 1)
            else:
                fields[name] = int(text, 0)
        return fields

    def _exit(self, task: str, time: float, name: str, fields: dict[str, Any]) -> None:
        frames = self._open.get(task, [])
        if not frames or (frames[-1]["call"], frames[-1]["state"]) != (name, fields["state"]):
            self._found.unpaired += 1
            return
        call = frames.pop()
        call["seconds"] = round(time - call["time"], 6)
        self._found.calls.append({**call, **fields})

    def _iommu(self, task: str, name: str, rest: str) -> None:
        match = (MAP if name == "map" else UNMAP).match(rest)
        if match is None:
            self._found.unread += 1
            return
        row = [int(match[1], 16), int(match[2], 0), int(match[3])]
        frames = self._open.get(task)
        loose = self._loose.setdefault(task, ([], []))
        if name == "map":
            self._found.maps += 1
            (frames[-1]["maps"] if frames else loose[0]).append(row)
        else:
            self._found.unmaps += 1
            (frames[-1]["unmaps"] if frames else loose[1]).append(row)

    def _phys(self, task: str, time: float, name: str, rest: str) -> None:
        """A streaming call: what was mapped since the last event of the task is its own where its address says so."""
        match = _PHYS.match(rest)
        if match is None:
            self._found.unread += 1
            return
        addr = int(match["addr"], 16)
        maps, unmaps = self._loose.pop(task, ([], []))
        call = {"call": name, "device": match["device"], "dir": match["dir"], "addr": addr, "size": int(match["size"])}
        if match["phys"]:
            call["phys"] = int(match["phys"], 16)
        own = {"maps": [row for row in maps if row[0] <= addr < row[0] + row[2]]}
        own["unmaps"] = [row for row in unmaps if row[0] <= addr < row[0] + row[1]]
        self._found.calls.append({**call, "time": time, "seconds": 0.0, **own})
