"""Physical addresses of this process's memory, from /proc/self/pagemap.

The kernel tells 8 bytes of each page of 4 KiB (Documentation/admin-guide/mm/pagemap.rst): bit 63 says that a page is
present, bits 0 to 54 are its frame number, which is the physical address divided by 4 KiB. Without CAP_SYS_ADMIN the
frame number is 0. A page can move to another frame until it is pinned (compaction, NUMA balancing, copy on write).
"""

from __future__ import annotations

import ctypes
import os

from usdm import errors
from usdm.limits import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from usdm.kernel import Kernel

    Span = tuple[int, int]  # first virtual address, its end
    Piece = tuple[int, int]  # first virtual address, how many pages

_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1
_CHUNK = 1 << 16  # pages looked through in one go: 256 MiB of memory, 512 KiB of pagemap
_BLOCK = 512  # pages that are passed over together where none is present
_KEY = 6  # bytes of a frame number that are looked for; x86 has at most 52 bits of physical address, so the rest is 0

_written = ctypes.create_string_buffer(1)  # a page of this process that is present for certain


class Frames:
    """Looks up frames."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def of(self, virt: int, count: int) -> list[int]:
        """Return the frame numbers of `count` pages from the page at `virt` on; 0 where no page is present.

        Raises:
            PhysicalAddressHidden: The kernel does not tell them.
        """
        frames: list[int] = []
        while len(frames) < count:
            more = self._entries(virt + len(frames) * PAGE_SIZE, min(_CHUNK, count - len(frames)))
            if not more:
                break  # the end of what can be an address
            for entry in more:
                frame = entry & _FRAME if entry & _PRESENT else 0
                if not frame and entry & _PRESENT:
                    raise errors.PhysicalAddressHidden("virt", virt, "all frame numbers read 0")
                frames.append(frame)
        return frames + [0] * (count - len(frames))

    def physical_address(self, virt: int) -> int:
        """Return the physical address of a virtual one.

        Raises:
            PageNotPresent: No page is there.
            PhysicalAddressHidden: The kernel does not tell.
        """
        frame = self.of(virt, 1)[0]
        if not frame:
            raise errors.PageNotPresent("virt", virt)
        return frame * PAGE_SIZE + virt % PAGE_SIZE

    def contiguous(self, virt: int, size: int, step: int, alignment: int) -> int:
        """Return the physical address of memory that is contiguous there.

        Args:
            virt: First virtual address.
            size: Bytes.
            step: Bytes of a page; each must have all its frames in order.
            alignment: Of the physical address, in bytes.

        Raises:
            NotContiguous: The pages do not follow each other, or begin at another place.
            PageNotPresent: A page is missing.
            PhysicalAddressHidden: The kernel does not tell.
        """
        frames = self.of(virt, size // PAGE_SIZE)
        if 0 in frames:
            raise errors.PageNotPresent("virt", virt + frames.index(0) * PAGE_SIZE)
        first = frames[0] * PAGE_SIZE
        if frames != list(range(frames[0], frames[0] + len(frames))):
            places = [frame * PAGE_SIZE for frame in frames[:: step // PAGE_SIZE]]
            told = ", ".join(map(hex, places[:4])) + (" …" if len(places) > 4 else "")
            raise errors.NotContiguous("size", size, f"the pages are at {told}")
        if first % alignment:
            raise errors.NotContiguous("phys_alignment_byte", alignment, f"the memory is at {first:#x}")
        return first

    def find(self, first: int, count: int, known: Iterable[Span] = ()) -> list[Piece]:
        """Return where this process has frames, in pages that it may write to.

        Args:
            first: The first frame number.
            count: How many frames from there on.
            known: Where to look first.

        Returns:
            Pieces of virtual memory in the order of the frames, each as long as it goes.

        Raises:
            ForeignMemory: A frame is nowhere.
            PhysicalAddressHidden: The kernel does not tell.
        """
        self._visible()
        virt = self._search(first, known) if first else None
        if first and virt is None:
            virt = self._search(first, self._writable())
        if virt is None:
            raise _foreign(first)
        length = self._run(virt, first, count)
        if length == count:
            return [(virt, count)]
        # Scattered: one way through everything instead of one for each piece.
        return self._scattered(first, count)

    # ----

    def _scattered(self, first: int, count: int) -> list[Piece]:
        places = self._collect(first, count)
        pieces: list[Piece] = []
        start = end = 0
        for frame in range(first, first + count):
            at = places.get(frame)
            if at is None:
                raise _foreign(frame)
            if at != end:
                if start:
                    pieces.append((start, (end - start) // PAGE_SIZE))
                start = at
            end = at + PAGE_SIZE
        pieces.append((start, (end - start) // PAGE_SIZE))
        return pieces

    def _entries(self, virt: int, count: int) -> list[int]:
        return memoryview(self._read(virt, count)).cast("Q").tolist()

    def _read(self, virt: int, count: int) -> bytes:
        try:
            data = self._kernel.read_pagemap(virt, count)
        except OSError as error:
            raise errors.PhysicalAddressHidden("virt", virt, f"pagemap: {os.strerror(error.errno or 0)}") from error
        return data[: len(data) & -8]

    def _visible(self) -> None:
        """Look at a page that is there: its frame number must be told."""
        _written.value = b"1"
        self.of(ctypes.addressof(_written), 1)

    def _writable(self) -> Iterator[Span]:
        """Give the ranges of virtual memory that the process may write to, by ascending address."""
        try:
            lines = self._kernel.read_maps().split(b"\n")
        except OSError as error:
            raise errors.PhysicalAddressHidden("virt", 0, f"maps: {os.strerror(error.errno or 0)}") from error
        for line in lines:
            span, _, rest = line.partition(b" ")
            if rest.startswith(b"rw"):
                start, _, end = span.partition(b"-")
                yield int(start, 16), int(end, 16)

    def _search(self, frame: int, spans: Iterable[Span]) -> int | None:
        """Return the virtual address of a page with this frame number."""
        key = frame.to_bytes(8, "little")[:_KEY]
        for start, end in spans:
            for virt in range(start, end, _CHUNK * PAGE_SIZE):
                data = self._read(virt, min(_CHUNK, (end - virt) // PAGE_SIZE))
                place = data.find(key)
                while place >= 0:
                    entry = int.from_bytes(data[place : place + 8], "little")
                    if place % 8 == 0 and entry & _PRESENT and entry & _FRAME == frame:
                        return virt + place // 8 * PAGE_SIZE
                    place = data.find(key, place + 1)
        return None

    def _run(self, virt: int, first: int, count: int) -> int:
        """Return how many pages from `virt` on have the frames from `first` on."""
        done = 0
        while done < count:
            for frame in self.of(virt + done * PAGE_SIZE, min(_BLOCK, count - done)):
                if frame != first + done:
                    return done
                done += 1
        return done

    def _collect(self, first: int, count: int) -> dict[int, int]:
        """Return the virtual addresses of frames, those that are found."""
        found: dict[int, int] = {}
        end_frame = first + count
        for start, end in self._writable():
            for virt in range(start, end, _CHUNK * PAGE_SIZE):
                data = self._read(virt, min(_CHUNK, (end - virt) // PAGE_SIZE))
                for place in range(0, len(data), 8 * _BLOCK):
                    block = data[place : place + 8 * _BLOCK]
                    if block.count(0) == len(block):
                        continue
                    for index, entry in enumerate(memoryview(block).cast("Q")):
                        if entry & _PRESENT and first <= entry & _FRAME < end_frame:
                            found.setdefault(entry & _FRAME, virt + (place // 8 + index) * PAGE_SIZE)
        return found


def _foreign(frame: int) -> errors.ForeignMemory:
    return errors.ForeignMemory("phaddr", frame * PAGE_SIZE, "no page that this process may write to has that frame")
