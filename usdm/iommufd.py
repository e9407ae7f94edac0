"""IOMMUFD: an IOVA space that the program makes (IOAS), and VFIO devices opened by their own file.

    with Iommufd() as iommufd:
        ioas = iommufd.alloc_ioas()
        device = iommufd.open_device("02:00.0")
        device.attach(ioas)
        ioas.map(virt, iova, 4096)

It closes what was opened through it, in the right order: devices, IOASes, file. Kernel: CONFIG_IOMMUFD and
CONFIG_VFIO_DEVICE_CDEV.
"""

from __future__ import annotations

import ctypes
import errno
import os
from _thread import allocate_lock

from usdm import check, errors, fork
from usdm import iommufd_uapi as uapi
from usdm.dma_errors import DomainEnded, IoasMapFailed, IoasUnmapFailed
from usdm.iova import IovaSpace
from usdm.kernel import Kernel
from usdm.vfio import DEV_VFIO, SYSFS_DEVICES, Device, full_bdf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from usdm.dma_domain import Domain

DEV_IOMMU = "/dev/iommu"

_FIXED = uapi.MAP_FIXED_IOVA
_FLAGS = {1: _FIXED | uapi.MAP_READABLE, 2: _FIXED | uapi.MAP_WRITEABLE}
_FLAGS[3] = _FLAGS[1] | _FLAGS[2]
_RANGES = 64  # x86 has two or three
_pack_map = uapi.MAP_PIECE.pack_into
_pack_unmap = uapi.UNMAP_RANGE.pack_into


class Iommufd:
    """An open IOMMUFD. A forked child is refused by everything that was opened through its parent's.

    Attributes:
        fd: Its descriptor.
        ioases: The IOASes that were made and not destroyed.
        devices: The devices that were opened and not closed.
    """

    def __init__(
        self,
        kernel: Kernel | None = None,
        *,
        path: str = DEV_IOMMU,
        dev: str = DEV_VFIO,
        sysfs: str = SYSFS_DEVICES,
    ) -> None:
        """Open it.

        Raises:
            Unsupported: The kernel has no IOMMUFD.
            DeviceError: The node cannot be opened.
        """
        self.kernel = kernel or Kernel()
        self.ioases: list[Ioas] = []
        self.devices: list[Cdev] = []
        self._dev, self._sysfs = dev, sysfs
        self._pid = os.getpid()
        self._forked_from = 0
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise errors.Unsupported("iommufd", path, "the kernel needs CONFIG_IOMMUFD") from error
        except OSError as error:
            raise errors.DeviceError("iommufd", path, error.errno or 0) from error
        fork.watch(self)

    def _forked(self) -> None:
        self._forked_from = self._forked_from or self._pid
        for ioas in self.ioases:
            ioas.forked(self.refusal())

    def refusal(self) -> errors.ForkedChild:
        """Return the error of a forked child."""
        return errors.ForkedChild("pid", os.getpid(), f"process {self._forked_from} owns it")

    def refuse_child(self) -> None:
        """Raise `ForkedChild` in a forked child."""
        if self._forked_from:
            raise self.refusal()

    def alloc_ioas(self) -> Ioas:
        """Make an IOVA space; raises `DeviceError`, `ForkedChild`."""
        return Ioas(self)

    def open_device(self, bdf: str, vf_token: bytes | None = None) -> Cdev:
        """Open a PCI device by its own file, and bind it; its DMA is refused until it is attached to an IOAS.

        Args:
            bdf: The PCI address, `02:01.2` or `0000:02:01.2`.
            vf_token: For a VF whose PF is bound to vfio-pci too, the token that was set for the PF (Linux 6.18).

        Raises:
            DeviceNotFound: There is no such device.
            DeviceNotBound: It is not bound to vfio-pci.
            Unsupported: The kernel has no device files.
            DeviceError: The kernel refused.
            ForkedChild: The parent opened it.
        """
        self.refuse_child()
        return Cdev(self, bdf, device_file(bdf, self._sysfs, self._dev), vf_token)

    def close(self) -> None:
        """Close the devices, destroy the IOASes with their mappings, and close the file."""
        for device in self.devices[:]:
            device.close()
        for ioas in self.ioases[:]:
            ioas.end()
        self.ioases.clear()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Ioas:
    """An IOVA space. What is mapped in it, every device that is attached to it reaches.

    Attributes:
        id: Its number, which belongs to the IOMMUFD.
    """

    def __init__(self, iommufd: Iommufd) -> None:
        """Make one; raises `DeviceError`, `ForkedChild`."""
        iommufd.refuse_child()
        self._iommufd = iommufd
        self._ioctl = iommufd.kernel.ioctl
        request = uapi.ioas_alloc()
        try:
            self._ioctl(iommufd.fd, uapi.IOAS_ALLOC, request)
        except OSError as error:
            raise errors.DeviceError("iommufd", iommufd.fd, error.errno or 0, "IOAS_ALLOC") from error
        self.id = uapi.ioas_id(request)
        self._lock = allocate_lock()
        self._dma: Domain | None = None
        self._ended = False
        self._tables = _Tables(iommufd, self.id)
        iommufd.ioases.append(self)

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return the usable IOVAs, `(first, last)` with `last` inclusive: everything until a device is attached.

        Raises:
            DeviceError: The kernel refused.
            Unsupported: The IOMMU cannot map single pages of 4 KiB.
            DomainEnded: It was destroyed, or its IOMMUFD closed.
            ForkedChild: The parent made it.
        """
        self._iommufd.refuse_child()
        with self._lock:
            self._refuse_ended()
            return self._usable()

    def _usable(self) -> tuple[tuple[int, int], ...]:
        """Ask for the usable IOVAs; the lock is held."""
        count = _RANGES
        while True:
            array = ctypes.create_string_buffer(16 * count)
            request = uapi.iova_ranges(self.id, count, ctypes.addressof(array))
            try:
                self._ioctl(self._iommufd.fd, uapi.IOAS_IOVA_RANGES, request)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise errors.DeviceError("ioas", self.id, error.errno or 0, "IOAS_IOVA_RANGES") from error
                count = max(2 * count, uapi.range_count(request))
                continue
            alignment = uapi.iova_alignment(request)
            if alignment > 4096:
                raise errors.Unsupported("ioas", self.id, f"the IOMMU maps multiples of {alignment:#x}")
            return uapi.ranges(array.raw[: 16 * uapi.range_count(request)])

    def map(self, virt: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
        """Map memory of this process at an IOVA. All three numbers are multiples of 4 KiB.

        Ranges of `usdm.dma_iommufd` in the same IOAS do not know of it: keep out of their IOVAs.

        Raises:
            BadArgument: A number is no 64-bit integer.
            AddressNotAccessible: Part of the memory is not mapped in this process.
            IoasMapFailed: The kernel refused for another reason.
            DomainEnded: It was destroyed, or its IOMMUFD closed.
            ForkedChild: The parent made it.
        """
        for name, value in (("virt", virt), ("iova", iova), ("size", size)):
            check.integer(name, value)
        self._iommufd.refuse_child()
        with self._lock:
            self._refuse_ended()
            self._tables.map_piece((1 if read else 0) | (2 if write else 0), virt, iova, size)

    def unmap(self, iova: int, size: int) -> int:
        """Unmap whole mappings, as many as there are in a range, and return how many bytes these had.

        Raises:
            BadArgument: A number is no 64-bit integer.
            IoasUnmapFailed: The kernel refused: ENOENT when there is nothing, or when the range cuts a mapping.
            DomainEnded: It was destroyed, or its IOMMUFD closed.
            ForkedChild: The parent made it.
        """
        for name, value in (("iova", iova), ("size", size)):
            check.integer(name, value)
        self._iommufd.refuse_child()
        with self._lock:
            self._refuse_ended()
            return self._tables.unmap(iova, size)

    def _refuse_ended(self) -> None:
        if self._ended:
            raise DomainEnded("ioas", self.id)

    def dma_domain(self) -> Domain:
        """Return where ranges and streaming mappings of `usdm.dma_iommufd` are.

        Raises:
            DomainEnded: The IOAS was destroyed, or its IOMMUFD closed.
            DeviceError, Unsupported: As `iova_ranges`.
            ForkedChild: The parent made it.
        """
        self._iommufd.refuse_child()
        with self._lock:
            self._refuse_ended()
            if self._dma is None:
                from usdm.dma_domain import Domain

                self._dma = Domain(self._tables, IovaSpace(self._usable()), self._lock)
            return self._dma

    def ranges_changed(self) -> None:
        """A device was attached or detached: new ranges of `usdm.dma_iommufd` lie where all of them can translate."""
        with self._lock:
            if self._dma is not None and not self._ended:
                self._dma.granules.move(self._usable())

    def destroy(self) -> None:
        """Destroy it with all its mappings; no device may be attached.

        Raises:
            DeviceError: The kernel refused: EBUSY while a device is attached. Nothing has changed then.
            ForkedChild: The parent made it.
        """
        self._iommufd.refuse_child()
        with self._lock:
            if self._ended:
                return
            try:
                self._ioctl(self._iommufd.fd, uapi.DESTROY, uapi.destroy(self.id))
            except OSError as error:
                raise errors.DeviceError("ioas", self.id, error.errno or 0, "IOMMU_DESTROY") from error
            # With the lock still held: the kernel may give the number to another one at once.
            self._end()
            if self in self._iommufd.ioases:
                self._iommufd.ioases.remove(self)

    def end(self) -> None:
        """End all ranges: the mappings will end with the file."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._ended = True
        if self._dma is not None:
            self._dma.end(DomainEnded("ioas", self.id), unmap=False)

    def forked(self, reason: errors.ForkedChild) -> None:
        """End all ranges in a forked child, whose only thread calls this."""
        self._lock = allocate_lock()
        if self._dma is not None:
            self._dma.end(reason, unmap=False)


class _Tables:
    """What an IOAS maps. The lock of the IOAS is held, and it has not ended: nothing is checked here."""

    def __init__(self, iommufd: Iommufd, number: int) -> None:
        self._fd = iommufd.fd
        self._ioas = number
        self._kernel = iommufd.kernel
        self._ioctl = iommufd.kernel.ioctl
        # One request of each kind, written anew for each call.
        self._map = uapi.ioas_map(number, 0, 0, 0, 0)
        self._unmap = uapi.ioas_unmap(number, 0, 0)

    def map_piece(self, access: int, virt: int, iova: int, size: int) -> None:
        """Map for reads (1), writes (2) or both (3) of the device; raises `AddressNotAccessible`, `IoasMapFailed`."""
        request = self._map
        _pack_map(request, uapi.MAP_PIECE_AT, _FLAGS.get(access, _FIXED), self._ioas, 0, virt, size, iova)
        try:
            self._ioctl(self._fd, uapi.IOAS_MAP, request)
        except OSError as error:
            if error.errno == errno.EFAULT and not self._kernel.is_accessible(virt, size):
                raise errors.AddressNotAccessible("virt", virt, f"size {size:#x}") from error
            raise IoasMapFailed("virt", virt, error.errno or 0, f"size {size:#x} at IOVA {iova:#x}") from error

    def unmap(self, iova: int, size: int) -> int:
        """Unmap whole mappings, and return how many bytes these had; raises `IoasUnmapFailed`."""
        request = self._unmap
        _pack_unmap(request, uapi.UNMAP_RANGE_AT, iova, size)
        try:
            self._ioctl(self._fd, uapi.IOAS_UNMAP, request)
        except OSError as error:
            raise IoasUnmapFailed("iova", iova, error.errno or 0, f"size {size:#x}") from error
        return uapi.unmapped_size(request)


class Cdev(Device):
    """A VFIO device that was opened by its own file, and bound to an IOMMUFD: as `usdm.vfio.Device` in use.

    Attributes:
        ioas: The IOAS that it is attached to, or None: then its DMA is refused.
    """

    def __init__(self, iommufd: Iommufd, bdf: str, path: str, vf_token: bytes | None = None) -> None:
        """Open the file and bind the device; raises `DeviceError`."""
        self.ioas: Ioas | None = None
        self._iommufd = iommufd
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise errors.DeviceError("device", bdf, error.errno or 0, path) from error
        super().__init__(fd, bdf, iommufd.kernel.ioctl)
        token = ctypes.create_string_buffer(vf_token, 16) if vf_token is not None else None
        try:
            request = uapi.bind(iommufd.fd, ctypes.addressof(token) if token is not None else 0)
            self._call(uapi.DEVICE_BIND_IOMMUFD, request, "DEVICE_BIND_IOMMUFD")
        except BaseException:
            super().close()
            raise
        iommufd.devices.append(self)

    def attach(self, ioas: Ioas) -> None:
        """Have the device's DMA translated by an IOAS, in place of the one before.

        Raises:
            DeviceError: The kernel refused.
            ForkedChild: The parent opened it.
        """
        self._iommufd.refuse_child()
        self._call(uapi.DEVICE_ATTACH_IOMMUFD_PT, uapi.attach(ioas.id), "DEVICE_ATTACH_IOMMUFD_PT")
        before, self.ioas = self.ioas, ioas
        ioas.ranges_changed()
        if before is not None and before is not ioas:
            before.ranges_changed()

    def detach(self) -> None:
        """Have all of the device's DMA refused; raises `DeviceError`, `ForkedChild`."""
        self._iommufd.refuse_child()
        self._call(uapi.DEVICE_DETACH_IOMMUFD_PT, uapi.detach(), "DEVICE_DETACH_IOMMUFD_PT")
        before, self.ioas = self.ioas, None
        if before is not None:
            before.ranges_changed()

    def close(self) -> None:
        """Close the device: the kernel stops its DMA, detaches and unbinds it. Mappings of the IOAS stay."""
        super().close()
        self.ioas = None
        if self in self._iommufd.devices:
            self._iommufd.devices.remove(self)


def device_file(bdf: str, sysfs: str = SYSFS_DEVICES, dev: str = DEV_VFIO) -> str:
    """Return the path of a PCI device's own file, `/dev/vfio/devices/vfio0` for example.

    Raises:
        DeviceNotFound: There is no such device.
        DeviceNotBound: It is not bound to vfio-pci.
        Unsupported: The kernel has no such files.
    """
    folder = f"{sysfs}/{full_bdf(bdf)}"
    try:
        names = os.listdir(f"{folder}/vfio-dev")  # noqa: PTH208 - pathlib costs the guest 10 ms
    except OSError as error:
        if os.path.isdir(folder):  # noqa: PTH112
            raise errors.DeviceNotBound("device", bdf, f"there is no {folder}/vfio-dev") from error
        raise errors.DeviceNotFound("device", bdf) from error
    path = f"{dev}/devices/{names[0] if names else 'vfio'}"
    if not os.path.exists(path):  # noqa: PTH110
        raise errors.Unsupported("device", bdf, f"there is no {path}: the kernel needs CONFIG_VFIO_DEVICE_CDEV")
    return path
