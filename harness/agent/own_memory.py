"""Memory that the program takes from the kernel for itself, by raw addresses."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os

from harness.agent.outcome import NoMemory

PIECE = 2 * 1024 * 1024
"""Size of the piece that `repeated` maps again and again."""

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_HUGE_2MB = 0x40000 | 21 << 26
_MADV_POPULATE_WRITE = 23
_MADV_COLLAPSE = 25
_TRIES = 100
_PROT_NONE = 0
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc_madvise = _libc.madvise
_libc_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value


def _map(size: int, protection: int, flags: int, fd: int = -1, address: int | None = None) -> int:
    found = _mmap(address, size, protection, flags, fd, 0)
    if found is None or found == _FAILED:
        raise NoMemory(f"mmap of {size} bytes: {os.strerror(ctypes.get_errno())}")
    return int(found)


def _madvise(address: int, size: int, advice: int) -> None:
    for _ in range(_TRIES):
        if not _libc_madvise(address, size, advice):
            return
        if ctypes.get_errno() != errno.EAGAIN:
            break
        # madvise(2): the kernel had a page of them elsewhere for a moment, and may be asked again.
    raise NoMemory(f"madvise {advice} of {size} bytes: {os.strerror(ctypes.get_errno())}")


def take(size: int, backing: str, align: int = 4096) -> int:
    """Return the address of new memory.

    Args:
        size: Bytes.
        backing: `anonymous`; `read_only`, which the program cannot write to either; `repeated`, the same 2 MiB again
            and again, so that a buffer can be larger than the guest's memory; `huge`, hugepages of 2 MiB; `contiguous`,
            ordinary memory whose pages follow each other within 2 MiB (Linux 6.1). From 2 MiB on `repeated` is, too,
            where the kernel can: 2 GiB of it are mapped in a tenth of the time then.
        align: What the address is a multiple of, from the page size on.

    Raises:
        NoMemory: The kernel gave none.
    """
    if backing == "huge":
        return _map(-(-size // PIECE) * PIECE, _READ_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGE_2MB)
    size = extent(size, backing)
    if backing == "contiguous" or (backing == "repeated" and size >= PIECE):
        align = max(align, PIECE)
    # A place for it at such an address is reserved first, so that nothing else is replaced.
    reserved = _map(size + align, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    address = -(-reserved // align) * align
    try:
        if backing == "repeated":
            _repeat(address, size)
        else:
            protection = mmap.PROT_READ if backing == "read_only" else _READ_WRITE
            _map(size, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, address=address)
        if backing == "contiguous":
            _collapse(address, size)
    except NoMemory:
        give_back(reserved, size + align)
        raise
    end = -(-(address + size) // mmap.PAGESIZE) * mmap.PAGESIZE
    for start, stop in ((reserved, address), (end, reserved + size + align)):
        if start < stop:
            give_back(start, stop - start)
    return address


def _repeat(address: int, size: int) -> None:
    piece = os.memfd_create("repeated", os.MFD_CLOEXEC)
    try:
        os.ftruncate(piece, PIECE)
        shared = mmap.MAP_SHARED | _MAP_FIXED
        for offset in range(0, size, PIECE):
            _map(min(PIECE, size - offset), _READ_WRITE, shared, piece, address=address + offset)
    finally:
        os.close(piece)
    if size >= PIECE:
        with contextlib.suppress(NoMemory):
            _collapse(address, PIECE)


def _collapse(address: int, size: int) -> None:
    """Put whole pieces of memory into large pages."""
    _madvise(address, size, _MADV_POPULATE_WRITE)
    _madvise(address, size, _MADV_COLLAPSE)


def extent(size: int, backing: str) -> int:
    """Return how many bytes the kernel gave for `size`, which is what must be given back."""
    return -(-size // PIECE) * PIECE if backing in ("huge", "contiguous") else size


def give_back(address: int, size: int) -> None:
    """Give memory of `take` back to the kernel."""
    _munmap(address, size)


def read(address: int, size: int) -> bytes:
    """Return bytes of the process's memory."""
    return ctypes.string_at(address, size)


def write(address: int, data: bytes) -> None:
    """Write bytes to the process's memory."""
    ctypes.memmove(address, data, len(data))
