"""A model of a process that calls USDM: what is registered, allocated and mapped, and which call must be refused how.

It is written from the specification and not from the code, and does not know addresses. So it says nothing of memory
that was given back once a later call can have got the same address or IOVA, and nothing of how many slabs hold the
small allocations.
"""

from __future__ import annotations

from typing import Any

from sequences_memory import (
    CONTAINERS,
    HELD,
    NAMES,
    PAGE,
    TRANSLATED,
    WRONG_ALLOCATIONS,
    WRONG_RANGES,
    Memory,
    State,
    range_of,
)


class Calls:
    """The model. Each method but `finish` and `at_fork` takes small numbers, and does nothing where none fits.

    Attributes:
        steps: the scenario's steps so far; `faults`: those that it must expect; `states`: what holds after each step.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self.states: list[State] = []
        self._memory: list[Memory] = []
        self._container: str | None = None  # the device whose container is registered
        self._count = 0
        self._opened: set[str] = set()
        self._used: set[str] = set()  # opened here or in a child
        self._masters: set[str] = set()
        self._slabs = False  # there may be slabs
        self._takes = 0  # calls so far that can have been given an address, or an IOVA, that was used before
        self._iovas = 0
        self._frees = 0  # allocations given back so far
        self._dmas = 0
        self._refused = False  # a child whose parent uses USDM
        self._child = False
        self._foreign: str | None = None  # the container that a child's parent has

    # ---- what there is

    def _step(self, kind: str, args: dict[str, Any], expect: dict[str, Any] | None = None, name: str = "") -> None:
        """Add a step; an `error` of None is none."""
        wanted = {key: value for key, value in (expect or {}).items() if key != "error" or value is not None}
        self.steps.append({kind: args, **({"expect": wanted} if wanted else {}), **({"id": name} if name else {})})
        mapped = ((m.name, offset, size) for m in self._memory for offset, size in m.mapped.items())
        allocated = ((m.name, m.size) for m in self._memory if m.allocated and m.live)
        self.states.append(State(self._container, tuple(mapped), tuple(allocated)))

    def _buffers(self) -> list[Memory]:
        return [memory for memory in self._memory if memory.live and not memory.allocated]

    def _allocations(self) -> list[Memory]:
        return [memory for memory in self._memory if memory.live and memory.allocated]

    def _stale(self) -> list[Memory]:
        """Given back, and nothing else can be there by now."""
        return [memory for memory in self._memory if not memory.live and memory.died == self._takes]

    def _room(self, size: int) -> bool:
        held = sum(memory.size for memory in self._memory if memory.live)
        return len(self._memory) < NAMES and held + size <= HELD

    def _name(self) -> str:
        return f"{'c' if self._child else 'm'}{len(self._memory)}"

    def _open(self, device: str) -> None:
        if device not in self._opened:
            self._opened.add(device)
            self._used.add(device)
            container = CONTAINERS[device]
            self._step("open", {"device": device, **({"container": container} if container else {})})

    def _state_error(self) -> str | None:
        return "ForkedChild" if self._refused else None

    # ---- registration

    def register(self, device: str) -> None:
        if device == self._foreign:
            return  # two processes would give IOVAs of one container to different memory
        self._open(device)
        error = self._state_error() or ("WrongContainer" if self._container not in (None, device) else None)
        if not error:
            if not self._count:
                self._slabs = any(not memory.large for memory in self._allocations())
                self._iovas += 1
            self._count += 1
            self._container = device
        self._step("register", {"device": device}, {"error": error, "returns": 1 if error else 0})

    def unregister(self, device: str) -> None:
        self._open(device)
        error = self._state_error()
        if not error and self._container != device:
            error = "WrongContainer" if self._container else "NotRegistered"
        if not error:
            self._count -= 1
            if not self._count:
                self._end()
        self._step("unregister", {"device": device}, {"error": error, "returns": 1 if error else 0})

    def _end(self) -> None:
        """The last registration ends: so do mappings; allocations stay."""
        self._container = None
        self._slabs = any(not memory.large for memory in self._allocations())
        for memory in self._memory:
            if memory.mapped:
                memory.unmapped = self._iovas
                memory.mapped.clear()

    def register_wrong(self, which: int) -> None:
        error = self._state_error()
        args = {"fd": ("null", "closed")[which % 2]}
        self._step("register_fd", args, {"error": error or "NotAContainer", "returns": 1 if error else -1})

    # ---- memory

    def buffer(self, size: int, backing: str, align: int) -> None:
        if not self._room(size):
            return
        memory = Memory(self._name(), size, writable=backing == "anonymous", born=self._frees)
        self._memory.append(memory)
        self._takes += 1
        args: dict[str, Any] = {"as": memory.name, "size": size}
        args |= {"backing": backing} if not memory.writable else {}
        self._step("buffer", args | ({"align": align} if align != PAGE else {}))

    def release(self, which: int) -> None:
        free = [memory for memory in self._buffers() if not memory.mapped]
        if free:
            memory = free[which % len(free)]
            memory.live, memory.died, memory.error = False, self._takes, "NotAllocated"
            memory.last = None
            self._step("release", {"buffer": memory.name})

    def allocate(self, size: int, align: int) -> None:
        if not self._room(size):
            return
        memory = Memory(self._name(), size, align, allocated=True)
        error = self._state_error()
        if error:
            memory.live, memory.died = False, -1
        else:
            self._slabs = self._slabs or not memory.large
            self._takes += 1
            self._iovas += 1
        self._memory.append(memory)
        self._step(
            *("alloc", {"as": memory.name, "size": size, "align": align}),
            {"error": error, "returns": None if error else "nonzero"},
        )

    def allocate_wrong(self, which: int) -> None:
        if len(self._memory) < NAMES:
            size, align, error = WRONG_ALLOCATIONS[which % len(WRONG_ALLOCATIONS)]
            memory = Memory(self._name(), size, align, allocated=True, live=False, died=-1)
            self._memory.append(memory)
            args = {"as": memory.name, "size": size, "align": align}
            self._step("alloc", args, {"error": error, "returns": None})
            self._step("free", {"buffer": memory.name}, {"error": "NullAddress", "pointer": "null"})

    def free(self, which: int, zero: bool) -> None:
        held = self._allocations()
        if not held:
            return
        memory = held[which % len(held)]
        error = self._state_error()
        if not error:
            self._frees += 1
            memory.live, memory.died, memory.unmapped = False, self._takes, self._iovas
        args = {"buffer": memory.name, **({} if zero else {"zero": False})}
        self._step("free", args, {"error": error, "pointer": "kept" if error else "null"})

    def free_wrong(self, which: int, offset: int) -> None:
        """Inside an allocation, memory of the program, or what was freed before."""
        stale = [memory for memory in self._stale() if memory.allocated]
        # The program can have got an address that an allocation had before; then freeing it is freeing that once more.
        own = [memory for memory in self._buffers() if memory.born == 0]
        some = own + [memory for memory in self._allocations() if memory.size > 1] + stale
        if not some:
            return
        memory = some[which % len(some)]
        args, error = {"buffer": memory.name}, "NotAllocated"
        if memory.allocated and memory.live:
            error, args["offset"] = "InteriorPointer", 1 + offset % (memory.size - 1)
        elif memory.allocated:
            error = memory.error
        self._step("free", args, {"error": self._state_error() or error, "pointer": "kept"})

    # ---- mappings

    def map(self, which: int, place: int, length: int) -> None:
        if not self._buffers():
            return
        memory = self._buffers()[which % len(self._buffers())]
        offset = memory.place(place)
        size = memory.length(offset, length)
        error = self._state_error() or (None if self._container else "NotRegistered")
        if not error and memory.overlaps(offset, size):
            error = "AlreadyMapped"
        if not error and not memory.writable:
            error = "MapFailed"
        if not error:
            memory.mapped[offset] = size
            memory.last = offset, size
            self._iovas += 1
        self._step("map", range_of(memory, offset, size), {"error": error, "returns": 0 if error else "nonzero"})

    def unmap(self, which: int) -> None:
        """Exactly what was mapped."""
        live = [(memory, offset) for memory in self._buffers() for offset in memory.mapped]
        if live:
            memory, offset = live[which % len(live)]
            self._unmap(memory, offset, memory.mapped[offset])

    def unmap_near(self, which: int, how: int) -> None:
        """A part of what was mapped, more than that, or what lies beside it."""
        live = [(memory, offset) for memory in self._buffers() for offset in memory.mapped]
        if live:
            memory, offset = live[which % len(live)]
            self._unmap(memory, *memory.near(offset, how))

    def unmap_any(self, which: int, place: int, length: int) -> None:
        """Any range of a buffer, which may be there no more."""
        held = self._buffers() + [memory for memory in self._stale() if not memory.allocated]
        if held:
            memory = held[which % len(held)]
            offset = memory.place(place)
            self._unmap(memory, offset, memory.length(offset, length))

    def _unmap(self, memory: Memory, offset: int, size: int) -> None:
        error, found = self._state_error(), memory.holds(offset)
        if not error and found != (offset, size):
            error = "NotMapped" if found is None else "SizeMismatch" if found[0] == offset else "InteriorPointer"
        if not error:
            del memory.mapped[offset]
            if memory.last == (offset, size):
                memory.unmapped = self._iovas
        self._step("unmap", range_of(memory, offset, size), {"error": error, "returns": 1 if error else 0})

    def wrong_range(self, kind: str, which: int, row: int) -> None:
        """A range that map and unmap refuse before they look at the state."""
        address, offset, size, error = WRONG_RANGES[row % len(WRONG_RANGES)]
        where: dict[str, Any] = {"address": address}
        if address is None:
            if not self._buffers():
                return
            where = {"buffer": self._buffers()[which % len(self._buffers())].name, "offset": offset}
        self._step(kind, {**where, "size": size}, {"error": error, "returns": int(kind == "unmap")})

    def nowhere(self, kind: str) -> None:
        """A page that no process has."""
        error = self._state_error() or "NotMapped"
        if kind == "map":
            error = self._state_error() or ("AddressNotAccessible" if self._container else "NotRegistered")
        self._step(kind, {"address": PAGE, "size": PAGE}, {"error": error, "returns": int(kind == "unmap")})

    def of_usdm(self, kind: str, which: int, place: int) -> None:
        """Memory that USDM allocated can neither be mapped nor unmapped."""
        held = [memory for memory in self._allocations() if memory.align >= PAGE]
        if held:
            memory = held[which % len(held)]
            offset = memory.place(place) // PAGE * PAGE if memory.size >= PAGE else 0
            error = self._state_error() or "AllocatedMemory"
            if kind == "map" and not self._refused and not self._container:
                error = "NotRegistered"
            self._step(kind, range_of(memory, offset, PAGE), {"error": error, "returns": int(kind == "unmap")})

    # ---- translation

    def look(self, which: int) -> None:
        """All of a buffer of which something is or was mapped."""
        some = [memory for memory in self._buffers() if memory.last]
        if some:
            memory = some[which % len(some)]
            self._translate(memory, 0, memory.size)

    def translate(self, which: int, place: int, length: int) -> None:
        some = self._buffers() + self._allocations() + self._stale()
        if some:
            memory = some[which % len(some)]
            offset = memory.place(place)
            self._translate(memory, offset, memory.length(offset, -1 - length))  # the simplest is to its end

    def _translate(self, memory: Memory, offset: int, size: int) -> None:
        stride = max(PAGE, size // TRANSLATED // PAGE * PAGE)
        if memory.allocated:
            parts = [(0, memory.size) if memory.live else None] * len(range(offset, offset + size, stride))
        else:
            parts = [memory.holds(at) for at in range(offset, offset + size, stride)]
        there = sum(part is not None for part in parts)
        expect: dict[str, Any] = {"counts": {"present": there, "absent": len(parts) - there}}
        if not there:
            expect["translation"] = "absent"
        elif there < len(parts):
            expect["translation"] = "partial"
        elif len(set(parts)) == 1:
            expect["translation"] = "contiguous"
        args = {"buffer": memory.name, "offset": offset, "size": size, "stride": stride}
        self._step("translate", args, {"error": "ForkedChild"} if self._refused else expect)

    def translate_back(self, which: int, place: int, more: int) -> None:
        some = self._buffers() + self._allocations() + self._stale()
        if some:
            memory = some[which % len(some)]
            offset = min(memory.place(place) + more % PAGE, memory.size - 1)
            there = memory.live if memory.allocated else memory.holds(offset) is not None
            error = self._state_error() or (None if there else "NotMapped")
            self._step("translate_back", {"buffer": memory.name, "offset": offset}, {"error": error})
