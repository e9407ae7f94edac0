"""System calls that can be made to fail, and that count what the process holds of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from usdm_fake_frames import FakeFrames
from usdm_fake_vfio import FakeVfio

from usdm.kernel import MAP_HUGE_2MB, MAP_HUGETLB, Kernel

# What answers instead of sysfs and of the NUMA calls, which need a machine of that kind.
HUGE = "/sys/kernel/mm/hugepages/hugepages-2048kB"
NODES = "/sys/devices/system/node/has_memory"


class FaultyKernel(Kernel):
    """The real calls for memory and descriptors, the fake ones for containers, hugepages and NUMA.

    `fail(name, errno, n)` has the n-th call of that name from now fail: close after its effect, as Linux does.
    """

    def __init__(self, vfio: FakeVfio, hugepages: int = 0, nodes: str = "0") -> None:
        super().__init__(vfio.ioctl)
        self.vfio = vfio
        self.hugepages = hugepages
        self.nodes = nodes
        self.taken = 0  # hugepages
        self.calls: list[str] = []
        self.memory: dict[int, int] = {}  # address -> size
        self.huge: set[int] = set()
        self.preferred: dict[int, int] = {}  # address -> node
        self.frames = FakeFrames()
        self.iommus = ["dmar0"]
        self.huge_frames: list[int] = []  # first frames of the next hugepages, when they are not to be in any order
        self.elsewhere = 0  # pages of the next range that come from another node
        self._faults: list[tuple[str, int, int]] = []
        self.ioctl = self._wrapped("ioctl", vfio.ioctl)

    def fail(self, name: str, number: int, n: int = 0) -> None:
        self._faults.append((name, number, n))

    def fault_is_due(self) -> bool:
        return bool(self._faults)

    def heal(self) -> None:
        self._faults.clear()

    def _step(self, name: str) -> None:
        self.calls.append(name)
        for index, (wanted, number, n) in enumerate(self._faults):
            if wanted == name or wanted == "any":
                if n == 0:
                    del self._faults[index]
                    raise OSError(number, f"injected into {name}")
                self._faults[index] = (wanted, number, n - 1)
                return

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            self._step(name)
            return call(*args)

        return wrapper

    # ---- memory: kept as pages, since a piece of a range can be given back

    def mmap(self, size: int, flags: int = 0) -> int:
        self._step("mmap")
        if flags & MAP_HUGETLB:
            assert flags == MAP_HUGETLB | MAP_HUGE_2MB
            if size // (2 << 20) > self.hugepages - self.taken:
                raise OSError(12, "no hugepage")
            self.taken += size // (2 << 20)
            whole = super().mmap(size + (2 << 20))
            address = -(-whole // (2 << 20)) * (2 << 20)
            for start, end in ((whole, address), (address + size, whole + size + (2 << 20))):
                if start < end:
                    super().munmap(start, end - start)
            self.huge.update(range(address, address + size, 2 << 20))
            for page in range(address, address + size, 2 << 20):
                if self.huge_frames:
                    first = self.huge_frames.pop(0)
                    self.frames.give(page, list(range(first, first + 512)))
                else:
                    self.frames.fresh(page, 2 << 20, 2 << 20)
        else:
            address = super().mmap(size)
        self.memory[address] = size
        return address

    def munmap(self, address: int, size: int) -> None:
        self._step("munmap")
        super().munmap(address, size)
        for start, length in list(self.memory.items()):
            if start <= address and address + size <= start + length:
                del self.memory[start]
                if start < address:
                    self.memory[start] = address - start
                if address + size < start + length:
                    self.memory[address + size] = start + length - address - size
                break
        else:
            raise AssertionError("munmap of what was not mapped")
        self.frames.take(address, size)
        for page in range(address, address + size, 2 << 20):
            if page in self.huge:
                self.huge.remove(page)
                self.taken -= 1

    def madvise(self, address: int, size: int, advice: int) -> None:
        self._step("madvise")
        super().madvise(address, size, advice)

    def is_accessible(self, address: int, size: int) -> bool:
        self._step("mincore")
        return super().is_accessible(address, size)

    def move_pages_of(self, address: int, size: int, target: int) -> None:
        self._step("mremap")
        assert address in self.huge
        assert size == 2 << 20
        super().move_pages_of(address, size, target)
        self.frames.move(address, size, target)
        self.huge.remove(address)
        self.huge.add(target)
        for start, length in list(self.memory.items()):
            if start <= address < start + length:
                del self.memory[start]
                for a, b in ((start, address), (address + size, start + length)):
                    if a < b:
                        self.memory[a] = b - a

    def read_pagemap(self, address: int, count: int) -> bytes:
        self._step("pagemap")
        return self.frames.pagemap(address, count)

    def read_maps(self) -> bytes:
        self._step("maps")
        return self.frames.maps()

    # ---- NUMA

    def prefer_node(self, address: int, size: int, node: int) -> None:
        self._step("mbind")
        self.preferred[address] = node

    def nodes_of(self, address: int, size: int, step: int) -> list[int]:
        self._step("move_pages")
        count = size // step
        wrong, self.elsewhere = min(count, self.elsewhere), 0
        return [self.preferred[address] + 1] * wrong + [self.preferred[address]] * (count - wrong)

    # ---- descriptors and files

    def duplicate(self, fd: int) -> int:
        self._step("duplicate")
        return super().duplicate(fd)

    def close(self, fd: int) -> None:
        os.close(fd)
        self._step("close")

    def same_file(self, first: int, second: int) -> bool | None:
        try:
            self._step("same_file")
        except OSError:
            return None
        return super().same_file(first, second)

    def names_in(self, folder: str) -> list[str]:
        self._step("names")
        assert folder == "/sys/class/iommu"
        return self.iommus

    def read_text(self, path: str) -> str:
        self._step("read_text")
        if path == NODES:
            return self.nodes
        if not self.hugepages and path.startswith(HUGE):
            raise FileNotFoundError(2, "No such file or directory", path)
        return str({"nr": self.hugepages, "free": self.hugepages - self.taken}[path.rpartition("/")[2].split("_")[0]])
