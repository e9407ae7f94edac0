"""Memory of this process by raw addresses: ordinary memory of the C heap, clearing, and whether a range is there."""

from __future__ import annotations

import ctypes

from usdm import errors
from usdm.kernel import Kernel, libc

_calloc = libc.calloc
_calloc.restype = ctypes.c_void_p
_calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
_free = libc.free
_free.restype = None
_free.argtypes = (ctypes.c_void_p,)
_memset = libc.memset
_memset.restype = None
_memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

_kernel = Kernel()


def clear(address: int, size: int) -> None:
    """Write zeros."""
    _memset(address, 0, size)


def is_accessible(address: int, size: int) -> bool:
    """Tell whether every page of a range is mapped in this process; `address` is a multiple of 4 KiB."""
    return _kernel.is_accessible(address, size)


def allocate_plain(size: int) -> int:
    """Return `size` zeroed bytes of the C heap; raises `NoMemory`."""
    address = _calloc(max(size, 1), 1)
    if address is None:
        raise errors.NoMemory("memsize", size)
    return int(address)


def free_plain(address: int) -> None:
    """Give memory of `allocate_plain` back."""
    _free(address)
