"""Ordinary memory, which devices cannot reach without `map`."""

from __future__ import annotations

from usdm import check, errors, memory

_REMEMBERED = 1024


class PlainMemory:
    """What `qaeMemAlloc` and `qaeMemFree` are. It needs no lock, and works in a forked child."""

    def __init__(self) -> None:
        self._plain: dict[int, None] = {}
        self._plain_freed: dict[int, None] = {}

    def allocate_plain(self, size: int) -> int:
        """Allocate ordinary zeroed memory, which devices cannot reach without `map`.

        Args:
            size: Bytes; 0 gives an address too, as `calloc`.

        Raises:
            BadArgument: `size` is no 64-bit integer.
            NoMemory: The C library gave none.
        """
        address = memory.allocate_plain(check.integer("memsize", size))
        self._plain_freed.pop(address, None)
        self._plain[address] = None
        return address

    def free_plain(self, address: int) -> None:
        """Free what `allocate_plain` returned.

        Raises:
            BadArgument: `address` is no 64-bit integer.
            NullAddress: It is NULL.
            DoubleFree: It has been freed already.
            NotAllocated: It was never handed out.
        """
        address = check.address("ptr", address)
        try:
            del self._plain[address]
        except KeyError:
            kind = errors.DoubleFree if address in self._plain_freed else errors.NotAllocated
            raise kind("ptr", address) from None
        self._plain_freed[address] = None
        if len(self._plain_freed) > _REMEMBERED:
            self._plain_freed.pop(next(iter(self._plain_freed)), None)
        memory.free_plain(address)
