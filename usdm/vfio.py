"""VFIO containers, groups and PCI devices, as a user space driver opens them.

    with Container() as container:
        device = container.open_device("02:00.0")
        device.set_bus_master(True)
        usdm.register_device(container.fd)

A container closes what was opened through it, in the right order: devices, groups, container.
"""

from __future__ import annotations

import errno
import mmap
import os

from usdm import container as container_calls
from usdm import errors
from usdm import vfio_uapi as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from usdm.kernel import Ioctl

SYSFS_DEVICES = "/sys/bus/pci/devices"
DEV_VFIO = "/dev/vfio"

_COMMAND = 4
_COMMAND_MEMORY = 2
_COMMAND_BUS_MASTER = 4


def full_bdf(bdf: str) -> str:
    """Return a PCI address with its domain: `02:01.2` is `0000:02:01.2`."""
    return bdf if bdf.count(":") > 1 else f"0000:{bdf}"


def iommu_group(bdf: str, sysfs: str = SYSFS_DEVICES) -> int:
    """Return the number of the IOMMU group of a PCI device.

    Raises:
        DeviceNotFound: There is no such device.
        NoIommuGroup: It is in no group: the machine has no IOMMU, or the kernel does not use it.
    """
    folder = f"{sysfs}/{full_bdf(bdf)}"
    try:
        return int(os.readlink(f"{folder}/iommu_group").rpartition("/")[2])  # noqa: PTH115
    except OSError as error:
        if os.path.isdir(folder):  # noqa: PTH112 - pathlib costs the guest 10 ms
            raise errors.NoIommuGroup("device", bdf) from error
        raise errors.DeviceNotFound("device", bdf) from error


def _open(path: str, argument: str, value: object) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise errors.DeviceError(argument, value, error.errno or 0, path) from error


class Device:
    """An open VFIO PCI device. `fd` is its descriptor, `bdf` its address."""

    def __init__(self, fd: int, bdf: str, ioctl: Ioctl) -> None:
        self.fd = fd
        self.bdf = bdf
        self._ioctl = ioctl
        self._regions: dict[int, uapi.RegionInfo] = {}

    def _call(self, request: int, argument: bytearray | int, name: str) -> None:
        try:
            self._ioctl(self.fd, request, argument)
        except OSError as error:
            raise errors.DeviceError("device", self.bdf, error.errno or 0, name) from error

    def _ask(self, request: int, argument: bytearray, name: str) -> bytearray:
        self._call(request, argument, name)
        return argument

    def counts(self) -> tuple[int, int]:
        """Return the numbers of regions and of interrupt indexes; raises `DeviceError`."""
        return uapi.device_counts(self._ask(uapi.DEVICE_GET_INFO, uapi.device_info_request(), "DEVICE_GET_INFO"))

    def region(self, index: int) -> uapi.RegionInfo:
        """Return flags, size and offset of a region (0-5: BARs, 7: configuration space); raises `DeviceError`."""
        if index not in self._regions:
            request = uapi.region_info_request(index)
            self._regions[index] = uapi.region_info(
                self._ask(uapi.DEVICE_GET_REGION_INFO, request, "DEVICE_GET_REGION_INFO")
            )
        return self._regions[index]

    def _place(self, index: int, offset: int, size: int) -> int:
        region = self.region(index)
        if offset < 0 or offset + size > region.size:
            detail = f"region {index} has {region.size:#x} bytes, asked for {size} at {offset:#x}"
            raise errors.DeviceError("offset", offset, errno.EINVAL, detail)
        return region.offset + offset

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read `size` bytes of a region at `offset`; raises `DeviceError`."""
        place = self._place(index, offset, size)
        try:
            data = os.pread(self.fd, size, place)
        except OSError as error:
            raise errors.DeviceError("offset", offset, error.errno or 0, f"read of region {index}") from error
        if len(data) != size:
            raise errors.DeviceError("offset", offset, errno.EIO, f"region {index} gave {len(data)} of {size} bytes")
        return data

    def write(self, index: int, offset: int, data: bytes) -> None:
        """Write `data` to a region at `offset`; raises `DeviceError`."""
        place = self._place(index, offset, len(data))
        try:
            written = os.pwrite(self.fd, data, place)
        except OSError as error:
            raise errors.DeviceError("offset", offset, error.errno or 0, f"write of region {index}") from error
        if written != len(data):
            raise errors.DeviceError("offset", offset, errno.EIO, f"region {index} took {written} bytes")

    def map_region(self, index: int) -> mmap.mmap:
        """Return a region as memory, for accesses of 8 bytes that must not be split; raises `DeviceError`."""
        region = self.region(index)
        if not region.flags & uapi.REGION_FLAG_MMAP:
            raise errors.DeviceError("index", index, errno.ENODEV, "the region cannot be mapped")
        try:
            return mmap.mmap(self.fd, region.size, offset=region.offset)
        except OSError as error:
            raise errors.DeviceError("index", index, error.errno or 0, "mmap of the region") from error

    def set_bus_master(self, enabled: bool) -> None:
        """Let the device access memory, or not. Its own registers answer in both cases."""
        command = int.from_bytes(self.read(uapi.PCI_CONFIG_REGION, _COMMAND, 2), "little") | _COMMAND_MEMORY
        command = command | _COMMAND_BUS_MASTER if enabled else command & ~_COMMAND_BUS_MASTER
        self.write(uapi.PCI_CONFIG_REGION, _COMMAND, command.to_bytes(2, "little"))

    def irq_count(self, index: int) -> int:
        """Return the number of vectors of an interrupt index (0 INTx, 1 MSI, 2 MSI-X); raises `DeviceError`."""
        return uapi.irq_count(self._ask(uapi.DEVICE_GET_IRQ_INFO, uapi.irq_info_request(index), "DEVICE_GET_IRQ_INFO"))

    def set_irqs(self, index: int, eventfds: Sequence[int] = ()) -> None:
        """Signal `eventfds[n]` on vector n; none of them turns the interrupt off. Raises `DeviceError`."""
        self._call(uapi.DEVICE_SET_IRQS, uapi.irq_set(index, eventfds), "DEVICE_SET_IRQS")

    def set_vf_token(self, token: bytes) -> None:
        """Set the 16 bytes that whoever opens a VF of this PF must know; raises `DeviceError`."""
        self._call(uapi.DEVICE_FEATURE, uapi.vf_token_set(token), "DEVICE_FEATURE")

    def reset(self) -> None:
        """Reset the function; raises `DeviceError` (ENOTTY: it has no reset)."""
        self._call(uapi.DEVICE_RESET, 0, "DEVICE_RESET")

    def close(self) -> None:
        """Close the device; the kernel stops its DMA."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Group:
    """An open VFIO group. `fd` is its descriptor, `number` that of the IOMMU group, `no_iommu` whether it has none."""

    def __init__(self, number: int, device: str, ioctl: Ioctl | None = None, dev: str = DEV_VFIO) -> None:
        """Open the group `number` on behalf of `device`.

        Raises:
            DeviceNotBound: The group has no node: its device is not bound to vfio-pci.
            GroupNotViable: A device of the group is bound to a driver of the host.
            DeviceError: The node cannot be opened (EBUSY, EACCES …).
        """
        self.number = number
        self._ioctl: Ioctl = ioctl or container_calls.kernel_ioctl
        self.devices: list[Device] = []
        path = f"{dev}/{number}"
        self.no_iommu = not os.path.exists(path)  # noqa: PTH110
        if self.no_iommu:
            path = f"{dev}/noiommu-{number}"
            if not os.path.exists(path):  # noqa: PTH110
                raise errors.DeviceNotBound("device", device, f"there is no {dev}/{number}")
        self.fd = _open(path, "device", device)
        try:
            status = uapi.group_status_request()
            self._ioctl(self.fd, uapi.GROUP_GET_STATUS, status)
            if not uapi.group_flags(status) & uapi.GROUP_FLAGS_VIABLE:
                raise errors.GroupNotViable("device", device, f"group {number}")
        except OSError as error:
            self.close()
            raise errors.DeviceError("device", device, error.errno or 0, "GROUP_GET_STATUS") from error
        except BaseException:
            self.close()
            raise

    def set_container(self, container_fd: int) -> None:
        """Join a container; raises `DeviceError`."""
        argument = bytearray(container_fd.to_bytes(4, "little"))
        try:
            self._ioctl(self.fd, uapi.GROUP_SET_CONTAINER, argument)
        except OSError as error:
            raise errors.DeviceError("group", self.number, error.errno or 0, "GROUP_SET_CONTAINER") from error

    def open_device(self, bdf: str, vf_token: bytes | None = None) -> Device:
        """Open a device of the group, which must be in a container with an IOMMU set; raises `DeviceError`.

        Args:
            bdf: Its PCI address.
            vf_token: For a VF whose PF is bound to vfio-pci too, the token that was set for the PF.
        """
        try:
            fd = self._ioctl(self.fd, uapi.GROUP_GET_DEVICE_FD, uapi.device_name(full_bdf(bdf), vf_token))
        except OSError as error:
            raise errors.DeviceError("device", bdf, error.errno or 0, "GROUP_GET_DEVICE_FD") from error
        device = Device(fd, bdf, self._ioctl)
        self.devices.append(device)
        return device

    def close(self) -> None:
        """Close the devices opened through the group, then the group."""
        while self.devices:
            self.devices.pop().close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Container:
    """An open VFIO container. `fd` is the descriptor that `register_device` takes."""

    def __init__(
        self,
        iommu_type: int = uapi.TYPE1_IOMMU,
        *,
        ioctl: Ioctl | None = None,
        dev: str = DEV_VFIO,
        sysfs: str = SYSFS_DEVICES,
    ) -> None:
        """Open a container.

        Its IOMMU type is set when the first group joins: `TYPE1_IOMMU` as libqat does, or `TYPE1V2_IOMMU`.

        Raises:
            DeviceError: The node cannot be opened.
            Unsupported: The kernel has another VFIO API.
        """
        self.iommu_type = iommu_type
        self.groups: dict[int, Group] = {}
        self._ioctl: Ioctl = ioctl or container_calls.kernel_ioctl
        self._dev = dev
        self._sysfs = sysfs
        self.fd = _open(f"{dev}/vfio", "container", f"{dev}/vfio")
        try:
            version = self._ioctl(self.fd, uapi.GET_API_VERSION, 0)
        except OSError as error:
            self.close()
            raise errors.DeviceError("container", f"{dev}/vfio", error.errno or 0, "GET_API_VERSION") from error
        if version != uapi.API_VERSION:
            self.close()
            raise errors.Unsupported("container", f"{dev}/vfio", f"VFIO API version {version}")

    @property
    def no_iommu(self) -> bool:
        """The devices have no IOMMU: their addresses are physical, and the container maps nothing."""
        return any(group.no_iommu for group in self.groups.values())

    def open_device(self, bdf: str, vf_token: bytes | None = None) -> Device:
        """Open a PCI device: its group joins the container when it has not yet.

        Args:
            bdf: The PCI address, `02:01.2` or `0000:02:01.2`.
            vf_token: See `Group.open_device`.

        Raises:
            DeviceNotFound: There is no such device.
            NoIommuGroup: The device is in no IOMMU group.
            DeviceNotBound: It is not bound to vfio-pci.
            GroupNotViable: Its group is shared with a driver of the host.
            DeviceError: The kernel refused.
        """
        return self.join(bdf).open_device(bdf, vf_token)

    def join(self, bdf: str) -> Group:
        """Return the group of a device, joined to the container; the first one sets the IOMMU type.

        Raises:
            UsdmError: As `open_device`.
        """
        number = iommu_group(bdf, self._sysfs)
        if number in self.groups:
            return self.groups[number]
        group = Group(number, bdf, self._ioctl, self._dev)
        try:
            group.set_container(self.fd)
            if not self.groups:
                self._set_iommu(uapi.NOIOMMU_IOMMU if group.no_iommu else self.iommu_type)
        except BaseException:
            group.close()
            raise
        self.groups[number] = group
        return group

    def leave(self, device: Device) -> None:
        """Close a device that goes away, and its group with it unless another device of the group is open.

        The kernel takes a group whose devices are gone out of its container, and with a container's last group all its
        mappings. A device that comes back later is in a new group, also where that has the same number.
        """
        device.close()
        for number, group in list(self.groups.items()):
            if device in group.devices and all(other.fd < 0 for other in group.devices):
                self.groups.pop(number).close()

    def _set_iommu(self, iommu_type: int) -> None:
        try:
            self._ioctl(self.fd, uapi.SET_IOMMU, iommu_type)
        except OSError as error:
            raise errors.DeviceError("iommu_type", iommu_type, error.errno or 0, "SET_IOMMU") from error

    def info(self) -> uapi.IommuInfo:
        """Return IOVA ranges, page sizes and the number of mappings left; raises `DeviceError`."""
        try:
            return container_calls.get_info(self.fd, self._ioctl)
        except OSError as error:
            raise errors.DeviceError("container", self.fd, error.errno or 0, "IOMMU_GET_INFO") from error

    def map_dma(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Map beside USDM; raises `MapFailed`. All three numbers are multiples of 4 KiB."""
        flags = (uapi.MAP_FLAG_READ if read else 0) | (uapi.MAP_FLAG_WRITE if write else 0)
        container_calls.map_dma(self.fd, self._ioctl, vaddr, iova, size, flags)

    def unmap_dma(self, iova: int, size: int) -> int:
        """Unmap beside USDM and return how many bytes the kernel unmapped; raises `UnmapFailed`."""
        return container_calls.unmap_dma(self.fd, self._ioctl, iova, size)

    def close(self) -> None:
        """Close the devices, the groups, then the container; its mappings end."""
        while self.groups:
            self.groups.popitem()[1].close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
