"""A VFIO container that somebody opened and gives to USDM as a file descriptor."""

from __future__ import annotations

import errno
import fcntl
import os

from usdm import errors, vfio_uapi
from usdm.kernel import Kernel
from usdm.limits import DEFAULT_IOVA_RANGES, PAGE_SIZE
from usdm.vfio_uapi import FLAGS_AT, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, RANGE_AT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.kernel import Ioctl

_pack_map = vfio_uapi.MAP_RANGE.pack_into
_pack_piece = vfio_uapi.MAP_PIECE.pack_into
_pack_unmap = vfio_uapi.UNMAP_RANGE.pack_into
_READ_WRITE = vfio_uapi.MAP_FLAG_READ | vfio_uapi.MAP_FLAG_WRITE


def kernel_ioctl(fd: int, request: int, argument: bytearray | int) -> int:
    """Make the system call; raises `OSError`."""
    return int(fcntl.ioctl(fd, request, argument))


def get_info(fd: int, ioctl: Ioctl) -> vfio_uapi.IommuInfo:
    """Ask the container `fd` for its IOMMU's ranges and page sizes.

    Raises:
        OSError: The descriptor is no container, or its IOMMU type is not set yet (EINVAL).
    """
    request = vfio_uapi.iommu_info_request()
    ioctl(fd, vfio_uapi.IOMMU_GET_INFO, request)
    needed = vfio_uapi.needed_size(request)
    if needed > len(request):
        request = vfio_uapi.iommu_info_request(needed)
        ioctl(fd, vfio_uapi.IOMMU_GET_INFO, request)
    return vfio_uapi.iommu_info(request)


def map_dma(fd: int, ioctl: Ioctl, vaddr: int, iova: int, size: int, flags: int) -> None:
    """Map `size` bytes of this process at `vaddr` to `iova`.

    Raises:
        MapFailed: The kernel refused; EEXIST is a failure too (D3: never trust a mapping that is not ours).
    """
    try:
        ioctl(fd, vfio_uapi.IOMMU_MAP_DMA, vfio_uapi.map_dma(vaddr, iova, size, flags))
    except OSError as error:
        raise errors.map_failed("virt", vaddr, error.errno or 0, f"size {size:#x} at IOVA {iova:#x}") from error


def unmap_dma(fd: int, ioctl: Ioctl, iova: int, size: int) -> int:
    """Unmap `size` bytes at `iova`.

    Returns:
        How many bytes the kernel unmapped.

    Raises:
        UnmapFailed: The kernel refused.
    """
    request = vfio_uapi.unmap_dma(iova, size)
    try:
        ioctl(fd, vfio_uapi.IOMMU_UNMAP_DMA, request)
    except OSError as error:
        raise errors.UnmapFailed("iova", iova, error.errno or 0, f"size {size:#x}") from error
    return vfio_uapi.unmapped_size(request)


class AttachedContainer:
    """A validated container. It holds a descriptor of its own, so the caller may close theirs.

    Attributes:
        fd: The number that was given.
        no_iommu: There is no IOMMU behind the container, nothing can be mapped. The container decides, not the module
            parameter `enable_unsafe_noiommu_mode`: where that is on, groups with an IOMMU still have one.
        iova_ranges: Usable IOVAs, `(first, last)` with `last` inclusive; empty in no-IOMMU mode.
    """

    def __init__(self, fd: int, kernel: Kernel | None = None) -> None:
        """Validate `fd`.

        Raises:
            NotAContainer: It is closed or negative, is something else (group, device, other file), or has no IOMMU
                type set yet.
            Unsupported: The kernel has another VFIO API, or the IOMMU cannot map 4 KiB pages.
        """
        self.fd = fd
        self._kernel = kernel or Kernel()
        self._ioctl = self._kernel.ioctl
        # One request of each kind, written anew for each call; the caller's lock is held.
        self._map = vfio_uapi.map_dma(0, 0, 0, _READ_WRITE)
        self._map_piece = vfio_uapi.map_dma(0, 0, 0, 0)
        self._unmap = vfio_uapi.unmap_dma(0, 0)
        self._words = memoryview(self._unmap).cast("Q")
        if fd < 0:
            raise errors.NotAContainer("fd", fd, os.strerror(errno.EBADF))
        try:
            # The duplicate keeps the container alive until the last unregister, whatever the caller closes.
            self._own = self._kernel.duplicate(fd)
        except OSError as error:
            raise errors.NotAContainer("fd", fd, os.strerror(error.errno or 0)) from error
        try:
            self.no_iommu, self.iova_ranges = self._describe()
        except BaseException:
            self.close()
            raise

    def _describe(self) -> tuple[bool, tuple[tuple[int, int], ...]]:
        """Return whether there is no IOMMU, and the usable IOVAs.

        `GET_API_VERSION` comes first: a device descriptor would take `IOMMU_GET_INFO` for a question about hot reset,
        and `IOMMU_MAP_DMA` for the order to do one.
        """
        own, ioctl = self._own, self._ioctl
        try:
            version = ioctl(own, vfio_uapi.GET_API_VERSION, 0)
            if version != vfio_uapi.API_VERSION:
                raise errors.Unsupported("fd", self.fd, f"VFIO API version {version}")
            if ioctl(own, vfio_uapi.CHECK_EXTENSION, vfio_uapi.TYPE1_IOMMU) <= 0:
                if ioctl(own, vfio_uapi.CHECK_EXTENSION, vfio_uapi.NOIOMMU_IOMMU) > 0:
                    return True, ()
                raise errors.NotAContainer("fd", self.fd, "its IOMMU is not type 1")
            info = get_info(own, ioctl)
        except OSError as error:
            reason = "no IOMMU type is set" if error.errno == errno.EINVAL else os.strerror(error.errno or 0)
            raise errors.NotAContainer("fd", self.fd, reason) from error
        if info.page_sizes and not info.page_sizes & (2 * PAGE_SIZE - 1):
            raise errors.Unsupported("fd", self.fd, f"the IOMMU's page sizes are {info.page_sizes:#x}, 4 KiB is needed")
        # Kernels before 5.4 tell no ranges.
        return False, DEFAULT_IOVA_RANGES if info.iova_ranges is None else info.iova_ranges

    def is_same(self, fd: int) -> bool:
        """Tell whether `fd` is this container: the number that was given, or another descriptor of the same file."""
        same = self._kernel.same_file(self._own, fd)
        return fd == self.fd if same is None else same

    def mappings_left(self) -> int:
        """Return how many more mappings the kernel takes; -1 when it does not tell."""
        try:
            left = get_info(self._own, self._ioctl).dma_avail
        except OSError:
            return -1
        return -1 if left is None else left

    def map(self, vaddr: int, iova: int, size: int) -> None:
        """Map for reads and writes of the device.

        Raises:
            AddressNotAccessible: Part of the range is not mapped in this process.
            MapFailed: The kernel refused for another reason.
        """
        request = self._map
        _pack_map(request, RANGE_AT, vaddr, iova, size)
        try:
            self._ioctl(self._own, IOMMU_MAP_DMA, request)
        except OSError as error:
            raise self._refused(error, vaddr, iova, size) from error

    def map_piece(self, access: int, virt: int, iova: int, size: int) -> None:
        """Map for reads (1), writes (2) or both (3) of the device; raises as `map`."""
        request = self._map_piece
        _pack_piece(request, FLAGS_AT, access, virt, iova, size)
        try:
            self._ioctl(self._own, IOMMU_MAP_DMA, request)
        except OSError as error:
            raise self._refused(error, virt, iova, size) from error

    def _refused(self, error: OSError, vaddr: int, iova: int, size: int) -> errors.UsdmError:
        if error.errno == errno.EFAULT and not self._kernel.is_accessible(vaddr, size):
            return errors.AddressNotAccessible("virt", vaddr, f"size {size:#x}")
        return errors.map_failed("virt", vaddr, error.errno or 0, f"size {size:#x} at IOVA {iova:#x}")

    def unmap(self, iova: int, size: int) -> int:
        """Unmap and return the number of bytes that the kernel unmapped; raises `UnmapFailed`."""
        request = self._unmap
        _pack_unmap(request, RANGE_AT, iova, size)
        try:
            self._ioctl(self._own, IOMMU_UNMAP_DMA, request)
        except OSError as error:
            raise errors.UnmapFailed("iova", iova, error.errno or 0, f"size {size:#x}") from error
        return self._words[2]

    def close(self) -> None:
        """Give up the descriptor; the caller's own stays."""
        own, self._own = self._own, -1
        if own >= 0:
            try:
                self._kernel.close(own)
            except OSError:
                return  # Linux has taken the descriptor away all the same
