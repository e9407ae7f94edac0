"""The kernel's two-step DMA mapping API, with its names and return values, over VFIO or IOMMUFD.

    dev = VfioDma()                                        # or IommufdDma(ioas)
    state = DmaIovaState()
    if dma_iova_try_alloc(dev, state, buffer, 16384):
        dma_iova_link(dev, state, buffer, 0, 16384, DMA_TO_DEVICE)
        dma_iova_sync(dev, state, 0, 16384)
        ...                                                # the device reads at state.addr
        dma_iova_destroy(dev, state, 16384, DMA_TO_DEVICE)

Where the kernel takes a physical address, these functions take a virtual one, by which a program names its memory to
VFIO and IOMMUFD. Its offset in its page is that of the physical address, and of the first address the API takes only
that.

The functions never raise a `UsdmError`. A failure returns the value of the kernel's function, writes one line to
standard error that says why, and leaves the error for `last_error`, also where the function returns nothing.
docs/dma-iova.md has the rules; `usdm.dma_device` is the same for Python, where a violation raises.
"""

from __future__ import annotations

import errno

from usdm import dma_errors, errors
from usdm.dma_device import DmaDevice, VfioDma
from usdm.dma_range import (
    DMA_ATTR_MMIO,
    DMA_ATTR_REQUIRE_COHERENT,
    DMA_ATTR_SKIP_CPU_SYNC,
    DMA_BIDIRECTIONAL,
    DMA_FROM_DEVICE,
    DMA_NONE,
    DMA_TO_DEVICE,
    DmaIovaState,
)
from usdm.errors import UsdmError
from usdm.last import failed as _failed
from usdm.last import last_error
from usdm.last import success as _success
from usdm.last import told as _told

__all__ = [
    "DMA_ATTR_MMIO",
    "DMA_ATTR_REQUIRE_COHERENT",
    "DMA_ATTR_SKIP_CPU_SYNC",
    "DMA_BIDIRECTIONAL",
    "DMA_FROM_DEVICE",
    "DMA_MAPPING_ERROR",
    "DMA_NONE",
    "DMA_TO_DEVICE",
    "DmaIovaState",
    "VfioDma",
    "dma_get_merge_boundary",
    "dma_iova_destroy",
    "dma_iova_free",
    "dma_iova_link",
    "dma_iova_sync",
    "dma_iova_try_alloc",
    "dma_iova_unlink",
    "dma_map_single",
    "dma_mapping_error",
    "dma_unmap_single",
    "dma_use_iova",
    "error_number",
    "last_error",
]

DMA_MAPPING_ERROR = (1 << 64) - 1

# What the kernel answers in the same case, where it has an answer; otherwise EINVAL.
_NUMBERS: dict[type[UsdmError], int] = {
    dma_errors.MemoryNotAtGranule: errno.EIO,
    dma_errors.LinkOverlap: errno.EADDRINUSE,
    dma_errors.BounceRefused: errno.EPERM,
    dma_errors.BounceBuffer: errno.EOPNOTSUPP,
    dma_errors.NotLinked: errno.ENOENT,
    errors.AddressNotAccessible: errno.EFAULT,
    errors.ForkedChild: errno.EPERM,
}


def error_number(error: UsdmError) -> int:
    """Return the error number that the functions with a number answer for an error, without its sign."""
    if isinstance(error, errors.KernelError):
        return error.errno or errno.EIO
    return _NUMBERS.get(type(error), errno.EINVAL)


def _device(dev: DmaDevice) -> DmaDevice:
    if not isinstance(dev, DmaDevice):
        raise errors.BadArgument("dev", dev, "it is no VfioDma and no IommufdDma")
    return dev


def dma_iova_try_alloc(dev: DmaDevice, state: DmaIovaState, virt: int, size: int) -> bool:
    """Try to reserve IOVAs: `DmaDevice.try_alloc`.

    Args:
        dev: the device.
        state: the range's state, `struct dma_iova_state`.
        virt: the virtual address of the memory that will be linked at 0.
        size: bytes.

    Returns:
        False when the range cannot be had: use the streaming API. `state` is as before then.
    """
    try:
        _device(dev).try_alloc(state, virt, size)
    except UsdmError as error:
        return _told("dma_iova_try_alloc", error, False)
    if _failed:
        _success()
    return True


def dma_use_iova(state: DmaIovaState) -> bool:
    """Tell whether the state has a range."""
    try:
        if not isinstance(state, DmaIovaState):
            raise errors.BadArgument("state", state, "it is no DmaIovaState")
    except UsdmError as error:
        return _told("dma_use_iova", error, False)
    if _failed:
        _success()
    return state.size != 0


def dma_iova_link(
    dev: DmaDevice, state: DmaIovaState, virt: int, offset: int, size: int, dir: int, attrs: int = 0
) -> int:
    """Put memory into a range: `DmaDevice.link`.

    Args:
        dev: the device.
        state: the range's state, `struct dma_iova_state`.
        virt: the memory's virtual address.
        offset: bytes from the start of the range.
        size: bytes.
        dir: `DMA_BIDIRECTIONAL`, `DMA_TO_DEVICE` or `DMA_FROM_DEVICE`.
        attrs: `DMA_ATTR_...`, or 0.

    Returns:
        0, or a negative error number: -EIO for memory that is not at the merge boundary, -EADDRINUSE for an overlap,
        -EPERM and -EOPNOTSUPP for an untrusted device, otherwise -EINVAL.
    """
    try:
        dev.link(state, virt, offset, size, dir, attrs)
    except UsdmError as error:
        return _told("dma_iova_link", error, -error_number(error))
    except AttributeError:
        if isinstance(dev, DmaDevice):
            raise
        return _told(
            "dma_iova_link", errors.BadArgument("dev", dev, "it is no VfioDma and no IommufdDma"), -errno.EINVAL
        )
    if _failed:
        _success()
    return 0


def dma_iova_sync(dev: DmaDevice, state: DmaIovaState, offset: int, size: int) -> int:
    """Have the device see links: `DmaDevice.sync`.

    Args:
        dev: the device.
        state: the range's state, `struct dma_iova_state`.
        offset: bytes from the start of the range.
        size: bytes.

    Returns:
        0, or a negative error number: that of the kernel where it refused a mapping, -ENOENT where nothing is linked,
        otherwise -EINVAL.
    """
    try:
        _device(dev).sync(state, offset, size)
    except UsdmError as error:
        return _told("dma_iova_sync", error, -error_number(error))
    if _failed:
        _success()
    return 0


def dma_iova_unlink(dev: DmaDevice, state: DmaIovaState, offset: int, size: int, dir: int, attrs: int = 0) -> None:
    """Take links out of a range: `DmaDevice.unlink`. What was refused is in `last_error`.

    Args:
        dev: the device.
        state: the range's state, `struct dma_iova_state`.
        offset: bytes from the start of the range.
        size: bytes.
        dir: `DMA_BIDIRECTIONAL`, `DMA_TO_DEVICE` or `DMA_FROM_DEVICE`.
        attrs: `DMA_ATTR_...`, or 0.
    """
    try:
        _device(dev).unlink(state, offset, size, dir, attrs)
    except UsdmError as error:
        return _told("dma_iova_unlink", error, None)
    if _failed:
        _success()
    return None


def dma_iova_free(dev: DmaDevice, state: DmaIovaState) -> None:
    """Give the IOVAs of a range back, in which nothing is linked: `DmaDevice.free`. See `last_error`.

    Args:
        dev: the device.
        state: the range's state, `struct dma_iova_state`.
    """
    try:
        _device(dev).free(state)
    except UsdmError as error:
        return _told("dma_iova_free", error, None)
    if _failed:
        _success()
    return None


def dma_iova_destroy(dev: DmaDevice, state: DmaIovaState, mapped_len: int, dir: int, attrs: int = 0) -> None:
    """Unlink everything by one call to the kernel, and free the range: `DmaDevice.destroy`. See `last_error`.

    Args:
        dev: the device.
        state: the range's state, `struct dma_iova_state`.
        mapped_len: bytes that are linked, from the start of the range; 0 when nothing is.
        dir: `DMA_BIDIRECTIONAL`, `DMA_TO_DEVICE` or `DMA_FROM_DEVICE`.
        attrs: `DMA_ATTR_...`, or 0.
    """
    try:
        _device(dev).destroy(state, mapped_len, dir, attrs)
    except UsdmError as error:
        return _told("dma_iova_destroy", error, None)
    if _failed:
        _success()
    return None


def dma_get_merge_boundary(dev: DmaDevice) -> int:
    """Return the merge boundary, 4095: links begin and end at multiples of one more. 0 for what is no device.

    Args:
        dev: the device.
    """
    try:
        boundary = _device(dev).merge_boundary
    except UsdmError as error:
        return _told("dma_get_merge_boundary", error, 0)
    if _failed:
        _success()
    return boundary


def dma_map_single(dev: DmaDevice, virt: int, size: int, dir: int, attrs: int = 0) -> int:
    """Map memory at once: `DmaDevice.map_single`.

    Args:
        dev: the device.
        virt: the memory's virtual address.
        size: bytes.
        dir: `DMA_BIDIRECTIONAL`, `DMA_TO_DEVICE` or `DMA_FROM_DEVICE`.
        attrs: `DMA_ATTR_...`, or 0.

    Returns:
        The IOVA, or `DMA_MAPPING_ERROR`.
    """
    try:
        addr = _device(dev).map_single(virt, size, dir, attrs)
    except UsdmError as error:
        return _told("dma_map_single", error, DMA_MAPPING_ERROR)
    if _failed:
        _success()
    return addr


def dma_unmap_single(dev: DmaDevice, addr: int, size: int, dir: int, attrs: int = 0) -> None:
    """End a mapping of `dma_map_single`: `DmaDevice.unmap_single`. See `last_error`.

    Args:
        dev: the device.
        addr: the IOVA that `dma_map_single` returned.
        size: bytes.
        dir: `DMA_BIDIRECTIONAL`, `DMA_TO_DEVICE` or `DMA_FROM_DEVICE`.
        attrs: `DMA_ATTR_...`, or 0.
    """
    try:
        _device(dev).unmap_single(addr, size, dir, attrs)
    except UsdmError as error:
        return _told("dma_unmap_single", error, None)
    if _failed:
        _success()
    return None


def dma_mapping_error(dev: DmaDevice, addr: int) -> bool:
    """Tell whether `dma_map_single` failed. `last_error` stays as it is.

    Args:
        dev: the device.
        addr: what `dma_map_single` returned.
    """
    return addr == DMA_MAPPING_ERROR
