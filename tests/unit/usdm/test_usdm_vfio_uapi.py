from __future__ import annotations

import struct

import pytest

from usdm import vfio_uapi as uapi


def test_structures_have_the_sizes_that_the_kernel_expects() -> None:
    assert uapi.map_dma(0x7000, 0x200000, 0x1000, 3) == struct.pack("<IIQQQ", 32, 3, 0x7000, 0x200000, 0x1000)
    assert uapi.unmap_dma(0x200000, 0x1000) == struct.pack("<IIQQ", 24, 0, 0x200000, 0x1000)
    assert uapi.group_status_request() == struct.pack("<II", 8, 0)
    assert uapi.device_info_request() == struct.pack("<IIIII", 20, 0, 0, 0, 0)
    assert uapi.region_info_request(7) == struct.pack("<IIIIQQ", 32, 0, 7, 0, 0, 0)
    assert uapi.irq_info_request(1) == struct.pack("<IIII", 16, 0, 1, 0)
    assert uapi.irq_set(1, [5, 6]) == struct.pack("<IIIIIii", 28, 36, 1, 0, 2, 5, 6)
    assert uapi.irq_set(1, []) == struct.pack("<IIIII", 20, 33, 1, 0, 0)


def test_ioctl_numbers() -> None:
    numbers = [uapi.GET_API_VERSION, uapi.CHECK_EXTENSION, uapi.SET_IOMMU, uapi.GROUP_GET_STATUS]
    numbers += [uapi.GROUP_SET_CONTAINER, uapi.GROUP_UNSET_CONTAINER, uapi.GROUP_GET_DEVICE_FD, uapi.DEVICE_GET_INFO]
    numbers += [uapi.DEVICE_GET_REGION_INFO, uapi.DEVICE_GET_IRQ_INFO, uapi.DEVICE_SET_IRQS, uapi.DEVICE_RESET]
    numbers += [uapi.IOMMU_GET_INFO, uapi.IOMMU_MAP_DMA, uapi.IOMMU_UNMAP_DMA]
    assert numbers == [(ord(";") << 8) + 100 + n for n in range(15)]
    assert (ord(";") << 8) + 100 + 17 == uapi.DEVICE_FEATURE


def answer(*caps: bytes, flags: int = 3, offset: int = 24) -> bytearray:
    body = struct.pack("=IIQII", 4096, flags, 0x40201000, offset, 0) + b"".join(caps)
    return bytearray(body.ljust(4096, b"\0"))


def test_capabilities_are_read_in_any_order() -> None:
    migration = struct.pack("=HHIIIQQ", 2, 1, 24 + 32, 0, 0, 4096, 1 << 20)
    avail = struct.pack("=HHII", 3, 1, 24 + 48, 65535) + bytes(4)
    ranges = struct.pack("=HHIIIQQQQ", 1, 1, 0, 2, 0, 0xFEF00000, 2**39 - 1, 0, 0xFEDFFFFF)
    info = uapi.iommu_info(answer(migration, avail, ranges))
    assert info.iova_ranges == ((0, 0xFEDFFFFF), (0xFEF00000, 2**39 - 1))
    assert info.dma_avail == 65535
    assert info.page_sizes == 0x40201000


def test_no_capabilities() -> None:
    info = uapi.iommu_info(answer(flags=1, offset=0))
    assert (info.iova_ranges, info.dma_avail) == (None, None)
    assert uapi.iommu_info(answer(flags=0, offset=24)).page_sizes == 0


@pytest.mark.parametrize("link", [24, 1, 0xFFFFFFFF, 4095])
def test_a_broken_chain_ends(link: int) -> None:
    info = uapi.iommu_info(answer(struct.pack("=HHII", 3, 1, link, 7)))
    assert info.dma_avail == 7
