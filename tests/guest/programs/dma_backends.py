"""Runs in a guest: DMA ranges over type 1 (both versions) and over IOMMUFD, with an edu that really does the DMA.

Prints one JSON object: for each backend what was seen, in the order of `Observed`, and which calls the kernel got.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import sys

sys.path.insert(0, "/run/payload")

from harness.agent import pci
from harness.agent.edu import Edu
from usdm import dma_iova as api
from usdm import vfio_uapi
from usdm.dma_iommufd import IommufdDma
from usdm.driver import Usdm
from usdm.errors import UsdmError
from usdm.iommufd import Iommufd
from usdm.kernel import Kernel
from usdm.vfio import Container

PAGE = 4096
BDF = "02:00.0"
MASK = (1 << 28) - 1  # edu's
NAMES = {0x3B71: "map", 0x3B72: "unmap", 0x3B85: "map", 0x3B86: "unmap"}


class Counting(Kernel):
    """The real kernel; remembers maps and unmaps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        real = self.ioctl

        def ioctl(fd, request, argument):
            if request in NAMES:
                self.seen.append(NAMES[request])
            return real(fd, request, argument)

        self.ioctl = ioctl

    def taken(self) -> list[str]:
        seen, self.seen = self.seen, []
        return seen


class Memory:
    """Anonymous memory of the program."""

    def __init__(self, pages: int) -> None:
        self.map = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


def arrives(edu: Edu, memory: Memory, iova: int, at: int) -> bool:
    """Whether a write of the device to an IOVA arrives at an offset of the memory."""
    memory.map[at : at + 8] = b"nothing."
    edu.dma(iova, 8, 0, write=True)
    return memory.map[at : at + 8] != b"nothing."


def observe(dev, edu: Edu, kernel: Counting) -> dict[str, object]:
    """Take a range through its life."""
    memory, found = Memory(8), {}
    kernel.taken()
    state = api.DmaIovaState()
    start = memory.address + 0x400
    assert api.dma_iova_try_alloc(dev, state, start, 4 * PAGE - 0x400)
    first = PAGE - 0x400
    # the memory of the links is not in the order of the range
    assert api.dma_iova_link(dev, state, start, 0, first, api.DMA_BIDIRECTIONAL) == 0
    assert api.dma_iova_link(dev, state, memory.address + 5 * PAGE, first, PAGE, api.DMA_BIDIRECTIONAL) == 0
    assert api.dma_iova_link(dev, state, memory.address + 3 * PAGE, first + PAGE, 100, api.DMA_TO_DEVICE) == 0
    found["before sync"] = arrives(edu, memory, state.addr, 0x400)
    found["calls before sync"] = kernel.taken()
    assert api.dma_iova_sync(dev, state, 0, first + PAGE + 100) == 0
    found["sync"] = kernel.taken()
    found["first"] = arrives(edu, memory, state.addr, 0x400)
    found["second"] = arrives(edu, memory, state.addr + first, 5 * PAGE)
    found["to device"] = arrives(edu, memory, state.addr + first + PAGE, 3 * PAGE)
    found["hole"] = arrives(edu, memory, state.addr + first + 2 * PAGE, 3 * PAGE + PAGE)
    api.dma_iova_unlink(dev, state, 0, first + PAGE, api.DMA_BIDIRECTIONAL)
    found["unlink"] = kernel.taken()
    found["unlink error"] = str(api.last_error() or "")
    found["after unlink"] = arrives(edu, memory, state.addr, 0x400)
    found["info"] = state.info()
    # another page at an offset that was used
    assert api.dma_iova_link(dev, state, memory.address + 6 * PAGE, first, PAGE, api.DMA_FROM_DEVICE) == 0
    assert api.dma_iova_sync(dev, state, first, PAGE) == 0
    found["again"] = arrives(edu, memory, state.addr + first, 6 * PAGE)
    kernel.taken()
    # What cannot be mapped is not mapped by half: the second of three pages is not there.
    hole = Memory(3)
    other = api.DmaIovaState()
    assert api.dma_iova_try_alloc(dev, other, hole.address, 3 * PAGE)
    ctypes.CDLL(None).munmap(ctypes.c_void_p(hole.address + PAGE), ctypes.c_size_t(PAGE))
    for page in range(3):
        assert api.dma_iova_link(dev, other, hole.address + page * PAGE, page * PAGE, PAGE, api.DMA_BIDIRECTIONAL) == 0
    found["no memory"] = errno.errorcode[-api.dma_iova_sync(dev, other, 0, 3 * PAGE)]
    found["taken back"] = kernel.taken()
    found["other"] = other.info()
    api.dma_iova_destroy(dev, other, 3 * PAGE, api.DMA_BIDIRECTIONAL)
    # Links without a hole of one direction, by one call.
    api.dma_iova_unlink(dev, state, first, PAGE, api.DMA_FROM_DEVICE)
    api.dma_iova_unlink(dev, state, first + PAGE, 100, api.DMA_TO_DEVICE)
    for page, at in enumerate((7, 1, 4)):
        place = memory.address + at * PAGE + (0x400 if page == 0 else 0)
        offset = 0 if page == 0 else page * PAGE - 0x400
        assert (
            api.dma_iova_link(dev, state, place, offset, PAGE - (0x400 if page == 0 else 0), api.DMA_FROM_DEVICE) == 0
        )
    assert api.dma_iova_sync(dev, state, 0, 3 * PAGE - 0x400) == 0
    addr = state.addr
    kernel.taken()
    api.dma_iova_destroy(dev, state, 3 * PAGE - 0x400, api.DMA_FROM_DEVICE)
    found["destroy"] = kernel.taken()
    found["destroy error"] = str(api.last_error() or "")
    found["after destroy"] = arrives(edu, memory, addr, 0x400)
    single = api.dma_map_single(dev, memory.address + 5, 64, api.DMA_FROM_DEVICE)
    found["single"] = arrives(edu, memory, single, 5)
    api.dma_unmap_single(dev, single, 64, api.DMA_FROM_DEVICE)
    found["after single"] = arrives(edu, memory, single, 5)
    kernel.taken()
    return found


def over_vfio(iommu_type: int) -> dict[str, object]:
    kernel = Counting()
    usdm = Usdm(kernel=kernel)
    with Container(iommu_type) as container:
        edu = Edu(container.open_device(BDF))
        try:
            edu.device.set_bus_master(True)
            usdm.register_device(container.fd)
            free = usdm.statistics()["iova_free"]
            found = observe(api.VfioDma(usdm, dma_mask=MASK), edu, kernel)
            found["left"] = free - usdm.statistics()["iova_free"]
            found["mappings"] = 65535 - container.info().dma_avail
            usdm.unregister_device(container.fd)
        finally:
            edu.close()
    return found


def over_iommufd() -> dict[str, object]:
    kernel = Counting()
    with Iommufd(kernel) as iommufd:
        ioas = iommufd.alloc_ioas()
        device = iommufd.open_device(BDF)
        edu = Edu(device)
        try:
            device.attach(ioas)
            edu.device.set_bus_master(True)
            dev = IommufdDma(ioas, dma_mask=MASK)
            found = observe(dev, edu, kernel)
            found["left"] = ioas.dma_domain().granules.held
            found["mappings"] = ioas.dma_domain().mappings
            found["ranges"] = ioas.iova_ranges()
            try:
                ioas.destroy()
            except UsdmError as error:
                found["destroy while attached"] = str(error)
            # The mappings of an IOAS outlive its devices, and end with it.
            state, memory = api.DmaIovaState(), Memory(1)
            assert api.dma_iova_try_alloc(dev, state, memory.address, PAGE)
            assert api.dma_iova_link(dev, state, memory.address, 0, PAGE, api.DMA_BIDIRECTIONAL) == 0
            assert api.dma_iova_sync(dev, state, 0, PAGE) == 0
            device.detach()
            addr = state.addr
            found["detached"] = arrives(edu, memory, addr, 0)
            device.attach(ioas)
            found["attached again"] = arrives(edu, memory, addr, 0)
            device.detach()
            ioas.destroy()
            found["after the ioas"] = [state.info()["in_use"], api.dma_iova_sync(dev, state, 0, PAGE)]
            found["after the ioas says"] = str(api.last_error())
        finally:
            edu.close()
    return found


def main() -> None:
    pci.bind(BDF)
    done = {"type1": over_vfio(vfio_uapi.TYPE1_IOMMU), "type1v2": over_vfio(vfio_uapi.TYPE1V2_IOMMU)}
    if os.path.exists("/dev/iommu"):  # noqa: PTH110
        done["iommufd"] = over_iommufd()
    print(json.dumps(done))


main()
