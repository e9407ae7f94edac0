"""Memory of this process by raw addresses."""

from __future__ import annotations

import ctypes
import mmap

from usdm import errors
from usdm.limits import MIB, PAGE_SIZE

_libc = ctypes.CDLL(None, use_errno=True)

_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mincore = _libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_calloc = _libc.calloc
_calloc.restype = ctypes.c_void_p
_calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
_free = _libc.free
_free.restype = None
_free.argtypes = (ctypes.c_void_p,)

_MAP_FAILED = ctypes.c_void_p(-1).value
_STEP = 256 * MIB  # the answer of mincore has one byte per page: 64 KiB


def allocate_pages(size: int) -> int:
    """Return the address of `size` bytes of new, private, zeroed memory that a forked child does not inherit.

    A child that wrote to it would otherwise leave the parent and the device on different pages.

    Raises:
        NoMemory: The kernel gave none.
    """
    address = _mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address is None or address == _MAP_FAILED:
        raise errors.NoMemory("size", size)
    if _madvise(address, size, mmap.MADV_DONTFORK):
        _munmap(address, size)
        raise errors.NoMemory("size", size, "MADV_DONTFORK failed")
    return int(address)


def free_pages(address: int, size: int) -> None:
    """Give memory of `allocate_pages` back."""
    _munmap(address, size)


def clear(address: int, size: int) -> None:
    """Write zeros."""
    ctypes.memset(address, 0, size)


def is_accessible(address: int, size: int) -> bool:
    """Tell whether every page of a range is mapped in this process; `address` is a multiple of 4 KiB."""
    answer = ctypes.create_string_buffer(min(size, _STEP) // PAGE_SIZE + 1)
    return all(
        _mincore(start, min(_STEP, address + size - start), answer) == 0
        for start in range(address, address + size, _STEP)
    )


def allocate_plain(size: int) -> int:
    """Return `size` zeroed bytes of the C heap; raises `NoMemory`."""
    address = _calloc(max(size, 1), 1)
    if address is None:
        raise errors.NoMemory("memsize", size)
    return int(address)


def free_plain(address: int) -> None:
    """Give memory of `allocate_plain` back."""
    _free(address)
