"""Scatter lists of the QAT-like device: a page each, lent to a request until its response has come."""

from __future__ import annotations

from harness.agent import qat_layout as q
from harness.agent.outcome import DeviceBusy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Lists:
    """Pages for lists; the longest list fills one."""

    def __init__(self, pages: Sequence[memoryview], addresses: Sequence[int]) -> None:
        """Take the pages, as bytes, and their addresses for the device."""
        self._pages = pages
        self._addresses = addresses
        self.give_all_back()

    def give_all_back(self) -> None:
        """No request has one any more."""
        self._free = list(range(len(self._pages)))
        self._lent: dict[int, list[int]] = {}  # number of the request: pages

    def lend(self, request: int, pieces: Sequence[tuple[int, int]]) -> int:
        """Write a list for a request and return its address.

        Args:
            request: Number of the request.
            pieces: Address and bytes of each buffer, 1 to 255.

        Raises:
            DeviceBusy: All pages are lent.
        """
        if not self._free:
            raise DeviceBusy(f"{len(self._pages)} scatter lists are in use; collect responses first")
        page = self._free.pop()
        self._lent.setdefault(request, []).append(page)
        view = self._pages[page]
        q.LIST_HEAD.pack_into(view, 0, 0, len(pieces), 0)
        for number, (address, size) in enumerate(pieces):
            q.LIST_ENTRY.pack_into(view, q.LIST_HEAD.size + number * q.LIST_ENTRY.size, size, 0, address)
        return self._addresses[page]

    def give_back(self, request: int) -> None:
        """A request is over."""
        self._free += self._lent.pop(request, ())
