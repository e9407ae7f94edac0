"""A USDM on faulty system calls, and what must be balanced after each of its calls."""

from __future__ import annotations

import ctypes
import mmap

from usdm_fake_vfio import FakeContainer, descriptors
from usdm_faulty_kernel import FaultyKernel

from usdm.driver import Usdm

PAGE, KIB, MIB = 4096, 1024, 1 << 20


class Rig:
    """A process on faulty system calls, and what it holds."""

    def __init__(self, kernel: FaultyKernel, hugepages: int = 0, thread_specific: bool = False) -> None:
        self.kernel = kernel
        self.vfio = kernel.vfio
        self.usdm = Usdm(kernel=kernel, hugepages=hugepages, thread_specific=thread_specific)
        self.fd = self.vfio.open(FakeContainer())
        area = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.area = area
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        self.virt = -(-start // (2 * MIB)) * (2 * MIB)

    def held(self) -> tuple[object, ...]:
        """What must be balanced: memory, mappings of the container, IOVA space, descriptors."""
        stats = self.usdm.statistics()
        container = self.vfio.of(self.fd)
        return (
            sorted(self.kernel.memory.items()),
            sorted(container.entries.items()),
            stats["iova_free"],
            stats["hugepages_used"],
            stats["registrations"],
            [(one["virt"], one["iova"], one["kind"], one["blocks"]) for one in self.usdm.maps()],
            descriptors(),
        )

    def consistent(self) -> None:
        """What USDM says it holds is what the container and the process have."""
        regions = self.usdm.maps()
        container = self.vfio.of(self.fd)
        mapped = {int(one["iova"]): (int(one["virt"]), int(one["size"])) for one in regions if one["mapped"]}
        assert container.entries == mapped
        owned = {int(one["virt"]): int(one["size"]) for one in regions if one["kind"] != "user"}
        left = sum(self.kernel.memory.values()) - sum(owned.values())
        assert left == self.usdm.statistics()["pages_left"]
        for virt, size in owned.items():
            assert any(start <= virt and virt + size <= start + held for start, held in self.kernel.memory.items())
        # whole units of 2 MiB, of all that this container translates but unit 0 and that of the interrupts
        taken = sum(-(-int(one["size"]) // (2 * MIB)) for one in regions) * 2 * MIB
        free = int(self.usdm.statistics()["iova_free"])
        assert free + taken == ((1 << 48) if free > 1 << 39 else 1 << 39) - 4 * MIB

    def end(self) -> None:
        """Nothing remains after `close`."""
        self.kernel.heal()
        self.usdm.close()
        for _ in range(2):  # what was refused is tried again
            self.usdm.free(self.usdm.allocate(3 * MIB))
        self.usdm.close()
        assert self.kernel.memory == {}
        assert self.kernel.taken == 0
        assert self.vfio.of(self.fd).entries == {}
        self.area.close()
