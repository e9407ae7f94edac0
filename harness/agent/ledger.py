"""What Intel's C library has promised to be mapped, noted while it is called: it can be asked for no list later."""

from __future__ import annotations

from _thread import allocate_lock  # what threading wraps, without its imports

from harness.agent.intervals import Intervals
from usdm.limits import IOVA_SLAB_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.implementations import Implementation
    from harness.agent.ranges import Range


class NotedCalls:
    """An implementation whose registrations are noted, and of Intel's C library what it has promised, too.

    Attributes:
        name: See `Implementation`.
        api: The implementation.
        fd: Descriptor of the container that is registered; None without one.
        registrations_ended: How often the last registration has been undone.
    """

    def __init__(self, api: Implementation) -> None:
        self.name = api.name
        self.fd: int | None = None
        self.registrations_ended = 0
        self.api = api
        self._count = 0
        self._promised = Promises() if api.name == "libusdm" else None
        self._noting = allocate_lock()

    def is_absent(self, error: Exception) -> bool:
        """See `Implementation`."""
        return self.api.is_absent(error)

    def call(self, function: str, *arguments: Any) -> tuple[Any, Exception | None]:
        """See `Implementation`."""
        if self._promised is None and function not in _REGISTRATION:
            return self.api.call(function, *arguments)
        # A function that frees takes the pointer's value away.
        given = [getattr(argument, "value", argument) for argument in arguments]
        value, error = self.api.call(function, *arguments)
        if error is None:
            # Several threads may call at once; only what they came to is noted one after the other.
            with self._noting:
                self._note(function, value, given)
        return value, error

    def _note(self, function: str, value: Any, given: list[Any]) -> None:
        was, promised = self.fd, self._promised
        self._registered(function, value, given)
        if promised is not None:
            promised.note(function, value, given)
            if was is None and self.fd is not None:
                promised.begin()
            elif function == "qaeMemDestroy" or (was is not None and self.fd is None):
                promised.end(whole=function == "qaeMemDestroy")

    def _registered(self, function: str, value: Any, given: list[Any]) -> None:
        if function == "qaeRegisterDevice" and value == 0:
            self.fd = given[0]
            self._count += 1
        elif function == "qaeUnregisterDevice" and value == 0 and self._count:
            self._count -= 1
        elif function == "qaeMemDestroy":
            self._count = 0
        if not self._count:
            self.registrations_ended += self.fd is not None
            self.fd = None

    def promises(self, fd: int) -> tuple[list[Range], list[Range]]:
        """Return what the C library lets devices of a container reach by its own word, and what it must not."""
        if self._promised is None:
            return [], []
        return (self._promised.live() if self.fd == fd else []), self._promised.gone()


_REGISTRATION = ("qaeRegisterDevice", "qaeUnregisterDevice", "qaeMemDestroy")
_FREES = ("qaeMemFreeNUMA", "qaeMemFreeNonZeroNUMA")


class Promises:
    """What Intel's C library has promised by its return values."""

    def __init__(self) -> None:
        self._ended = Intervals()  # by IOVA
        self._ended_blocks: list[Range] = []
        self._blocks: dict[int, tuple[int, int]] = {}  # virtual address: bytes, IOVA or 0 where it was not told
        self._maps = Intervals()  # by virtual address, with their IOVAs

    def live(self) -> list[Range]:
        """Return what must be reachable while a container is registered: at least this."""
        return self._live_blocks() + self._live_maps()

    def gone(self) -> list[Range]:
        """Return ranges whose mapping it has ended."""
        return [(iova, size, "rw") for iova, size, _ in self._ended] + self._ended_blocks

    def _live_blocks(self) -> list[Range]:
        return [(iova, size, "rw") for size, iova in self._blocks.values() if iova]

    def _live_maps(self) -> list[Range]:
        return [(iova, size, "rw") for _, size, iova in self._maps]

    def note(self, function: str, value: Any, given: list[Any]) -> None:
        """Take in a call that has succeeded."""
        if function == "qaeMemAllocNUMA" and value:
            self._blocks[value] = given[0], 0
        elif function == "qaeVirtToPhysNUMA" and value and given[0] in self._blocks:
            size, _ = self._blocks[given[0]]
            self._blocks[given[0]] = size, value
            self._reused(value, size)
        elif function in _FREES:
            # Its memory stays mapped for the next allocation, or does not.
            self._blocks.pop(given[0], None)
        elif function == "qaeMemMapContiguousIova" and value:
            self._maps.add(given[0], given[1], value)
            self._reused(value, given[1])
        elif function == "qaeMemUnmapContiguousIova" and value == 0:
            self._unmapped(given[0], given[1])

    def _unmapped(self, virt: int, size: int) -> None:
        # Of a mapping that it ended in part nobody knows what is left.
        for start, length, iova in self._maps.take(virt, size):
            if (start, length) == (virt, size):
                self._ended.add(iova, length, 0)

    def begin(self) -> None:
        """Take in that a container is registered: memory that was allocated is mapped again."""
        self._ended_blocks.clear()

    def end(self, *, whole: bool) -> None:
        """Take in that nothing is registered any more; `whole`: allocations have ended as well."""
        for _, size, iova in self._maps:
            self._ended.add(iova, size, 0)
        self._ended_blocks += self._live_blocks()
        self._maps.clear()
        if whole:
            self._blocks.clear()

    def _reused(self, iova: int, size: int) -> None:
        """Forget what was at IOVAs that are in use again, by units of 2 MiB as the library hands them out."""
        first = iova // IOVA_SLAB_SIZE * IOVA_SLAB_SIZE
        end = -(-(iova + size) // IOVA_SLAB_SIZE) * IOVA_SLAB_SIZE
        self._ended.take(first, end - first)
