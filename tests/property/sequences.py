"""Sequences of USDM calls as the steps of a scenario, each with what must come of it.

Hypothesis draws abstract operations (`programs`); `Program` is a small model of a process that uses USDM, written from
the specification and not from the code. It turns each operation into steps exactly as they stand in a scenario file.
The same sequence runs on a simulated container (`test_usdm_sequences.py`) and in a guest (`tests/fuzz/run.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import yaml
from hypothesis import strategies as st
from sequences_memory import (
    DEVICES,
    DMAS,
    ENTRIES,
    IOVAS,
    MIB,
    PAGE,
    SLAB,
    WRONG_ALLOCATIONS,
    WRONG_RANGES,
    Memory,
    range_of,
    spoil,
)
from sequences_model import Calls

TITLE = "A sequence of calls does what the specification says"


class Program(Calls):
    """A process with devices and children. See `Calls`.

    Attributes:
        has_statistics: usdm's own counts are looked at; the C library has none.
    """

    def __init__(self, has_statistics: bool = True) -> None:
        super().__init__()
        self.has_statistics = has_statistics

    def scenario(self, title: str = TITLE) -> dict[str, Any]:
        """The data of a scenario file."""
        used = [name for name in DEVICES if name in self._used]
        data: dict[str, Any] = {
            "title": title,
            "source": "the specification of USDM: the order of its checks, and what each call changes",
            "machine": {"iommu": "intel", "devices": {name: DEVICES[name] for name in used}},
            "steps": self.steps,
        }
        return {**data, "expect": {"faults": self.faults}} if self.faults else data

    def __repr__(self) -> str:
        return f"a sequence:\n{self.text()}"

    def text(self, title: str = TITLE, description: str = "") -> str:
        """The scenario file, one step a line."""
        data = self.scenario(title) | ({"description": description} if description else {})
        lines = [f"{key}: {_flow(data[key])}" for key in ("title", "source", "description", "machine") if key in data]
        lines += ["steps:", *(f"  - {_flow(step)}" for step in data["steps"])]
        if self.faults:
            lines += ["expect:", "  faults:", *(f"    - {_flow(fault)}" for fault in self.faults)]
        return "\n".join([*lines, ""])

    def finish(self) -> None:
        """Look for what was lost, and end all registrations: nothing may be mapped or translated any more then."""
        if self._count and not self._refused:
            self.statistics()
        while self._count and not self._refused:
            self.unregister(self._container or "")
        if self._child:
            return
        self._open("edu0")
        for device in sorted(self._opened):
            self.info(device)
        for memory in self._buffers():
            if memory.last is not None:
                self._translate(memory, 0, memory.size)

    # ---- content

    def fill(self, which: int, place: int, size: int, seed: int) -> None:
        some = [memory for memory in self._memory if memory.live and memory.here and memory.writable]
        if some:
            memory = some[which % len(some)]
            offset = memory.place(place)
            self._fill(memory, offset, min(size, memory.size - offset), seed)

    def _fill(self, memory: Memory, offset: int, size: int, seed: int) -> None:
        spoil(memory, offset, size)
        memory.filled.append((offset, size, seed))
        self._step("fill", {**range_of(memory, offset, size), "pattern": "random", "seed": seed})

    def check(self, which: int) -> None:
        some = [(memory, part) for memory in self._memory if memory.live and memory.here for part in memory.filled]
        if some:
            memory, (offset, size, seed) = some[which % len(some)]
            self._step("check", {**range_of(memory, offset, size), "pattern": "random", "seed": seed})

    def map_read_only(self, which: int) -> None:
        """What the kernel refuses must leave nothing behind, so it comes without slabs, whose number nobody knows."""
        if not self._slabs:
            self.buffer(2 * PAGE, "read_only", PAGE)
            self.map(len(self._buffers()) - 1, which, 0)
            self.statistics()

    # ---- counts

    def info(self, device: str) -> None:
        """The kernel's own count: what it still maps is a leak, or what it maps no more is missing."""
        if device not in self._opened or device == self._foreign or (self._slabs and device == self._container):
            return
        mapped = 0
        if device == self._container:
            mapped = sum(len(memory.mapped) for memory in self._buffers()) + len(self._allocations())
        self._step("container_info", {"device": device}, {"counts": {"mappings_left": ENTRIES - mapped}})

    def statistics(self) -> None:
        if not self.has_statistics:
            return
        if self._refused:
            self._step("statistics", {}, {"error": "ForkedChild"})
            return
        mapped = [size for memory in self._buffers() for size in memory.mapped.values()]
        held = [memory.size for memory in self._allocations()]
        counts = {"registrations": self._count, "mappings": len(mapped), "bytes_mapped": sum(mapped)}
        counts |= {"allocations": len(held), "bytes_asked": sum(held)}
        if self._container and not self._slabs:
            counts["iova_free"] = IOVAS - sum(-(-size // SLAB) * SLAB for size in mapped + held)
        self._step("statistics", {}, {"counts": counts})

    # ---- DMA

    def _master(self, device: str) -> None:
        self._open(device)
        if device not in self._masters:
            self._masters.add(device)
            self._step("bus_master", {"device": device, "enabled": True})

    def copy(self, source: int, target: int, at_end: bool, seed: int) -> None:
        """The device copies from one place to another that it can reach; the end of each is as good as its start."""
        areas = [(m, *m.last) for m in self._buffers() if m.last and m.mapped.get(m.last[0]) == m.last[1]]
        areas += [(memory, 0, memory.size) for memory in self._allocations()]
        if self._child or not self._container or self._dmas + 2 > DMAS or not areas:
            return
        (one, start, length), (other, begin, extent) = areas[source % len(areas)], areas[target % len(areas)]
        size = min(64, length, extent)
        read_at = start + length - size if at_end else start
        write_at = begin if at_end else begin + extent - size
        if one is other and abs(read_at - write_at) < size:
            return
        self._dmas += 2
        self._master(self._container)
        self._fill(one, read_at, size, seed)
        spoil(other, write_at, size)
        device = {"device": self._container}
        self._step("dma_read", {**device, **range_of(one, read_at, size)})
        self._step("dma_write", {**device, **range_of(other, write_at, size)})
        self._step("compare", {**range_of(one, read_at, size), "with": other.name, "with_offset": write_at})

    def stray(self, which: int, write: bool, device: str) -> None:
        """A DMA to where nothing is mapped for the device: the IOMMU must refuse it."""
        if self._child or self._dmas >= DMAS or not (device in self._opened or device == "edu0"):
            return
        places: list[dict[str, Any]] = [{"iova": PAGE}]  # unit 0 is never handed out
        for memory in self._memory:
            gone = memory.unmapped == self._iovas
            if memory.allocated and memory.live and device != self._container:
                places.append(range_of(memory, 0, 0))
            elif memory.allocated and memory.large and not memory.live and memory.died >= 0 and gone:
                places.append(range_of(memory, memory.place(which), 0))
            elif memory.last:
                offset, size = memory.last
                mapped = memory.mapped.get(offset) == size
                if (mapped and device != self._container) or (
                    not mapped and not memory.overlaps(offset, size) and gone
                ):
                    places.append(range_of(memory, offset + size - PAGE, 0))
                elif mapped and size % SLAB:
                    places.append(range_of(memory, offset + size, 0))  # the rest of its last 2 MiB
        self._master(device)
        self._dmas += 1
        place = {key: value for key, value in places[which % len(places)].items() if key != "size"}
        access = "write" if write else "read"
        self._step(f"dma_{access}", {"device": device, **place, "size": 16}, name=f"stray{len(self.faults)}")
        where = {"address" if key == "iova" else key: value for key, value in place.items()}
        fault = {"device": device, "access": access, **where, "reason": 5 if write else 6}
        self.faults.append({**fault, "step": f"stray{len(self.faults)}"})

    # ---- fork

    def fork(self, clean: bool, operations: list[tuple[Any, ...]]) -> None:
        """A child runs operations; its memory, not USDM's, is a copy of the parent's."""
        if self._child:
            return
        child = copy.deepcopy(self)
        child.steps, child.faults, child.states = [], [], []
        child._child, child._foreign = True, self._container
        child._refused = bool(self._container or self._allocations())
        for memory in child._memory:
            memory.here = not memory.allocated
            memory.error = "NotAllocated"  # once its state is its own
        # Whether memory is kept for later, which makes it a process that uses USDM, is not specified.
        if clean or (self._slabs and not child._refused):
            child.at_fork(always=True)
        run(child, operations)
        child.finish()
        self._used |= child._used
        if child.steps:
            self._step("fork", {"steps": child.steps})

    def at_fork(self, always: bool = False) -> None:
        """In a child of a process that uses USDM it makes a clean state, anywhere else nothing."""
        if self._child and (always or self._refused):
            for memory in self._allocations():
                memory.live, memory.died = False, self._takes
            self._end()
            self._refused, self._count, self._slabs = False, 0, False
        self._step("at_fork", {})


def _flow(value: Any) -> str:
    """YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def run(program: Program, operations: list[tuple[Any, ...]]) -> None:
    """Do operations: the name of a method of `Program` and its arguments."""
    for name, *arguments in operations:
        getattr(program, name)(*arguments)


# ---- what is drawn; the simplest of each comes first

_which, _place = st.integers(0, 3), st.integers(0, 7)
_length = st.integers(0, 4)
_backing = st.sampled_from(("anonymous",) * 4 + ("read_only",))
_seed = st.integers(0, 9)
_device = st.sampled_from(("edu0", "edu0", "edu0", "edu1"))
_kind = st.sampled_from(("map", "unmap"))
_sizes = (4 * PAGE, PAGE, 3 * PAGE, 16 * PAGE, 64 * PAGE, SLAB, SLAB - PAGE, SLAB + PAGE, 2 * SLAB, 4 * SLAB)
_small, _large = (64, 1, 1000, PAGE, PAGE + 1, 100_000, MIB), (SLAB, SLAB - 1, SLAB + 1, 3 * MIB, 4 * SLAB)


Operation = st.SearchStrategy[tuple[Any, ...]]


def _op(name: str, *arguments: st.SearchStrategy[Any]) -> Operation:
    return st.tuples(st.just(name), *arguments)


def _mixed(weighted: Iterable[tuple[int, Operation]]) -> Operation:
    """One of several, each as often as its number says; `st.one_of` takes equal ones for one."""
    return st.sampled_from([op for often, op in weighted for _ in range(often)]).flatmap(lambda op: op)


_weighted = (  # how often, and what
    (2, _op("buffer", st.sampled_from(_sizes), _backing, st.sampled_from((PAGE, SLAB)))),
    (7, _op("map", _which, _place, _length)),
    (1, _op("map_read_only", _place)),
    (3, _op("unmap", _which)),
    (3, _op("unmap_near", _which, _place)),
    (1, _op("unmap_any", _which, _place, _length)),
    (1, _op("wrong_range", _kind, _which, st.integers(0, len(WRONG_RANGES) - 1))),
    (1, _op("nowhere", _kind)),
    (1, _op("of_usdm", _kind, _which, _place)),
    (3, _op("look", _which)),
    (2, _op("translate", _which, _place, _length)),
    (2, _op("translate_back", _which, _place, st.sampled_from((0, 1, PAGE - 1)))),
    (2, _op("allocate", st.sampled_from(_small), st.sampled_from((PAGE, 1, 64, 8192, MIB)))),
    (2, _op("allocate", st.sampled_from(_large), st.sampled_from((PAGE, 64, SLAB, 4 * MIB)))),
    (1, _op("allocate_wrong", st.integers(0, len(WRONG_ALLOCATIONS) - 1))),
    (2, _op("free", _which, st.booleans())),
    (2, _op("free_wrong", _which, st.sampled_from((0, 1023, PAGE - 1, SLAB)))),
    (2, _op("register", _device)),
    (1, _op("unregister", _device)),
    (1, _op("register_wrong", st.integers(0, 1))),
    (2, _op("fill", _which, _place, st.sampled_from((64, 1000, PAGE)), _seed)),
    (2, _op("check", _which)),
    (1, _op("statistics")),
    (1, _op("at_fork")),
)
_in_child = st.lists(_mixed(_weighted), max_size=10)
_operation = _mixed(
    (
        *_weighted,
        (1, _op("release", _which)),
        (1, _op("info", st.sampled_from(("edu0", "edu1")))),
        (2, _op("copy", _which, _which, st.booleans(), _seed)),
        (1, _op("stray", _which, st.booleans(), _device)),
        (2, _op("fork", st.booleans(), _in_child)),
    )
)
# Most processes register a device first; lists that must be long can be shortened, since their greatest length is the
# same.
_operations = st.sampled_from((0, 15, 30, 45)).flatmap(lambda least: st.lists(_operation, min_size=least, max_size=60))


@st.composite
def programs(draw: st.DrawFn, has_statistics: bool = True) -> Program:
    """Sequences of up to 60 operations, which make up to about 100 steps."""
    program = Program(has_statistics)
    if draw(st.sampled_from((True, True, True, False))):
        program.register("edu0")
    run(program, draw(_operations))
    program.finish()
    return program
