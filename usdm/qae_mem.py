"""The functions of `qae_mem.h`, with their names and return values, on one instance for the process.

They never raise a `UsdmError`; they return the C failure value, and `last_error` gives the error behind it (L1 of the C
library: all failures looked the same).
"""

from __future__ import annotations

from _thread import _local

from usdm import errors
from usdm.driver import Usdm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Result = TypeVar("Result")

_driver = Usdm()
_thread = _local()


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


def last_error() -> errors.UsdmError | None:
    """Return the error behind the last call of this thread, or None when it succeeded."""
    error: errors.UsdmError | None = getattr(_thread, "error", None)
    return error


def _run(call: Callable[[], Result], failure: Result) -> Result:
    _thread.error = None
    try:
        return call()
    except errors.UsdmError as error:
        # Without its traceback, which would keep the caller's objects alive.
        _thread.error = error.with_traceback(None)
        return failure


def _zero(call: Callable[[], object]) -> int:
    call()
    return 0


def _release(pointer: Pointer | None, free: Callable[[int], None]) -> None:
    if pointer is None:
        raise errors.NullAddress("ptr", None)
    if not isinstance(pointer, Pointer):
        raise errors.BadArgument("ptr", pointer, "the functions that free take a Pointer")
    if pointer.value is None:
        raise errors.NullAddress("*ptr", None)
    free(pointer.value)
    pointer.value = None


def qaeMemInit() -> int:
    """Prepare the process.

    Returns:
        0, or -1 when the hugepage mode that the environment asks for is not possible.
    """
    return _run(lambda: _zero(_driver.statistics), -1)


def qaeMemInitAndReturnFd(mem_fd: Pointer | None) -> int:
    """Fail: only FreeBSD has it.

    Returns:
        1.
    """

    def refuse() -> int:
        raise errors.Unsupported("mem_fd", mem_fd, "FreeBSD only")

    return _run(refuse, 1)


def qaeMemDestroy() -> None:
    """Give everything back: the registration, the mappings, the allocations."""
    _run(_driver.close, None)


def qaeAtFork() -> None:
    """Give a forked child a clean state of its own; does nothing in any other process."""
    _run(_driver.at_fork, None)


def qaeMemAlloc(memsize: int) -> int | None:
    """Allocate ordinary memory.

    Returns:
        Its address, or None.
    """
    return _run(lambda: _driver.allocate_plain(memsize), None)


def qaeMemFree(ptr: Pointer | None) -> None:
    """Free memory of `qaeMemAlloc` and set the pointer to NULL; a refused pointer stays."""
    _run(lambda: _release(ptr, _driver.free_plain), None)


def qaeMemAllocNUMA(size: int, node: int, phys_alignment_byte: int) -> int | None:
    """Allocate DMA-able memory: `size` from 1 to 64 MiB, alignment a power of two up to 4 MiB.

    Returns:
        Its virtual address, or None.
    """
    return _run(lambda: _driver.allocate(size, node, phys_alignment_byte), None)


def qaeMemFreeNUMA(ptr: Pointer | None) -> None:
    """Clear and free memory of `qaeMemAllocNUMA` and set the pointer to NULL; a refused pointer stays (A3)."""
    _run(lambda: _release(ptr, _driver.free), None)


def qaeMemFreeNonZeroNUMA(ptr: Pointer | None) -> None:
    """As `qaeMemFreeNUMA`, without clearing the memory."""
    _run(lambda: _release(ptr, lambda address: _driver.free(address, zero=False)), None)


def qaeVirtToPhysNUMA(pVirtAddr: int | None) -> int:
    """Translate a virtual address.

    Returns:
        The IOVA, or 0.
    """
    return _run(lambda: _driver.virt_to_phys(0 if pVirtAddr is None else pVirtAddr), 0)


def qaePhysToVirtNUMA(physAddress: int) -> int | None:
    """Translate an IOVA.

    Returns:
        The virtual address, or None.
    """
    return _run(lambda: _driver.phys_to_virt(physAddress), None)


def qaeRegisterDevice(fd: int) -> int:
    """Register a VFIO container.

    Returns:
        0, -1 when `fd` is no usable container, or 1 when it is one and cannot be registered (as the C library).
    """
    status = _run(lambda: _zero(lambda: _driver.register_device(fd)), 1)
    unusable = (errors.NotAContainer, errors.BadArgument, errors.Unsupported)
    return -1 if isinstance(last_error(), unusable) else status


def qaeUnregisterDevice(fd: int) -> int:
    """Undo one registration.

    Returns:
        0, or 1 on failure.
    """
    return _run(lambda: _zero(lambda: _driver.unregister_device(fd)), 1)


def qaeMemMapContiguousIova(virt: int | None, size: int) -> int:
    """Map memory of the program, up to 2 GiB, at one contiguous IOVA range.

    Returns:
        The first IOVA, a multiple of 2 MiB, or 0.
    """
    return _run(lambda: _driver.map(0 if virt is None else virt, size), 0)


def qaeMemUnmapContiguousIova(virt: int | None, size: int) -> int:
    """End a mapping of `qaeMemMapContiguousIova`, given its address and its whole size.

    Returns:
        0, or 1 on failure.
    """
    return _run(lambda: _zero(lambda: _driver.unmap(0 if virt is None else virt, size)), 1)
