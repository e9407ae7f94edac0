"""Runs in a guest: each system call of USDM fails once at every place, on the real kernel and a real VFIO container.

Prints one JSON object: `injected` (how often a call was made to fail, by operation) and `problems` (what was wrong).
What is there is told by witnesses outside USDM: the container's count of mappings, this process's memory and files.
"""

from __future__ import annotations

import errno
import json
import os
import sys

sys.path.insert(0, "/run/payload")

from harness.agent import own_memory, pci
from usdm import errors
from usdm.driver import Usdm
from usdm.kernel import Kernel
from usdm.vfio import Container

MIB = 1 << 20
CALLS = ("mmap", "munmap", "madvise", "prefer_node", "node_of", "nodes_of", "duplicate", "close", "read_text")


class Faulty(Kernel):
    """The real kernel, of which one call to come fails."""

    def __init__(self) -> None:
        super().__init__()
        self.countdown = 0
        self.failed = ""
        for name in ("ioctl", *CALLS):
            setattr(self, name, self._wrap(name, getattr(self, name)))

    def _wrap(self, name, real):
        def call(*arguments, **named):
            self.countdown -= 1
            if self.countdown != 0:
                return real(*arguments, **named)
            self.failed = name
            if name == "close":
                real(*arguments, **named)  # a descriptor is closed by a close that fails, too
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        return call


def witnesses(container: Container) -> dict[str, object]:
    """What is there, by the kernel's word."""
    with open("/proc/self/maps", encoding="ascii") as file:
        spans = [line.split()[0].split("-") for line in file if line.split()[-1] == "0"]
    memory = sum(int(end, 16) - int(start, 16) for start, end in spans)
    return {
        "mappings": container.info().dma_avail,
        "memory": memory,
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }


def same(before: dict[str, object], after: dict[str, object]) -> bool:
    """Whether nothing was left. Python's own heap grows by 1 MiB at a time; USDM takes 2 MiB and more."""
    grown = after["memory"] - before["memory"]
    return abs(grown) < 2 * MIB and {**before, "memory": 0} == {**after, "memory": 0}


class Operation:
    """Something that USDM does: `before` sets the stage, `act` is made to fail, `undo` takes it back."""

    def __init__(self, name, before, act, undo, *, ends=()) -> None:
        self.name, self.before, self.act, self.undo = name, before, act, undo
        self.ends = ends  # calls after whose failure the operation has happened all the same


def operations(container: Container, buffer: int) -> list[Operation]:
    fd = container.fd

    def registered(usdm):
        usdm.register_device(fd)

    def with_memory(usdm):
        usdm.held = [usdm.allocate(4096), usdm.allocate(3 * MIB), usdm.allocate(1500 * 1024)]

    def both(usdm):
        with_memory(usdm)
        registered(usdm)

    def mapped(usdm):
        registered(usdm)
        usdm.map(buffer, 4 * MIB)

    def large(usdm):
        registered(usdm)
        usdm.large = usdm.allocate(4 * MIB)

    return [
        Operation("allocate small", registered, lambda u: u.allocate(100), lambda u, found: u.free(found)),
        Operation("allocate on a node", registered, lambda u: u.allocate(100, 0), lambda u, found: u.free(found)),
        Operation("allocate large", registered, lambda u: u.allocate(4 * MIB), lambda u, found: u.free(found)),
        Operation("allocate unregistered", lambda u: None, lambda u: u.allocate(100), lambda u, found: u.free(found)),
        Operation("map", registered, lambda u: u.map(buffer, 4 * MIB), lambda u, found: u.unmap(buffer, 4 * MIB)),
        Operation("unmap", mapped, lambda u: u.unmap(buffer, 4 * MIB), lambda u, found: u.map(buffer, 4 * MIB)),
        Operation("register", with_memory, lambda u: u.register_device(fd), lambda u, found: u.unregister_device(fd)),
        Operation(
            *("unregister", both, lambda u: u.unregister_device(fd), lambda u, found: u.register_device(fd)),
            ends=("ioctl", "close"),
        ),
        Operation("free large", large, lambda u: u.free(u.large), lambda u, found: None, ends=("munmap",)),
    ]


def attempt(container: Container, operation: Operation, number: int, problems: list[str]) -> bool:
    """Let the `number`-th call of an operation fail; False when it makes fewer calls."""
    kernel = Faulty()
    usdm = Usdm(kernel=kernel)
    operation.before(usdm)
    before = witnesses(container)
    kernel.countdown = number
    where = f"{operation.name}, call {number}"
    happened, found = True, None
    try:
        found = operation.act(usdm)
    except errors.UsdmError as error:
        happened = False
        where += f" ({kernel.failed}: {type(error).__name__})"
    except BaseException as error:
        problems.append(f"{where} ({kernel.failed}): {type(error).__name__}: {error}")
        return bool(kernel.failed)
    kernel.countdown = 0
    if not kernel.failed:
        usdm.close()
        return False
    if not happened and kernel.failed not in operation.ends:
        after = witnesses(container)
        if not same(before, after):
            problems.append(f"{where}: left behind: {before} became {after}")
        found = operation.act(usdm)  # the next call works
    if kernel.failed not in operation.ends:
        operation.undo(usdm, found)
    elif kernel.failed == "ioctl":
        # The failure was ours, so what USDM had to give up is still there: one mapping, and no more.
        left = witnesses(container)["mappings"] - before["mappings"]
        if left != len(usdm.maps()) - 1 or usdm.registered:
            problems.append(f"{where}: {left} of {len(usdm.maps())} mappings ended, registered: {usdm.registered}")
        container.unmap_dma(2 * MIB, 1 << 40)
    usdm.close()
    return True


def once(operation: Operation) -> None:
    """Do it without a failure."""
    usdm = Usdm()
    operation.before(usdm)
    operation.act(usdm)
    usdm.close()


def main() -> None:
    address = "02:00.0"
    pci.bind(address)
    buffer = own_memory.take(4 * MIB, "anonymous")
    problems: list[str] = []
    injected: dict[str, int] = {}
    with Container() as container:
        container.open_device(address)
        for operation in operations(container, buffer):
            once(operation)
            start = witnesses(container)
            once(operation)
            if not same(start, witnesses(container)):
                problems.append(f"{operation.name} leaks without a failure: {start}, {witnesses(container)}")
            number = 1
            while attempt(container, operation, number, problems):
                number += 1
            injected[operation.name] = number - 1
            end = witnesses(container)
            if not same(start, end):
                problems.append(f"{operation.name}: at the end {end}, at the beginning {start}")
    print(json.dumps({"injected": injected, "problems": problems}))


main()
