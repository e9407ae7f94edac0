"""Steps that set the stage for the process: its environment, its limits, hugepages; and one in which threads race."""

from __future__ import annotations

import ctypes
import os
import struct

from harness.agent import own_memory, pci
from harness.agent.outcome import NotSet, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.implementations import Implementation
    from harness.agent.registry import Step

HUGEPAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB"
QAT_FOLDER = "/dev/hugepages/qat"
_CAP_IPC_LOCK = 14
_CAPABILITY_VERSION = 0x20080522
_PAGE = 4096
_SYSCALLS = {"x86_64": (125, 126, 279), "aarch64": (90, 91, 239)}  # capget, capset, move_pages


def environment(_context: Context, args: dict[str, Any]) -> Outcome:
    """Set an environment variable of this process, for both implementations."""
    os.environ[args["name"]] = args["value"]
    return Outcome()


def hugepages(_context: Context, args: dict[str, Any]) -> Outcome:
    """Have the kernel keep a number of 2 MiB pages; values: counts (total, free).

    The C library also wants a file system at /dev/hugepages/qat, which the qat service makes on a real host.
    """
    wanted: int = args["pages"]
    try:
        pci.write(f"{HUGEPAGES}/nr_hugepages", str(wanted))
    except FileNotFoundError:
        raise NotSet("this kernel has no hugepages of 2 MiB") from None
    if args.get("folder", True):
        os.makedirs(QAT_FOLDER, exist_ok=True)  # noqa: PTH103 - pathlib costs the guest time
    counts = {name: _number(f"{HUGEPAGES}/{name}_hugepages") for name in ("nr", "free")}
    if counts["nr"] != wanted:
        raise NotSet(f"asked for {wanted} hugepages, the kernel has {counts['nr']}")
    return Outcome(values={"counts": {"total": counts["nr"], "free": counts["free"]}})


def _number(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 64))
    finally:
        os.close(fd)


def limit_memory(_context: Context, args: dict[str, Any]) -> Outcome:
    """Limit the memory that this process may lock (RLIMIT_MEMLOCK), and give up the capability that lifts the limit."""
    import resource

    resource.setrlimit(resource.RLIMIT_MEMLOCK, (args["bytes"], args["bytes"]))
    libc = ctypes.CDLL(None, use_errno=True)
    capget, capset, _ = _numbers()
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    data = ctypes.create_string_buffer(24)  # two times effective, permitted, inheritable
    if libc.syscall(capget, header, data):
        raise NotSet(f"capget: {os.strerror(ctypes.get_errno())}")
    sets = list(struct.unpack("=6I", data.raw[:24]))
    sets[0] &= ~(1 << _CAP_IPC_LOCK)
    if libc.syscall(capset, header, ctypes.create_string_buffer(struct.pack("=6I", *sets))):
        raise NotSet(f"capset: {os.strerror(ctypes.get_errno())}")
    return Outcome()


def _numbers() -> tuple[int, int, int]:
    machine = os.uname().machine
    try:
        return _SYSCALLS[machine]
    except KeyError:
        raise NotSet(f"the numbers of system calls of {machine} are not known") from None


def nodes(context: Context, args: dict[str, Any]) -> Outcome:
    """Ask the kernel on which NUMA nodes the pages of a buffer are; values: nodes (ascending), absent (pages without).

    By move_pages, which moves nothing when it is told no nodes: a witness beside USDM's own answer.
    """
    held = context.buffer(args["buffer"])
    offset, size = held.span(args)
    start = held.own(offset, size)
    count = -(-size // _PAGE)
    pages = (ctypes.c_void_p * count)(*(start + index * _PAGE for index in range(count)))
    found = (ctypes.c_int * count)()
    if ctypes.CDLL(None, use_errno=True).syscall(_numbers()[2], 0, ctypes.c_ulong(count), pages, None, found, 0):
        raise NotSet(f"move_pages: {os.strerror(ctypes.get_errno())}")
    return Outcome(values={"nodes": sorted({n for n in found if n >= 0}), "absent": sum(n < 0 for n in found)})


def threads(context: Context, args: dict[str, Any]) -> Outcome:
    """Threads use USDM at once, each with memory of its own.

    Each does, `rounds` times: take a page, map it, translate it, unmap it; allocate, translate both ways, free. Values:
    done (rounds completed by all), wrong (what a thread saw that must not be, the first few).
    """
    import threading

    wrong: list[str] = []
    done: list[int] = []
    broken: list[Exception] = []

    def work() -> None:
        try:
            _hammer(context.api, args["rounds"], done, wrong)
        except Exception as error:
            broken.append(error)

    hammers = [threading.Thread(target=work) for _ in range(args["count"])]
    for one in hammers:
        one.start()
    for one in hammers:
        one.join()
    if broken:
        raise broken[0]
    return Outcome(values={"counts": {"done": sum(done), "wrong": len(wrong)}, "wrong": wrong[:5]})


def _hammer(api: Implementation, rounds: int, done: list[int], wrong: list[str]) -> None:
    from usdm.qae_mem import Pointer

    page = own_memory.take(_PAGE, "anonymous")
    for number in range(rounds):
        iova, error = api.call("qaeMemMapContiguousIova", page, _PAGE)
        if error is not None:
            wrong.append(f"round {number}: map: {error}")
            continue
        if api.call("qaeVirtToPhysNUMA", page)[0] != iova:
            wrong.append(f"round {number}: the mapping at {iova:#x} translates to something else")
        status, error = api.call("qaeMemUnmapContiguousIova", page, _PAGE)
        if status != 0:
            wrong.append(f"round {number}: unmap: {error}")
        address, error = api.call("qaeMemAllocNUMA", 64, -1, 64)
        if address is None:
            wrong.append(f"round {number}: alloc: {error}")
            continue
        there = api.call("qaeVirtToPhysNUMA", address)[0]
        if api.call("qaePhysToVirtNUMA", there)[0] != address:
            wrong.append(f"round {number}: {address:#x} does not translate there and back")
        pointer = Pointer(address)
        api.call("qaeMemFreeNUMA", pointer)
        if pointer.value is not None:
            wrong.append(f"round {number}: {address:#x} could not be freed")
        done.append(1)
    own_memory.give_back(page, _PAGE)


STEPS: dict[str, Step] = {
    "environment": environment,
    "hugepages": hugepages,
    "limit_memory": limit_memory,
    "nodes": nodes,
    "threads": threads,
}
