from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from usdm_fake_vfio import descriptors

from usdm import errors, vfio
from usdm import vfio_uapi as uapi


class World:
    """Folders like /dev/vfio and /sys/bus/pci/devices, and an ioctl function that behaves like VFIO."""

    def __init__(self, root: Path) -> None:
        self.dev, self.sysfs = root / "dev", root / "sysfs"
        self.dev.mkdir()
        self.sysfs.mkdir()
        (self.dev / "vfio").write_bytes(b"")
        self.viable = True
        self.api = 0
        self.log: list[tuple[int, object]] = []
        self.refuse: dict[int, int] = {}
        self.region_flags = 7
        self.file = root / "device"
        self.file.write_bytes(bytes(8192))

    def device(self, bdf: str, group: int | None, node: str | None = None) -> None:
        folder = self.sysfs / bdf
        folder.mkdir()
        if group is not None:
            (folder / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")
            (self.dev / (node or str(group))).write_bytes(b"")

    def ioctl(self, fd: int, request: int, argument: bytearray | int) -> int:
        self.log.append((request, bytes(argument) if isinstance(argument, bytearray) else argument))
        if request in self.refuse:
            raise OSError(self.refuse[request], "refused")
        if request == uapi.GET_API_VERSION:
            return self.api
        if request == uapi.GROUP_GET_DEVICE_FD:
            return os.open(self.file, os.O_RDWR)
        answers = {
            uapi.GROUP_GET_STATUS: struct.pack("=II", 8, int(self.viable)),
            uapi.DEVICE_GET_INFO: struct.pack("=IIIII", 20, 0, 9, 5, 0),
            uapi.DEVICE_GET_REGION_INFO: struct.pack("=IIIIQQ", 32, self.region_flags, 0, 0, 4096, 4096),
            uapi.DEVICE_GET_IRQ_INFO: struct.pack("=IIII", 16, 0, 1, 4),
            uapi.IOMMU_GET_INFO: struct.pack("=IIQII", 24, 1, 4096, 0, 0),
        }
        if request in answers and isinstance(argument, bytearray):
            argument[: len(answers[request])] = answers[request]
        return 0

    def container(self, kind: int = uapi.TYPE1_IOMMU) -> vfio.Container:
        return vfio.Container(kind, ioctl=self.ioctl, dev=str(self.dev), sysfs=str(self.sysfs))

    def requests(self) -> list[int]:
        return [request for request, _ in self.log]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_two_devices_of_one_group_and_one_of_another(world: World) -> None:
    world.device("0000:02:01.0", 7)
    world.device("0000:02:01.2", 7)
    world.device("0000:03:00.0", 8)
    before = descriptors()
    with world.container(uapi.TYPE1V2_IOMMU) as container:
        first = container.open_device("02:01.0")
        container.open_device("0000:02:01.2")
        container.open_device("03:00.0")
        assert world.requests() == [
            uapi.GET_API_VERSION,
            uapi.GROUP_GET_STATUS,
            uapi.GROUP_SET_CONTAINER,
            uapi.SET_IOMMU,
            uapi.GROUP_GET_DEVICE_FD,
            uapi.GROUP_GET_DEVICE_FD,
            uapi.GROUP_GET_STATUS,
            uapi.GROUP_SET_CONTAINER,
            uapi.GROUP_GET_DEVICE_FD,
        ]
        assert (uapi.SET_IOMMU, 3) in world.log
        assert (uapi.GROUP_GET_DEVICE_FD, b"0000:02:01.0\0") in world.log
        assert (uapi.GROUP_SET_CONTAINER, struct.pack("=i", container.fd)) in world.log
        assert container.info().page_sizes == 4096
        assert first.counts() == (9, 5)
        assert len(descriptors()) == len(before) + 6
    assert descriptors() == before


def test_close_order_is_devices_groups_container(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.device("0000:02:01.0", 7)
    container = world.container()
    device = container.open_device("02:01.0")
    expected = [device.fd, container.groups[7].fd, container.fd]
    closed: list[int] = []
    real = os.close
    monkeypatch.setattr(os, "close", lambda fd: closed.append(fd) or real(fd))
    container.close()
    container.close()
    assert closed == expected


def test_no_such_device(world: World) -> None:
    with world.container() as container, pytest.raises(errors.DeviceNotFound, match="02:01"):
        container.open_device("02:01.0")


def test_no_iommu_group(world: World) -> None:
    world.device("0000:02:01.0", None)
    with world.container() as container, pytest.raises(errors.NoIommuGroup, match="02:01"):
        container.open_device("02:01.0")


def test_not_bound(world: World) -> None:
    world.device("0000:02:01.0", 7)
    (world.dev / "7").unlink()
    with world.container() as container, pytest.raises(errors.DeviceNotBound, match="02:01"):
        container.open_device("02:01.0")


def test_not_viable(world: World) -> None:
    world.device("0000:02:01.0", 7)
    world.viable = False
    with world.container() as container:
        before = descriptors()
        with pytest.raises(errors.GroupNotViable, match="group 7"):
            container.open_device("02:01.0")
        assert descriptors() == before


def test_a_no_iommu_group(world: World) -> None:
    world.device("0000:02:01.0", 7, "noiommu-7")
    with world.container() as container:
        container.open_device("02:01.0")
        assert container.groups[7].no_iommu
        assert container.no_iommu
    assert (uapi.SET_IOMMU, 8) in world.log


@pytest.mark.parametrize(
    "request_number",
    [uapi.GROUP_GET_STATUS, uapi.GROUP_SET_CONTAINER, uapi.SET_IOMMU, uapi.GROUP_GET_DEVICE_FD],
)
def test_a_refusal_leaves_nothing_open(world: World, request_number: int) -> None:
    world.device("0000:02:01.0", 7)
    world.refuse[request_number] = errno.EPERM
    before = descriptors()
    with world.container() as container:
        with pytest.raises(errors.DeviceError, match="interrupt remapping") as caught:
            container.open_device("02:01.0")
        assert caught.value.errno == errno.EPERM
    assert descriptors() == before


def test_container_refusals(world: World) -> None:
    before = descriptors()
    world.api = 1
    with pytest.raises(errors.Unsupported):
        world.container()
    world.refuse[uapi.GET_API_VERSION] = errno.ENOTTY
    with pytest.raises(errors.DeviceError):
        world.container()
    (world.dev / "vfio").unlink()
    with pytest.raises(errors.DeviceError, match="vfio"):
        world.container()
    assert descriptors() == before


def test_info_refused(world: World) -> None:
    with world.container() as container:
        world.refuse[uapi.IOMMU_GET_INFO] = errno.EINVAL
        with pytest.raises(errors.DeviceError):
            container.info()


def test_regions(world: World) -> None:
    world.device("0000:02:01.0", 7)
    with world.container() as container, container.open_device("02:01.0") as device:
        device.write(0, 16, b"abcd")
        assert device.read(0, 14, 8) == b"\0\0abcd\0\0"
        assert world.file.read_bytes()[4096 + 16 : 4096 + 20] == b"abcd"
        for offset, size in ((4093, 4), (-1, 1), (4096, 1)):
            with pytest.raises(errors.DeviceError, match="region 0 has 0x1000 bytes"):
                device.read(0, offset, size)
            with pytest.raises(errors.DeviceError):
                device.write(0, offset, bytes(size))
        area = device.map_region(0)
        assert area[16:20] == b"abcd"
        area.close()


def test_a_region_that_cannot_be_mapped(world: World) -> None:
    world.device("0000:02:01.0", 7)
    world.region_flags = 3
    with world.container() as container, pytest.raises(errors.DeviceError, match="cannot be mapped"):
        container.open_device("02:01.0").map_region(0)


def test_a_device_that_answers_short(world: World) -> None:
    world.device("0000:02:01.0", 7)
    with world.container() as container:
        device = container.open_device("02:01.0")
        os.truncate(world.file, 4097)
        with pytest.raises(errors.DeviceError, match="gave 1 of 4 bytes"):
            device.read(0, 0, 4)


def test_bus_master(world: World) -> None:
    world.device("0000:02:01.0", 7)
    with world.container() as container:
        device = container.open_device("02:01.0")
        device.write(7, 4, struct.pack("<H", 0x400))
        device.set_bus_master(True)
        assert device.read(7, 4, 2) == struct.pack("<H", 0x406)
        device.set_bus_master(False)
        assert device.read(7, 4, 2) == struct.pack("<H", 0x402)


def test_interrupts_and_reset(world: World) -> None:
    world.device("0000:02:01.0", 7)
    with world.container() as container:
        device = container.open_device("02:01.0")
        assert device.irq_count(uapi.PCI_MSI_IRQ) == 4
        device.set_irqs(uapi.PCI_MSI_IRQ, [9])
        device.set_irqs(uapi.PCI_MSI_IRQ)
        assert world.log[-2:] == [
            (uapi.DEVICE_SET_IRQS, struct.pack("=IIIIIi", 24, 36, 1, 0, 1, 9)),
            (uapi.DEVICE_SET_IRQS, struct.pack("=IIIII", 20, 33, 1, 0, 0)),
        ]
        device.reset()
        world.refuse[uapi.DEVICE_RESET] = errno.ENOTTY
        with pytest.raises(errors.DeviceError, match="DEVICE_RESET"):
            device.reset()


def test_a_vf_is_opened_with_the_token_of_its_pf(world: World) -> None:
    token = bytes.fromhex("00112233445566778899aabbccddeeff")
    world.device("0000:02:00.0", 7)
    world.device("0000:02:01.2", 8)
    with world.container() as container:
        pf = container.open_device("02:00.0")
        assert not container.no_iommu
        pf.set_vf_token(token)
        assert world.log[-1] == (uapi.DEVICE_FEATURE, struct.pack("=II", 24, 0x20000) + token)
        container.open_device("02:01.2", token)
        name = b"0000:02:01.2 vf_token=00112233-4455-6677-8899-aabbccddeeff\0"
        assert world.log[-1] == (uapi.GROUP_GET_DEVICE_FD, name)
        world.refuse[uapi.DEVICE_FEATURE] = errno.ENOTTY
        with pytest.raises(errors.DeviceError, match="DEVICE_FEATURE"):
            pf.set_vf_token(token)


def test_a_device_that_goes_away_takes_its_group_with_it(world: World) -> None:
    for bdf, group in (("0000:02:01.0", 7), ("0000:02:01.1", 7), ("0000:03:00.0", 8)):
        world.device(bdf, group)
    before = descriptors()
    with world.container() as container:
        first, second = container.open_device("02:01.0"), container.open_device("02:01.1")
        other = container.open_device("03:00.0")
        container.leave(first)
        assert (first.fd, set(container.groups)) == (-1, {7, 8}), "another device of the group is open"
        container.leave(second)
        assert set(container.groups) == {8}
        assert other.fd >= 0
        world.log.clear()
        container.open_device("02:01.0")
        assert uapi.GROUP_SET_CONTAINER in world.requests()
        assert uapi.SET_IOMMU not in world.requests(), "there still was a group"
        for device in (other, container.groups[7].devices[0]):
            container.leave(device)
        world.log.clear()
        container.open_device("03:00.0")
        assert uapi.SET_IOMMU in world.requests(), "with its last group a container loses its IOMMU"
    assert descriptors() == before


def test_mapping_beside_usdm(world: World) -> None:
    with world.container() as container:
        container.map_dma(0x7000, 0x100000, 4096, write=False)
        assert world.log[-1] == (uapi.IOMMU_MAP_DMA, struct.pack("=IIQQQ", 32, 1, 0x7000, 0x100000, 4096))
        container.map_dma(0x7000, 0x100000, 4096, read=False)
        assert world.log[-1] == (uapi.IOMMU_MAP_DMA, struct.pack("=IIQQQ", 32, 2, 0x7000, 0x100000, 4096))
        assert container.unmap_dma(0x100000, 4096) == 4096
        world.refuse = {uapi.IOMMU_MAP_DMA: errno.EEXIST, uapi.IOMMU_UNMAP_DMA: errno.EINVAL}
        with pytest.raises(errors.MapFailed):
            container.map_dma(0x7000, 0x100000, 4096)
        with pytest.raises(errors.UnmapFailed):
            container.unmap_dma(0x100000, 4096)
