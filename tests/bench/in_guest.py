"""The program that runs in the guest: usdm and the C libusdm take turns, and each call's time is taken.

Each implementation runs in a process of its own, with a container and a device of its own, because libusdm has one
state per process and a VFIO group one owner. The processes are forked before either library is loaded, and are told by
pipes whose turn it is; the others wait for their pipe meanwhile. ``usdm.qae_mem`` is called in the process of ``usdm``.

It reads its options as JSON from its argument and writes what it measured as one line of JSON. It needs the standard
library and the payload only: ``python3 -I - OPTIONS < in_guest.py``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import random
import sys
import traceback
from itertools import repeat
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PAYLOAD = "/run/payload"
LIBRARY = "/run/libusdm.so"
SAMPLE_SECONDS = 0.02
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE, UNIT = 4 * KIB, 2 * MIB
IOVA_END = 1 << 39
SLABS = 200
# The largest block that both put into a slab: one slab each.
SLAB_BLOCK = 2039 * KIB
SINGLES = 20_000
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _madvise = _libc.mmap, _libc.munmap, _libc.madvise
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_NORESERVE = 0x4000
_POPULATE_READ, _POPULATE_WRITE = 22, 23


# ---- what is called


class Api:
    """The functions of an implementation, called as a program calls them.

    Attributes:
        name: Of the implementation.
        map, unmap, virt_to_phys, phys_to_virt, register, unregister: Its functions.
    """

    name: str
    allocate: Callable[[int, int, int], Any]
    map: Callable[[int, int], int]
    unmap: Callable[[int, int], int | None]
    virt_to_phys: Callable[[int], int]
    phys_to_virt: Callable[[int], int | None]
    register: Callable[[int], int | None]
    unregister: Callable[[int], int | None]

    def allocate_and_free(self, count: int, size: int, alignment: int) -> float:
        """Return the seconds of `count` pairs."""
        raise NotImplementedError

    def take(self, size: int, alignment: int) -> int:
        """Allocate, checked."""
        return good(self.allocate(size, -1, alignment))


class Methods(Api):
    """The Python interface: the methods of `usdm.driver.Usdm`, whose errors are exceptions."""

    name = "usdm"

    def __init__(self) -> None:
        from usdm import qae_mem

        usdm = qae_mem.default_instance()
        self.allocate, self._free = usdm.allocate, usdm.free
        self.map, self.unmap = usdm.map, usdm.unmap
        self.virt_to_phys, self.phys_to_virt = usdm.virt_to_phys, usdm.phys_to_virt
        self.register, self.unregister = usdm.register_device, usdm.unregister_device

    def allocate_and_free(self, count: int, size: int, alignment: int) -> float:
        allocate, free = self.allocate, self._free
        started = perf_counter()
        for _ in repeat(None, count):
            free(allocate(size, -1, alignment))
        return perf_counter() - started


class Functions(Api):
    """The functions of `qae_mem.h`, whose errors are return values.

    Args:
        name: Of the implementation.
        library: Has the functions.
        cell: A pointer variable with `value`, used for every free.
        reference: What the functions that free take for it.
    """

    def __init__(self, name: str, library: Any, cell: Any, reference: Any) -> None:
        self.name = name
        self._cell, self._reference = cell, reference
        self.allocate, self._free = library.qaeMemAllocNUMA, library.qaeMemFreeNUMA
        self.map, self.unmap = library.qaeMemMapContiguousIova, library.qaeMemUnmapContiguousIova
        self.virt_to_phys, self.phys_to_virt = library.qaeVirtToPhysNUMA, library.qaePhysToVirtNUMA
        self.register, self.unregister = library.qaeRegisterDevice, library.qaeUnregisterDevice

    def allocate_and_free(self, count: int, size: int, alignment: int) -> float:
        allocate, free, cell, reference = self.allocate, self._free, self._cell, self._reference
        started = perf_counter()
        for _ in repeat(None, count):
            cell.value = allocate(size, -1, alignment)
            free(reference)
        return perf_counter() - started


def c_functions() -> Api:
    """Return the functions of `usdm.qae_mem`."""
    from usdm import qae_mem

    pointer = qae_mem.Pointer()
    return Functions("usdm.qae_mem", qae_mem, pointer, pointer)


def c_library() -> Api:
    """Return the functions of the C library."""
    pointer, size, number, u64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint64
    library = ctypes.CDLL(LIBRARY)
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "qaeMemAllocNUMA": (pointer, (size, number, size)),
        "qaeMemFreeNUMA": (None, (ctypes.POINTER(pointer),)),
        "qaeVirtToPhysNUMA": (u64, (pointer,)),
        "qaePhysToVirtNUMA": (pointer, (u64,)),
        "qaeRegisterDevice": (number, (number,)),
        "qaeUnregisterDevice": (number, (number,)),
        "qaeMemMapContiguousIova": (u64, (pointer, size)),
        "qaeMemUnmapContiguousIova": (number, (pointer, size)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    cell = pointer()
    return Functions("libusdm", library, cell, ctypes.byref(cell))


APIS: dict[str, Callable[[], Api]] = {"usdm": Methods, "usdm.qae_mem": c_functions, "libusdm": c_library}


def good(value: int | None) -> int:
    """Return a function's result, which is not the C failure value."""
    if not value:
        raise RuntimeError("a function failed (its result was 0 or NULL)")
    return value


def done(status: int | None) -> None:
    """Check a function's status."""
    if status:
        raise RuntimeError(f"a function failed (its status was {status})")


# ---- memory of the program's own


def take(size: int, writable: bool = True) -> int:
    """Return the address of anonymous memory, all of which has been written to, or read when it is not writable."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (0 if writable else _NORESERVE)
    address = _mmap(None, size, protection, flags, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise MemoryError(f"mmap of {size} bytes: {os.strerror(ctypes.get_errno())}")
    if _madvise(address, size, _POPULATE_WRITE if writable else _POPULATE_READ):
        raise MemoryError(f"madvise of {size} bytes: {os.strerror(ctypes.get_errno())}")
    return int(address)


# ---- rows


class Row:
    """One quantity.

    Attributes:
        count: How many times a sample has, whatever they take; 0 for as many as are long enough.
        warm: The first sample is not counted.
    """

    count = 0
    warm = True

    def begin(self) -> None:
        """Get ready, before the first sample."""

    def sample(self, api: Api, count: int) -> float:
        """Return the seconds that `count` times took."""
        raise NotImplementedError

    def end(self) -> None:
        """Give back what was taken, after the last sample."""


class Allocation(Row):
    """Allocate and free at once."""

    def __init__(self, size: int, alignment: int) -> None:
        self._size, self._alignment = size, alignment

    def sample(self, api: Api, count: int) -> float:
        return api.allocate_and_free(count, self._size, self._alignment)


class Translation(Row):
    """Translate addresses of an allocation, or of many, in an order without a pattern."""

    def __init__(self, process: Process, back: bool) -> None:
        self._process, self._back = process, back
        self._addresses: list[int] = []

    def begin(self) -> None:
        api = self._process.apis[0]
        order = random.Random(1)
        blocks = self._process.blocks or [api.take(64 * KIB, PAGE)]
        virtual = [blocks[turn % len(blocks)] + order.randrange(64 * KIB) for turn in range(SLABS)]
        order.shuffle(virtual)
        iovas = [good(api.virt_to_phys(address)) for address in virtual]
        for iova, address in zip(iovas, virtual, strict=True):
            if api.phys_to_virt(iova) != address:
                raise RuntimeError(f"{api.name} gives another address for IOVA {iova:#x}")
        self._addresses = iovas if self._back else virtual

    def sample(self, api: Api, count: int) -> float:
        translate = api.phys_to_virt if self._back else api.virt_to_phys
        whole, rest = divmod(count, len(self._addresses))
        chosen = [self._addresses] * whole + [self._addresses[:rest]]
        started = perf_counter()
        for addresses in chosen:
            for address in addresses:
                translate(address)
        return perf_counter() - started


class Mapping(Row):
    """Map and unmap memory that has been touched."""

    def __init__(self, size: int) -> None:
        self._size, self._address = size, 0

    def begin(self) -> None:
        self._address = take(self._size)

    def sample(self, api: Api, count: int) -> float:
        map_, unmap, address, size = api.map, api.unmap, self._address, self._size
        # Not every call can be checked without being measured; the first and the last are.
        good(map_(address, size))
        done(unmap(address, size))
        started = perf_counter()
        for _ in repeat(None, count):
            map_(address, size)
            unmap(address, size)
        seconds = perf_counter() - started
        good(map_(address, size))
        done(unmap(address, size))
        return seconds

    def end(self) -> None:
        _munmap(self._address, self._size)


class Registration(Row):
    """Register with many slabs, or unregister; each of it changes the container, none only counts."""

    def __init__(self, process: Process, *, unregister: bool = False) -> None:
        self._process, self._unregister = process, unregister

    def sample(self, api: Api, count: int) -> float:
        fd, seconds = self._process.fd, [0.0, 0.0]
        for _ in repeat(None, count):
            started = perf_counter()
            status = api.register(fd)
            seconds[0] += perf_counter() - started
            done(status)
            good(api.virt_to_phys(self._process.blocks[0]))
            started = perf_counter()
            status = api.unregister(fd)
            seconds[1] += perf_counter() - started
            done(status)
        return seconds[self._unregister]


class Taken(Row):
    """What was measured when the process got ready, because it happens once."""

    count, warm = 1, False

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def sample(self, api: Api, count: int) -> float:
        return self._seconds


class Fragmented(Row):
    """Map where every second unit of the first ones is taken, with the search begun at the first.

    Both implementations search on from where they found something last. So before, maps that the kernel refuses lead
    the search once around the whole IOVA space: the memory is read-only, and both try other IOVAs after a refusal.
    """

    def __init__(self, size: int) -> None:
        # What fits into no gap begins anew each time, which takes long.
        self._size, self.count = size, 0 if size <= UNIT else 3
        self._address = self._page = self._refused = 0

    def begin(self) -> None:
        self._address, self._page, self._refused = take(self._size), take(PAGE), take(2 * GIB, writable=False)

    def sample(self, api: Api, count: int) -> float:
        map_, unmap, address, size = api.map, api.unmap, self._address, self._size
        seconds = 0.0
        for turn in range(count):
            # What fits into a gap has the next gap before it, the rest is beyond all of them.
            if turn == 0 or size > UNIT:
                self._go_to_start(api)
            started = perf_counter()
            iova = map_(address, size)
            seconds += perf_counter() - started
            good(iova)
            if (iova < SINGLES * UNIT) != (size <= UNIT):
                raise RuntimeError(f"{api.name} found IOVA {iova:#x} for {size} bytes, which is not what is measured")
            done(unmap(address, size))
        return seconds

    def _go_to_start(self, api: Api) -> None:
        for _ in range(1000):
            iova = good(api.map(self._page, PAGE))
            done(api.unmap(self._page, PAGE))
            if iova < 16 * UNIT:
                return
            size = min(2 * GIB, IOVA_END - (iova + UNIT))
            if size:
                self._refuse(api, size)
        raise RuntimeError(f"{api.name} does not go on to the start of the IOVA space")

    def _refuse(self, api: Api, size: int) -> None:
        from usdm.errors import MapFailed

        try:
            iova = api.map(self._refused, size)
        except MapFailed:
            return
        if iova:
            raise RuntimeError(f"{api.name} mapped read-only memory at IOVA {iova:#x}")

    def end(self) -> None:
        for address, size in ((self._address, self._size), (self._page, PAGE), (self._refused, 2 * GIB)):
            _munmap(address, size)


# ---- groups: rows of one state


def basic(process: Process) -> dict[str, Row]:
    """Return the rows of a process with a registered container and little else."""
    process.register()
    return {
        "allocate + free 64 B": Allocation(64, 64),
        "allocate + free 4 KiB": Allocation(4 * KIB, PAGE),
        "allocate + free 1 MiB": Allocation(MIB, PAGE),
        "virt to phys": Translation(process, back=False),
        "phys to virt": Translation(process, back=True),
        "map + unmap 4 KiB": Mapping(4 * KIB),
        "map + unmap 2 MiB": Mapping(2 * MIB),
        "map + unmap 64 MiB": Mapping(64 * MIB),
        "map + unmap 1 GiB": Mapping(GIB),
    }


def many_slabs(process: Process) -> dict[str, Row]:
    """Return the rows of a process with 200 slabs and a registered container."""
    process.fill_slabs()
    process.register()
    return {
        f"virt to phys, {SLABS} slabs": Translation(process, back=False),
        f"phys to virt, {SLABS} slabs": Translation(process, back=True),
    }


def registering(process: Process) -> dict[str, Row]:
    """Return the rows of a process with 200 slabs, whose memory is there, and no registered container."""
    process.fill_slabs()
    process.register()
    process.unregister()
    return {
        f"register, {SLABS} slabs": Registration(process),
        f"unregister, {SLABS} slabs": Registration(process, unregister=True),
    }


def first_registration(process: Process) -> dict[str, Row]:
    """Return the rows of a process that registers for the first time, whose slabs have not been used yet.

    The one implementation has the kernel give the slabs' memory when they are allocated, the other when they are
    mapped; so there is a row for both together.
    """
    started = perf_counter()
    process.fill_slabs()
    filled = perf_counter()
    process.register()
    registered = perf_counter()
    return {
        f"first register, {SLABS} slabs not used before": Taken(registered - filled),
        f"allocate {SLABS} slabs + first register": Taken(registered - started),
    }


def fragmented(process: Process) -> dict[str, Row]:
    """Return the rows of a process in whose IOVA space every second unit of 20,000 is taken."""
    process.register()
    api, memory = process.apis[0], take(SINGLES * PAGE)
    iovas = [good(api.map(memory + number * PAGE, PAGE)) for number in range(SINGLES)]
    for number in range(1, SINGLES, 2):
        done(api.unmap(memory + number * PAGE, PAGE))
    if any(iova >= (SINGLES + 8) * UNIT for iova in iovas):
        raise RuntimeError(f"{api.name} leaves IOVAs out: {max(iovas):#x}")
    return {
        f"map 4 KiB, into {SINGLES // 2} gaps of 2 MiB": Fragmented(4 * KIB),
        f"map 64 MiB, beyond {SINGLES // 2} gaps of 2 MiB": Fragmented(64 * MIB),
    }


GROUPS: dict[str, Callable[[Process], dict[str, Row]]] = {
    "basic": basic,
    "many slabs": many_slabs,
    "registering": registering,
    "first registration": first_registration,
    "fragmented": fragmented,
}
# A new process for each value.
FRESH = ("first registration",)


# ---- processes


class Process:
    """A process's own side.

    Attributes:
        apis: What is called here; all work on one state.
        fd: The container.
        blocks: Allocations of a slab each.
    """

    def __init__(self, apis: list[str], device: str) -> None:
        from usdm.vfio import Container

        self.apis = [APIS[name]() for name in apis]
        bind(device)
        self._container = Container()
        self._device = self._container.open_device(device)
        self.fd = self._container.fd
        self.blocks: list[int] = []
        self._counts: dict[tuple[str, str], int] = {}
        # Without an allocation before, libusdm forgets the MSI window when it registers.
        self.apis[0].take(64, 64)

    def register(self) -> None:
        """Register the container."""
        done(self.apis[0].register(self.fd))

    def unregister(self) -> None:
        """Unregister the container."""
        done(self.apis[0].unregister(self.fd))

    def fill_slabs(self) -> None:
        """Allocate as much as fills 200 slabs."""
        self.blocks = [self.apis[0].take(SLAB_BLOCK, KIB) for _ in range(SLABS)]

    def value(self, name: str, row: Row, api: Api) -> float:
        """Return the seconds of one time."""
        key = name, api.name
        known, count = key in self._counts, self._counts.get(key, row.count or 1)
        if row.warm and not known:
            self._timed(row, api, count)
        seconds = self._timed(row, api, count)
        # A sample that something else made long is not taken for long enough: each one is looked at.
        while not row.count and (seconds < SAMPLE_SECONDS or not known):
            known = seconds >= SAMPLE_SECONDS
            if not known:
                count = max(count + 1, int(count * min(10, 1.3 * SAMPLE_SECONDS / max(seconds, 1e-6))))
            seconds = self._timed(row, api, count)
        self._counts[key] = count
        return seconds / count

    @staticmethod
    def _timed(row: Row, api: Api, count: int) -> float:
        gc.collect()
        gc.disable()
        try:
            return row.sample(api, count)
        finally:
            gc.enable()


def bind(device: str) -> None:
    """Give a device to vfio-pci."""
    folder = "/sys/bus/pci"
    if not os.path.exists(f"{folder}/devices/0000:{device}/driver"):  # noqa: PTH110
        for path, text in ((f"devices/0000:{device}/driver_override", "vfio-pci"), ("drivers_probe", f"0000:{device}")):
            with open(f"{folder}/{path}", "w", encoding="ascii") as file:
                file.write(text)


def huge_pages() -> int:
    """Return how much memory of this process is in huge pages, in KiB."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("AnonHugePages:"))


def serve(group: str, apis: list[str], device: str, requests: Any, answers: Any) -> None:
    """Do what the parent asks for until it ends."""
    process = Process(apis, device)
    rows = GROUPS[group](process)
    print(json.dumps(list(rows)), file=answers, flush=True)
    for line in requests:
        word, name, api_name = json.loads(line)
        if word == "stop":
            return
        row, answer = rows[name], 0.0
        if word == "begin":
            row.begin()
            answer = huge_pages()
        elif word == "end":
            row.end()
        else:
            (api,) = (api for api in process.apis if api.name == api_name)
            answer = process.value(name, row, api)
        print(json.dumps(answer), file=answers, flush=True)


class Child:
    """The parent's side of a process.

    Attributes:
        apis: Names of what is called there.
        rows: Names of what can be measured there.
    """

    def __init__(self, group: str, apis: list[str], device: str) -> None:
        self.apis = apis
        theirs, requests = os.pipe()
        answers, ours = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.close(requests)
                os.close(answers)
                # libusdm says on 2 what it could not do, which some rows provoke.
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, 1)
                os.dup2(nothing, 2)
                with open(theirs, encoding="ascii") as source, open(ours, "w", encoding="ascii") as sink:
                    try:
                        serve(group, apis, device, source, sink)
                        status = 0
                    except BaseException:
                        print(json.dumps({"error": traceback.format_exc()}), file=sink, flush=True)
            finally:
                os._exit(status)
        os.close(theirs)
        os.close(ours)
        self._requests = open(requests, "w", encoding="ascii")  # noqa: SIM115
        self._answers = open(answers, encoding="ascii")  # noqa: SIM115
        self.rows: list[str] = self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the process of {self.apis[0]} ended: wait status {os.waitpid(self._pid, 0)[1]}")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise RuntimeError(f"{self.apis[0]}: {answer['error']}")
        return answer

    def ask(self, word: str, row: str, api: str = "") -> float:
        """Have something done, and wait until it is."""
        print(json.dumps([word, row, api]), file=self._requests, flush=True)
        return float(self._answer())

    def end(self) -> None:
        """End the process; its device is free then."""
        # A word for it, because a process forked later also holds the pipe.
        print(json.dumps(["stop", "", ""]), file=self._requests, flush=True)
        os.waitpid(self._pid, 0)
        self._requests.close()
        self._answers.close()


def take_turns(children: list[Child], row: str, rounds: int) -> dict[str, Any]:
    """Measure a row: in each round each implementation once, in the reverse order in every second round."""
    huge = [int(child.ask("begin", row)) for child in children]
    turns = [(child, api) for child in children for api in child.apis]
    # usdm, libusdm, usdm.qae_mem: the C library between the two.
    turns.sort(key=lambda turn: ("usdm", "libusdm", "usdm.qae_mem").index(turn[1]))
    values: dict[str, list[float]] = {api: [] for _, api in turns}
    for number in range(rounds):
        for child, api in turns[:: -1 if number % 2 else 1]:
            values[api].append(child.ask("value", row, api))
    for child in children:
        child.ask("end", row)
    return {"row": row, "seconds": values, "huge_page_kib": max(huge)}


def measure(group: str, rounds: int, devices: dict[str, str]) -> list[dict[str, Any]]:
    """Measure all rows of a group."""
    if group not in FRESH:
        children = [
            Child(group, ["usdm", "usdm.qae_mem"], devices["usdm"]),
            Child(group, ["libusdm"], devices["libusdm"]),
        ]
        results = [take_turns(children, row, rounds) for row in children[0].rows]
        for child in children:
            child.end()
        return results
    merged: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for api in ("usdm", "libusdm", "usdm.qae_mem"):
            child = Child(group, [api], devices["libusdm" if api == "libusdm" else "usdm"])
            for row in child.rows:
                result = take_turns([child], row, 1)
                found = merged.setdefault(row, {**result, "seconds": {}})
                found["seconds"].setdefault(api, []).extend(result["seconds"][api])
            child.end()
    return list(merged.values())


def read(path: str) -> str:
    """Return a small file's text."""
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def main() -> None:
    """Measure what the options ask for."""
    options = json.loads(sys.argv[1])
    sys.path.insert(0, PAYLOAD)
    if options.get("huge_pages"):
        with open(HUGE_PAGES, "w", encoding="ascii") as file:
            file.write(options["huge_pages"])
    started = perf_counter()
    results = [
        result
        for group in options.get("groups") or GROUPS
        for result in measure(group, options["rounds"], options["devices"])
    ]
    facts = {
        "transparent huge pages": read(HUGE_PAGES),
        "clock": read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "guest Python": sys.version.split()[0],
        "seconds": round(perf_counter() - started, 1),
    }
    print(json.dumps({"facts": facts, "rows": results}))


if __name__ == "__main__":
    main()
