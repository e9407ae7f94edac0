"""Responses of the QAT-like device: whose they are, and how the driver waits for them."""

from __future__ import annotations

import os
import select
import time
from collections import deque

from harness.agent import qat_layout as q
from harness.agent.outcome import InterruptLost, NothingHanded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from harness.agent.outcome import DmaTimeout
    from harness.agent.qat_ring import Response, Rings

    class Driver(Protocol):
        """Whose requests they are."""

        name: str
        events: list[int]

        def rings(self) -> Rings:
            """Return the rings with this process's requests; raises `DmaTimeout` where they are lost."""

        def status(self) -> int:
            """Read STATUS."""

        def over(self, number: int) -> None:
            """A request's response has come."""

        def given_up(self, why: str, *, hangs: bool) -> DmaTimeout:
            """Give the rings up; returns what to raise."""


GONE = 0xFFFF_FFFF
"""What a register of a device that is not there reads as, on most machines."""

# Between two looks at memory the processor is free for whoever makes the DMA; with longer pauses, and with more
# looks between them, fewer requests a second come back.
PAUSE_SECONDS = 0.00001
_CHECK_SECONDS = 0.05
# An interrupt that has not come so long after it was due, is lost.
_GRACE_SECONDS = 0.5


def is_gone(status: int) -> bool:
    """Whether nothing answers: where nothing is any more, a machine reads all ones, or zeros."""
    return status == GONE or not status & q.READY


def is_busy(status: int) -> bool:
    """Whether it works, or is held up."""
    return bool(status & q.BUSY) and not is_gone(status)


class Responses:
    """The requests of a driver that are on their way, and what has come of them.

    Attributes:
        unasked: Responses so far that no request waited for.
    """

    def __init__(self, driver: Driver) -> None:
        """Take the driver, whose rings need not be there yet."""
        self._driver = driver
        self.unasked = 0
        self.forget()

    def forget(self) -> None:
        """No request is on its way any more."""
        self._waiting: deque[int] = deque()  # numbers of the requests in the ring
        self._unclaimed: set[int] = set()  # those of them that `collect` is to take
        self._collectable: deque[Response] = deque()
        self._announced = 0  # responses that an interrupt has announced

    @property
    def waited_for(self) -> int:
        """How many requests are on their way."""
        return len(self._waiting)

    def expect(self, number: int) -> None:
        """A request has been put into the ring."""
        self._waiting.append(number)

    def finish(self, number: int, interrupt: bool, seconds: float) -> Response:
        """Wait for a request's response; those of requests that were left are kept for `collect`.

        Args:
            number: The request.
            interrupt: It was asked to be announced by MSI-X, and is waited for by that.
            seconds: How long to wait.

        Raises:
            DmaTimeout: No response in time, or there will be none. The rings are given up then.
            InterruptLost: The response has come, and no interrupt.
        """
        end = time.monotonic() + seconds
        try:
            return self._finish(number, interrupt, end)
        except InterruptLost:
            self._finish(number, False, end)  # it is there: its place and its lists are free again
            raise

    def _finish(self, number: int, interrupt: bool, end: float) -> Response:
        while (response := self._next(interrupt, end)).opaque != number:
            self._keep(response)
        return response

    def leave(self, number: int) -> None:
        """Let `collect` take a request's response; said before anything is waited for."""
        self._unclaimed.add(number)

    def _keep(self, response: Response) -> None:
        """Keep a response for `collect`; whoever asked for another one may have given it up."""
        if response.opaque in self._unclaimed:
            self._collectable.append(response)

    def collect(self, count: int, interrupt: bool, seconds: float) -> list[Response]:
        """Wait for responses of requests that were left, the oldest first.

        After an error they can be collected again, as long as the rings are there.

        Args:
            count: How many.
            interrupt: See `finish`.
            seconds: How long to wait for all of them.

        Raises:
            DmaTimeout, InterruptLost: See `finish`.
            NothingHanded: So many requests were not left.
        """
        if len(self._unclaimed) < count:
            raise NothingHanded(f"{len(self._unclaimed)} requests were handed over, and {count} responses asked for")
        end = time.monotonic() + seconds
        while len(self._collectable) < count:
            self._keep(self._next(interrupt, end))
        found = [self._collectable.popleft() for _ in range(count)]
        self._unclaimed.difference_update(response.opaque for response in found)
        return found

    def _next(self, interrupt: bool, end: float) -> Response:
        """Wait for the oldest request's response; what nobody asked for is counted."""
        rings = self._driver.rings()
        while True:
            if interrupt:
                self._wait_interrupt(rings, end)
            else:
                self._wait_memory(rings, end)
            response = rings.take()
            self._announced = max(0, self._announced - 1)
            if self._waiting and response.opaque == self._waiting[0]:
                self._driver.over(self._waiting.popleft())
                return response
            self.unasked += 1

    def _has_answered(self, rings: Rings) -> bool:
        """Whether the oldest request's response is there; what nobody asked for is taken before it."""
        while rings.has_come():
            if self._waiting and rings.oldest() == self._waiting[0]:
                return True
            rings.take()
            self.unasked += 1
        return False

    def _wait_memory(self, rings: Rings, end: float) -> None:
        """Wait until a response is in memory; raises `DmaTimeout`."""
        check = time.monotonic() + _CHECK_SECONDS
        while not rings.has_come():
            time.sleep(PAUSE_SECONDS)
            now = time.monotonic()
            if now >= check:
                self._expect_more(rings, late=now >= end)
                check = now + _CHECK_SECONDS

    def _wait_interrupt(self, rings: Rings, end: float) -> None:
        """Wait until an interrupt has announced a response; raises `DmaTimeout` and `InterruptLost`."""
        poll = select.poll()
        for event in self._driver.events:
            poll.register(event, select.POLLIN)
        lost: float | None = None  # when an interrupt that has not come is lost
        while not self._announced:
            if poll.poll(1000 * _CHECK_SECONDS):
                self.drain()
                self._announced = rings.count()
            if self._announced:
                return
            now = time.monotonic()
            if not self._has_answered(rings):
                self._expect_more(rings, late=now >= end)
            elif is_busy(self._driver.status()):
                # One interrupt is for all requests in the ring: it is due when the last one is done.
                if now >= end:
                    raise self._driver.given_up("a response has come, and its interrupt is not due", hangs=True)
            else:
                lost = lost or now + _GRACE_SECONDS
                if now >= lost:
                    raise InterruptLost(f"{self._driver.name} responded, and no interrupt came")

    def _expect_more(self, rings: Rings, *, late: bool) -> None:
        """Look whether a response can still come; raises `DmaTimeout` when not, or when it is too late."""
        status = self._driver.status()
        if not rings.has_come() and (is_gone(status) or status & q.FATAL or late):
            raise self._driver.given_up("no response", hangs=late)

    def drain(self) -> None:
        """Forget interrupts that came before."""
        for event in self._driver.events:
            try:
                os.eventfd_read(event)
            except BlockingIOError:
                continue
