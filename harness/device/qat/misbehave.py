"""What the stub has been told to do wrong, one request at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal, get_args

from harness.device.dma import Dma
from harness.device.qat.operations import Request

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
        silent: the device has stopped answering; only a reset helps.
        lose_interrupt: the next interrupt is not sent.
        last: the request before, whose addresses are stale.
    """

    def __init__(self) -> None:
        self._plans: deque[Plan] = deque()
        self._released = asyncio.Event()
        self.silent = False
        self.lose_interrupt = False
        self.last: Request | None = None

    def add(self, plan: Plan, times: int = 1) -> None:
        """Let the next requests that have no plan yet go wrong."""
        self._plans.extend([plan] * times)
        if plan.how == "hold":
            self._released.clear()

    def take(self) -> Plan:
        """The plan for the request that begins."""
        return self._plans.popleft() if self._plans else Plan()

    def release(self) -> None:
        """Let the request go on that is held."""
        self._released.set()

    async def held(self) -> None:
        """Wait for :meth:`release`."""
        await self._released.wait()

    async def forever(self) -> None:
        """Never come back, but by a reset."""
        self.silent = True
        await asyncio.Event().wait()

    def remember(self, request: Request) -> None:
        """A request is over."""
        self.last = request

    def clear(self) -> None:
        """A reset: every plan is forgotten."""
        self._plans.clear()
        self.silent = self.lose_interrupt = False
        self.last = None
