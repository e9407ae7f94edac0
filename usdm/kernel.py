"""Every system call that USDM makes for memory and containers, in one place: tests replace it.

Errors are `OSError` with the kernel's number, whatever way the call is made.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Ioctl = Callable[[int, int, "bytearray | int"], int]

libc = ctypes.CDLL(None, use_errno=True)

_mmap = libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap = libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise = libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mincore = libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_mremap = libc.mremap
_mremap.restype = ctypes.c_void_p
_mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long

_MAP_FAILED = ctypes.c_void_p(-1).value
_PAGE = 4096
_STEP = 256 << 20  # the answer of mincore has one byte per page: 64 KiB

MAP_HUGETLB = 0x40000
MAP_HUGE_2MB = 21 << 26
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
MADV_DONTFORK = mmap.MADV_DONTFORK
MADV_POPULATE_WRITE = 23  # Linux 5.14

_F_DUPFD_QUERY = 1024 + 3  # Linux 6.10
_KCMP_FILE = 0
_MPOL_PREFERRED = 1
_MPOL_F_NODE, _MPOL_F_ADDR = 1, 2

# number of kcmp, mbind, get_mempolicy, move_pages: the C library has no functions for them
_NUMBERS = {"x86_64": (312, 237, 239, 279), "aarch64": (272, 235, 236, 239)}


def _number(which: int) -> int:
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return numbers[which]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _long(value: int) -> ctypes.c_ulong:
    return ctypes.c_ulong(value)


class Kernel:
    """The system calls.

    Attributes:
        ioctl: Called as `fcntl.ioctl(fd, request, argument)`.
    """

    def __init__(self, ioctl: Ioctl | None = None) -> None:
        """Use the real system calls, or `ioctl` in place of that one."""
        # Called as it is: a function around it would cost as much as all else of a mapping.
        self.ioctl: Ioctl = ioctl or fcntl.ioctl  # type: ignore[assignment]

    # ---- memory

    def mmap(self, size: int, flags: int = 0) -> int:
        """Return the address of `size` bytes of new, private, zeroed memory; `flags` are further `MAP_` flags."""
        protection, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = _mmap(None, size, protection, kind | flags, -1, 0)
        if address is None or address == _MAP_FAILED:
            _checked(-1)
        return int(address)

    def munmap(self, address: int, size: int) -> None:
        """Give memory back."""
        _checked(_munmap(address, size))

    def madvise(self, address: int, size: int, advice: int) -> None:
        """Tell the kernel how memory is used."""
        _checked(_madvise(address, size, advice))

    def is_accessible(self, address: int, size: int) -> bool:
        """Tell whether every page of a range is mapped in this process; `address` is a multiple of 4 KiB."""
        answer = ctypes.create_string_buffer(min(size, _STEP) // _PAGE + 1)
        return all(
            _mincore(start, min(_STEP, address + size - start), answer) == 0
            for start in range(address, address + size, _STEP)
        )

    def read_pagemap(self, address: int, count: int) -> bytes:
        """Return what the kernel tells of `count` pages of 4 KiB from an address on: 8 bytes a page, or fewer pages.

        The file is opened each time: after a fork it would still tell of the parent.
        """
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, 8 * count, address // _PAGE * 8)
        finally:
            os.close(fd)

    def read_maps(self) -> bytes:
        """Return /proc/self/maps: one line a range of virtual memory. Names of files are in any encoding."""
        with open("/proc/self/maps", "rb") as file:
            return file.read()

    def move_pages_of(self, address: int, size: int, target: int) -> None:
        """Have the pages of a range at another address, in place of what is there; nothing is at the old one then."""
        moved = _mremap(address, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, target)
        if moved is None or moved == _MAP_FAILED:
            _checked(-1)

    # ---- NUMA

    def prefer_node(self, address: int, size: int, node: int) -> None:
        """Have pages of a range come from a NUMA node, or from others when it has none left (never the OOM killer)."""
        words = (ctypes.c_ulong * (node // 64 + 1))()
        words[node // 64] = 1 << node % 64
        # The kernel reads one bit less than the number says.
        bits = _long(64 * len(words) + 1)
        _checked(_syscall(_number(1), _long(address), _long(size), _MPOL_PREFERRED, words, bits, 0))

    def node_of(self, address: int) -> int:
        """Return the NUMA node of the page at an address."""
        node = ctypes.c_int(-1)
        flags = _long(_MPOL_F_NODE | _MPOL_F_ADDR)
        _checked(_syscall(_number(2), ctypes.byref(node), None, _long(0), _long(address), flags))
        return node.value

    def nodes_of(self, address: int, size: int, step: int) -> list[int]:
        """Return the NUMA nodes of pages `step` bytes apart, a negative error number for one that is absent."""
        count = size // step
        pages = (ctypes.c_void_p * count)(*range(address, address + size, step))
        status = (ctypes.c_int * count)()
        _checked(_syscall(_number(3), 0, _long(count), pages, None, status, 0))
        return list(status)

    # ---- descriptors and files

    def duplicate(self, fd: int) -> int:
        """Return another descriptor of the same open file, which a new program does not inherit."""
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)

    def close(self, fd: int) -> None:
        """Close a descriptor. It is closed after an error too."""
        os.close(fd)

    def same_file(self, first: int, second: int) -> bool | None:
        """Tell whether two descriptors of this process are one open file (one container).

        The numbers do not tell: a number is given again after a close.

        Returns:
            None when the kernel cannot answer (before 6.10, and without kcmp).
        """
        try:
            return bool(fcntl.fcntl(first, _F_DUPFD_QUERY, second))
        except OSError as error:
            if error.errno == errno.EBADF:
                return False
        pid = os.getpid()
        try:
            return _checked(_syscall(_number(0), pid, pid, _KCMP_FILE, _long(first), _long(second))) == 0
        except OSError as error:
            return False if error.errno == errno.EBADF else None

    def names_in(self, folder: str) -> list[str]:
        """Return the names in a folder; none when it does not exist."""
        try:
            return os.listdir(folder)  # noqa: PTH208 - pathlib costs the guest time
        except FileNotFoundError:
            return []

    def read_text(self, path: str) -> str:
        """Return the text of a small file, of sysfs for example, without the space around it."""
        with open(path, encoding="ascii") as file:
            return file.read().strip()
