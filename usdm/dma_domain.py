"""One IOVA space for DMA ranges: which IOVAs they have, what is mapped there, and how it ends."""

from __future__ import annotations

import errno

from usdm import errors
from usdm.dma_errors import NotStreamed, StreamedSize, WrongDirection
from usdm.granules import Granules
from usdm.limits import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Sequence
    from typing import Protocol

    from usdm.dma_range import DmaIovaState
    from usdm.errors import UnmapFailed, UsdmError
    from usdm.iova import IovaSpace

    Piece = tuple[int, int, int, int]  # access, virtual address, IOVA, size in bytes; the last three of whole granules

    class Tables(Protocol):
        """What maps for an IOMMU: a registered container, or an IOAS."""

        def map_piece(self, access: int, virt: int, iova: int, size: int) -> None:
            """Map for reads (1), writes (2) or both (3) of the device; raises `UsdmError`."""

        def unmap(self, iova: int, size: int) -> int:
            """Unmap all that lies in the range and return how many bytes that was; raises `UnmapFailed`."""


class Domain:
    """The ranges and streaming mappings of one IOVA space. All that changes it is done with `lock` held.

    Attributes:
        lock: The lock of whoever has the IOVA space.
        granules: The IOVAs.
        mappings: How many mappings there are.
        ended: Why there are no ranges any more, or None.
    """

    def __init__(self, tables: Tables, iovas: IovaSpace, lock: LockType) -> None:
        self.lock = lock
        self.granules = Granules(iovas)
        self.mappings = 0
        self.ended: UsdmError | None = None
        self._tables = tables
        self._states: dict[int, DmaIovaState] = {}  # by first IOVA
        self._streams: dict[int, tuple[Piece, int, int]] = {}  # IOVA -> mapping, size and direction as given

    def __len__(self) -> int:
        return len(self._states)

    def refuse_ended(self) -> None:
        """Raise why the domain has ended, if it has."""
        if self.ended is not None:
            raise type(self.ended)(*self.ended.args)

    # ---- ranges

    def add(self, base: int, state: DmaIovaState) -> None:
        """Remember a range, whose IOVAs begin at `base`, so that it ends with the domain."""
        self._states[base] = state

    def remove(self, base: int, length: int) -> None:
        """Forget a range, and give its IOVAs back."""
        del self._states[base]
        self.granules.release(base, length)

    # ---- mappings

    def map_all(self, pieces: Sequence[Piece]) -> None:
        """Map pieces, or none of them.

        Raises:
            UsdmError: The kernel refused one. When it did not take others back then, the error has the attribute
                `left`: how many of the first pieces are mapped all the same.
        """
        map_piece = self._tables.map_piece
        count = 0
        try:
            for piece in pieces:
                map_piece(*piece)
                count += 1
        except BaseException as error:
            if not isinstance(error, errors.UsdmError):
                count = min(count + 1, len(pieces))  # an interrupt: nobody knows whether this one was made
            self._take_back(pieces[:count], error)
            raise
        self.mappings += count

    def _take_back(self, pieces: Sequence[Piece], error: BaseException) -> None:
        """Unmap pieces from the last to the first; at the first refusal the ones before stay."""
        for index in range(len(pieces) - 1, -1, -1):
            _, _, iova, size = pieces[index]
            try:
                self._tables.unmap(iova, size)
            except errors.UnmapFailed as left:
                if left.errno == errno.ENOENT:
                    continue
                error.add_note(f"left mapped: {index + 1} of the pieces: {left}")
                error.left = index + 1  # type: ignore[attr-defined]
                self.mappings += index + 1
                return

    def unmap(self, first: Piece, last: Piece, count: int, size: int) -> int:
        """Unmap `count` mappings of `size` bytes together, by one call, and return how many bytes were not there.

        Args:
            first: The one with the lowest IOVA.
            last: The one with the highest. Nothing else is mapped between the two.
            count: How many mappings these are.
            size: Bytes of all of them.

        Raises:
            UnmapFailed: The kernel refused; all is as before.
        """
        try:
            removed = self._tables.unmap(first[2], last[2] + last[3] - first[2])
        except errors.UnmapFailed as error:
            if error.errno != errno.ENOENT:
                raise
            removed = 0
        self.mappings -= count
        return size - removed

    # ---- streaming mappings

    def stream(self, access: int, virt: int, size: int, direction: int, last: int) -> int:
        """Map memory at once, at IOVAs up to `last`, and return the IOVA of `virt`.

        Raises:
            NoIovaSpace: No gap is large enough.
            UsdmError: The kernel refused.
        """
        offset = virt % PAGE_SIZE
        length = -(-(offset + size) // PAGE_SIZE) * PAGE_SIZE
        base = self.granules.allocate(length, last)
        piece = access, virt - offset, base, length
        try:
            self.map_all([piece])
        except BaseException:
            # A piece that could not be taken back does not exist: the only one is the one that failed.
            self.granules.release(base, length)
            raise
        self._streams[base + offset] = piece, size, direction
        return base + offset

    def end_stream(self, addr: int, size: int, direction: int) -> None:
        """End a streaming mapping that was made with this size and direction.

        Raises:
            NotStreamed, StreamedSize, WrongDirection: There is none, or it is another one.
            UnmapFailed: The kernel refused, and it is as before; or (ENOENT) it was not there any more, and is
                forgotten.
        """
        found = self._streams.get(addr)
        if found is None:
            raise NotStreamed("addr", addr)
        piece, given, was = found
        if size != given:
            raise StreamedSize("size", size, f"mapped were {given:#x}")
        if direction != was:
            raise WrongDirection("dir", direction, f"it was {was}")
        missing = self.unmap(piece, piece, 1, piece[3])
        del self._streams[addr]
        self.granules.release(piece[2], piece[3])
        if missing:
            raise errors.UnmapFailed("addr", addr, errno.ENOENT, f"{missing:#x} bytes were not mapped any more")

    # ---- the end

    def end(self, reason: UsdmError, *, unmap: bool = True) -> list[UnmapFailed]:
        """End all ranges and mappings; later calls are refused for `reason`. Return what the kernel refused.

        Without `unmap` nothing is unmapped: in a forked child, or when the whole IOVA space is gone. The lock is not
        taken: the only thread of a child may find it locked.
        """
        failures: list[UnmapFailed] = []
        self.ended = reason
        pieces = [piece for piece, _, _ in self._streams.values()]
        for state in self._states.values():
            pieces += state.end(reason)
        self._states.clear()
        self._streams.clear()
        self.mappings = 0
        if unmap:
            for _, _, iova, size in pieces:
                try:
                    self._tables.unmap(iova, size)
                except errors.UnmapFailed as error:
                    failures.append(error)
            self.granules.release_all()
        return failures
