"""The functions of `qae_mem.h`, with their names and return values, on one instance for the process.

They never raise a `UsdmError`; they return the C failure value, and `last_error` gives the error behind it (L1 of the C
library: all failures looked the same). The mode is read from the environment at the first use (`usdm.settings`).
"""

from __future__ import annotations

import os

from usdm import errors
from usdm.driver import Usdm
from usdm.errors import UsdmError
from usdm.last import failed as _failed
from usdm.last import failure as _failure
from usdm.last import last_error as last_error
from usdm.last import success as _success

_driver = Usdm(environment=os.environ)


class Pointer:
    """A pointer variable of C: the free functions take one and set it to NULL.

    Attributes:
        value: The address, or None for NULL.
    """

    __slots__ = ("value",)

    def __init__(self, value: int | None = None) -> None:
        self.value = value


def default_instance() -> Usdm:
    """Return the instance that the functions of this module work on."""
    return _driver


def _address(pointer: Pointer | None) -> int:
    """Return the address in a pointer variable."""
    if pointer is None:
        raise errors.NullAddress("ptr", None)
    if not isinstance(pointer, Pointer):
        raise errors.BadArgument("ptr", pointer, "the functions that free take a Pointer")
    if pointer.value is None:
        raise errors.NullAddress("*ptr", None)
    return pointer.value


def qaeMemInit() -> int:
    """Prepare the process, as every first call does.

    Returns:
        0, or -1 when the hugepage mode that the environment asks for is not possible.
    """
    try:
        _driver.prepare()
    except UsdmError as error:
        return _failure(error, -1)
    _success()
    return 0


def qaeMemInitAndReturnFd(mem_fd: Pointer | None) -> int:
    """Fail: there is no device node. Only FreeBSD has the function.

    Returns:
        1; `mem_fd` stays as it is.
    """
    return _failure(errors.Unsupported("mem_fd", mem_fd, "FreeBSD only"), 1)


def qaeMemDestroy() -> None:
    """Give everything back: registration, mappings, allocations. Later calls begin anew.

    The C library did so up to 26.02; in 26.08 it does nothing.
    """
    try:
        _driver.close()
    except UsdmError as error:
        return _failure(error, None)
    return _success()


def qaeAtFork() -> None:
    """Give a forked child a clean state of its own; nothing happens in any other process.

    Without this call every function that needs the state fails in the child.
    """
    try:
        _driver.at_fork()
    except UsdmError as error:
        return _failure(error, None)
    return _success()


def qaeMemAlloc(memsize: int) -> int | None:
    """Allocate ordinary memory.

    Args:
        memsize: bytes.

    Returns:
        Its address, or None.
    """
    try:
        address = _driver.allocate_plain(memsize)
    except UsdmError as error:
        return _failure(error, None)
    if _failed:
        _success()
    return address


def qaeMemFree(ptr: Pointer | None) -> None:
    """Free memory of `qaeMemAlloc` and set the pointer to NULL; a refused pointer stays.

    Args:
        ptr: a reference to the address that `qaeMemAlloc` returned.
    """
    try:
        _driver.free_plain(_address(ptr))
    except UsdmError as error:
        return _failure(error, None)
    if ptr is not None:
        ptr.value = None
    return _success()


def qaeMemAllocNUMA(size: int, node: int, phys_alignment_byte: int) -> int | None:
    """Allocate DMA-able memory: `size` from 1 to 64 MiB, alignment a power of two up to 4 MiB.

    Args:
        size: bytes.
        node: the NUMA node; -1 is any.
        phys_alignment_byte: what the IOVA is a multiple of.

    Returns:
        Its virtual address, or None.
    """
    try:
        address = _driver.allocate(size, node, phys_alignment_byte)
    except UsdmError as error:
        return _failure(error, None)
    if _failed:
        _success()
    return address


def qaeMemFreeNUMA(ptr: Pointer | None) -> None:
    """Clear and free memory of `qaeMemAllocNUMA` and set the pointer to NULL; a refused pointer stays (A3).

    Args:
        ptr: a reference to the address that `qaeMemAllocNUMA` returned.
    """
    _free(ptr, True)


def qaeMemFreeNonZeroNUMA(ptr: Pointer | None) -> None:
    """As `qaeMemFreeNUMA`, without clearing the memory.

    Args:
        ptr: a reference to the address that `qaeMemAllocNUMA` returned.
    """
    _free(ptr, False)


def _free(ptr: Pointer | None, zero: bool) -> None:
    try:
        _driver.free(ptr.value if type(ptr) is Pointer and ptr.value else _address(ptr), zero)
    except UsdmError as error:
        return _failure(error, None)
    ptr.value = None  # type: ignore[union-attr]
    if _failed:
        _success()
    return None


def qaeVirtToPhysNUMA(pVirtAddr: int | None) -> int:
    """Translate a virtual address.

    Args:
        pVirtAddr: a virtual address.

    Returns:
        The IOVA, or 0.
    """
    try:
        iova = _driver.virt_to_phys(pVirtAddr)  # type: ignore[arg-type]  # None is NULL
    except UsdmError as error:
        return _failure(error, 0)
    if _failed:
        _success()
    return iova


def qaePhysToVirtNUMA(physAddress: int) -> int | None:
    """Translate an IOVA.

    Args:
        physAddress: an IOVA.

    Returns:
        The virtual address, or None.
    """
    try:
        address = _driver.phys_to_virt(physAddress)
    except UsdmError as error:
        return _failure(error, None)
    if _failed:
        _success()
    return address


def qaeRegisterDevice(fd: int) -> int:
    """Register a VFIO container.

    Returns:
        0, -1 when `fd` is no usable container or the hugepage mode is not possible, or 1 when it is a container and
        cannot be registered (as the C library).
    """
    try:
        _driver.register_device(fd)
    except UsdmError as error:
        unusable = (errors.NotAContainer, errors.BadArgument, errors.Unsupported, errors.HugepagesNotConfigured)
        return _failure(error, -1 if isinstance(error, unusable) else 1)
    _success()
    return 0


def qaeUnregisterDevice(fd: int) -> int:
    """Undo one registration.

    Args:
        fd: the container's descriptor.

    Returns:
        0, or 1 on failure.
    """
    try:
        _driver.unregister_device(fd)
    except UsdmError as error:
        return _failure(error, 1)
    _success()
    return 0


def qaeMemMapContiguousIova(virt: int | None, size: int) -> int:
    """Map memory of the program, up to 2 GiB, at one contiguous IOVA range.

    Args:
        virt: the memory's virtual address, a multiple of the page size.
        size: bytes, whole pages.

    Returns:
        The first IOVA, a multiple of 2 MiB, or 0.
    """
    try:
        iova = _driver.map(virt, size)  # type: ignore[arg-type]  # None is NULL
    except UsdmError as error:
        return _failure(error, 0)
    if _failed:
        _success()
    return iova


def qaeMemUnmapContiguousIova(virt: int | None, size: int) -> int:
    """End a mapping of `qaeMemMapContiguousIova`, given its address and its whole size.

    Args:
        virt: the address that was mapped.
        size: bytes, as they were mapped.

    Returns:
        0, or 1 on failure.
    """
    try:
        _driver.unmap(virt, size)  # type: ignore[arg-type]  # None is NULL
    except UsdmError as error:
        return _failure(error, 1)
    if _failed:
        _success()
    return 0
