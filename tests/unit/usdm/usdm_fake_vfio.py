"""A VFIO kernel side for tests: containers with the rules of type 1, measured in a guest, behind an `ioctl` function.

It is written from the kernel's rules, not from the code under test, and packs its structures by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

GET_API_VERSION, CHECK_EXTENSION = 0x3B64, 0x3B65
GET_INFO, MAP, UNMAP = 0x3B70, 0x3B71, 0x3B72

RANGES_48 = ((0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1))
RANGES_39 = ((0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1))


class FakeContainer:
    """`kind`: `type1`, `unset` (SET_IOMMU not done), `noiommu`, `spapr`, `other` (no container at all)."""

    def __init__(
        self,
        kind: str = "type1",
        ranges: tuple[tuple[int, int], ...] | None = RANGES_48,
        v2: bool = False,
        limit: int = 65535,
        page_sizes: int = 0x40201000,
        api: int = 0,
    ) -> None:
        self.kind, self.ranges, self.v2, self.limit, self.page_sizes, self.api = (
            kind,
            ranges,
            v2,
            limit,
            page_sizes,
            api,
        )
        self.entries: dict[int, tuple[int, int]] = {}  # iova -> (vaddr, size)

    def device_view(self, iova: int) -> int | None:
        """Return the virtual address that a DMA to `iova` reaches, or None for a fault."""
        for start, (vaddr, size) in self.entries.items():
            if start <= iova < start + size:
                return vaddr + iova - start
        return None

    def info(self, size: int) -> bytes:
        caps = b""
        if self.ranges is not None:
            spans = b"".join(struct.pack("=QQ", *span) for span in self.ranges)
            avail_at = 24 + 16 + len(spans)
            caps = struct.pack("=HHIII", 1, 1, avail_at, len(self.ranges), 0) + spans
            caps += struct.pack("=HHII", 3, 1, 0, self.limit - len(self.entries)) + bytes(4)
        head = struct.pack("=IIQII", 24 + len(caps), 3 if caps else 1, self.page_sizes, 24 if caps else 0, 0)
        if len(head + caps) > size:
            return struct.pack("=IIQII", 24 + len(caps), 3, self.page_sizes, 0, 0)
        return head + caps

    def map(self, vaddr: int, iova: int, size: int, flags: int, check_memory: bool) -> None:
        if size == 0 or not flags & 3 or flags & ~3 or (vaddr | iova | size) & 4095:
            raise OSError(errno.EINVAL, "map")
        if any(iova < start + length and start < iova + size for start, (_, length) in self.entries.items()):
            raise OSError(errno.EEXIST, "map")
        ranges = self.ranges or ((0, (1 << 64) - 1),)
        if not any(first <= iova and iova + size - 1 <= last for first, last in ranges):
            raise OSError(errno.EINVAL, "map")
        if len(self.entries) >= self.limit:
            raise OSError(errno.ENOSPC, "map")
        if not is_there(vaddr, size) or (check_memory and not is_mapped(vaddr, size, write=bool(flags & 2))):
            raise OSError(errno.EFAULT, "map")
        self.entries[iova] = (vaddr, size)

    def unmap(self, iova: int, size: int) -> int:
        if size == 0 or (iova | size) & 4095:
            raise OSError(errno.EINVAL, "unmap")
        removed = 0
        for start, (_, length) in sorted(self.entries.items()):
            if iova >= start + length or start >= iova + size:
                continue
            inside = start >= iova and start + length <= iova + size
            if self.v2 and not inside:
                raise OSError(errno.EINVAL, "unmap")
            if start < iova:
                break  # version 1: a range that starts inside a mapping removes nothing
            removed += length
            del self.entries[start]
        return removed


def descriptors() -> set[str]:
    """Return the open file descriptors of this process."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def is_there(start: int, size: int) -> bool:
    """Tell whether a range is mapped in this process, whether it is writable or not."""
    answer = ctypes.create_string_buffer(size // 4096)
    return ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), answer) == 0


def is_mapped(start: int, size: int, write: bool) -> bool:
    """Tell from /proc/self/maps whether a range is mapped (and writable)."""
    at = start
    with open("/proc/self/maps") as lines:
        for line in lines:
            span, permissions = line.split()[:2]
            low, high = (int(part, 16) for part in span.split("-"))
            if low <= at < high and (not write or "w" in permissions):
                at = high
            if at >= start + size:
                return True
    return False


class FakeVfio:
    """Open containers, and the ioctl function that serves them.

    `check_memory`: read-only memory cannot be mapped for writing; otherwise memory only has to be there.
    """

    def __init__(self, check_memory: bool = False) -> None:
        self.check_memory = check_memory
        self.containers: dict[int, FakeContainer] = {}
        self.calls: list[tuple[str, int, int]] = []  # (map or unmap, iova, size)
        self.failures: list[tuple[int, int, int]] = []  # request, errno, calls of it to let pass first
        self.fds: list[int] = []

    def open(self, container: FakeContainer | None = None) -> int:
        fd = os.memfd_create("vfio")
        self.containers[os.fstat(fd).st_ino] = container or FakeContainer()
        self.fds.append(fd)
        return fd

    def of(self, fd: int) -> FakeContainer:
        return self.containers[os.fstat(fd).st_ino]

    def fail(self, request: int, number: int, skip: int = 0) -> None:
        self.failures.append((request, number, skip))

    def close(self) -> None:
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _inject(self, request: int) -> None:
        for index, (wanted, number, skip) in enumerate(self.failures):
            if wanted != request:
                continue
            if skip == 0:
                del self.failures[index]
                raise OSError(number, "injected")
            self.failures[index] = (wanted, number, skip - 1)
            return

    def ioctl(self, fd: int, request: int, argument: bytearray | int) -> int:
        container = self.containers.get(os.fstat(fd).st_ino)
        if container is None or container.kind == "other":
            raise OSError(errno.ENOTTY, "ioctl")
        self._inject(request)
        if request == GET_API_VERSION:
            return container.api
        if request == CHECK_EXTENSION:
            wanted = {"noiommu": {8}, "spapr": {2}}.get(container.kind, {1, 3})
            return int(argument in wanted)
        if container.kind != "type1":
            raise OSError(errno.EINVAL if container.kind == "unset" else errno.ENOTTY, "ioctl")
        assert isinstance(argument, bytearray)
        return {GET_INFO: self._info, MAP: self._map, UNMAP: self._unmap}[request](container, argument)

    def _info(self, container: FakeContainer, argument: bytearray) -> int:
        answer = container.info(struct.unpack_from("=I", argument)[0])
        argument[: len(answer)] = answer
        return 0

    def _map(self, container: FakeContainer, argument: bytearray) -> int:
        argsz, flags, vaddr, iova, size = struct.unpack("=IIQQQ", argument)
        assert argsz == 32
        container.map(vaddr, iova, size, flags, self.check_memory)
        self.calls.append(("map", iova, size))
        return 0

    def _unmap(self, container: FakeContainer, argument: bytearray) -> int:
        argsz, flags, iova, size = struct.unpack("=IIQQ", argument)
        assert (argsz, flags) == (24, 0)
        struct.pack_into("=Q", argument, 16, container.unmap(iova, size))
        self.calls.append(("unmap", iova, size))
        return 0


class Buffer:
    """Anonymous memory of the program; `address` is where it starts."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.size = size
        view = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(view)
        del view

    def close(self) -> None:
        self.map.close()


Factory = Callable[[int], Buffer]
