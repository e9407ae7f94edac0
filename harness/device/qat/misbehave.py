"""What the stub has been told to do wrong, one request at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal, get_args

from harness.device.dma import Dma
from harness.device.wire import Access

Places = dict[Access, list[int]]
"""IOVAs by kind of access."""

How = Literal[
    "",
    "delay",
    "hold",
    "stale_address",
    "next_page",
    "wrong_requester",
    "write_instead_of_read",
    "complete_twice",
    "lose_interrupt",
    "stop_answering",
]
HOLD_SECONDS: Final = 5.0
"""How long it may take until a request comes that is to be held, and until it ends when it may go on."""

HOWS: Final = tuple(how for how in get_args(How) if how)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one request goes wrong.

    Args:
        how: the kind; empty when it goes right.
        milliseconds: delay: how long to wait before the request's first access to its data.
        through: wrong_requester: the DMA engine of the other function.
    """

    how: How = ""
    milliseconds: int = 0
    through: Dma | None = None


class Misbehaviour:
    """The plans for the next requests.

    Attributes:
        lose_interrupt: the next interrupt is not sent.
        stale: where the request before accessed its data, or should have: reads and writes apart, in their order.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A reset: every plan is forgotten."""
        self._plans: deque[Plan] = deque()
        self._holds = 0  # requests that are held, or will be
        self._is_held, self._may_go_on, self._is_over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._places: Places = {Access.READ: [], Access.WRITE: []}
        self.stale: Places = {Access.READ: [], Access.WRITE: []}
        self.lose_interrupt = False

    def add(self, plan: Plan, times: int = 1) -> None:
        """Let the next requests that have no plan yet go wrong."""
        self._plans.extend([plan] * times)
        if plan.how == "hold":
            self._holds += times

    def take(self) -> Plan:
        """The plan for the request that begins."""
        return self._plans.popleft() if self._plans else Plan()

    async def release(self) -> None:
        """Let the request go on that is held, and wait until it has accessed its data.

        Raises:
            ValueError: none is held, or none came within :data:`HOLD_SECONDS`, or it did not end in that time.
        """
        if not self._holds:
            raise ValueError("no request is held, and none will be")
        await _within(self._is_held, "no request came that would be held")
        self._holds -= 1
        self._may_go_on.set()
        await _within(self._is_over, "the request that was held did not come to its end")

    async def held(self) -> None:
        """Wait for :meth:`release`."""
        self._may_go_on.clear()
        self._is_over.clear()
        self._is_held.set()
        await self._may_go_on.wait()
        self._is_held.clear()

    async def forever(self) -> None:
        """Never come back, but by a reset."""
        await asyncio.Event().wait()

    def note(self, access: Access, iova: int) -> int | None:
        """Note where a request is to access its data; gives where the request before did so instead, if it did."""
        places, before = self._places[access], self.stale[access]
        places.append(iova)
        return before[len(places) - 1] if len(places) <= len(before) else None

    def remember(self) -> None:
        """A request has accessed its data: its addresses are stale from now on. One without data leaves none."""
        if any(self._places.values()):
            self.stale = self._places
        self._places = {Access.READ: [], Access.WRITE: []}
        self._is_over.set()


async def _within(event: asyncio.Event, otherwise: str) -> None:
    try:
        await asyncio.wait_for(event.wait(), HOLD_SECONDS)
    except TimeoutError:
        raise ValueError(f"{otherwise} within {HOLD_SECONDS:g} s") from None
