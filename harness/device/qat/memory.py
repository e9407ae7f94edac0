"""How the stub reaches memory for a request: rightly, or as it has been told to do it wrong."""

from __future__ import annotations

import asyncio
import errno

from harness.device.connection import Gone
from harness.device.dma import PAGE, Dma, DmaError, Transfer
from harness.device.mirror import ALL
from harness.device.qat.misbehave import Misbehaviour, Plan
from harness.device.wire import Access

WRONG_BYTE = 0xEE
"""What is written in place of a read."""


class StubMemory:
    """The DMA of one request."""

    def __init__(self, dma: Dma, plan: Plan, state: Misbehaviour) -> None:
        self._own = dma
        self._plan = plan
        self._state = state
        self._waited = False

    async def read(self, iova: int, size: int) -> bytes:
        """Read the request's data."""
        iova, note = await self._place(Access.READ, iova, size)
        if self._plan.how == "write_instead_of_read":
            data = bytes([WRONG_BYTE]) * size
            await self._own.write(iova, data, self._plan.how)
            return data
        if self._plan.through is None:
            return await self._own.read(iova, size, note)
        try:
            return await self._plan.through.read(iova, size, note)
        except Gone:
            raise self._nobody(Access.READ, iova, size) from None

    async def write(self, iova: int, data: bytes) -> None:
        """Write the request's data."""
        iova, note = await self._place(Access.WRITE, iova, len(data))
        if self._plan.through is None:
            await self._own.write(iova, data, note)
            return
        try:
            await self._plan.through.write(iova, data, note)
        except Gone:
            raise self._nobody(Access.WRITE, iova, len(data)) from None

    async def list(self, iova: int, size: int) -> bytes:
        """Read a scatter list, which never goes wrong."""
        return await self._own.read(iova, size)

    async def _place(self, access: Access, iova: int, size: int) -> tuple[int, str]:
        """Wait where the plan says so; gives the IOVA that is really used, and what is odd about it."""
        how = self._plan.how
        stale = self._state.note(access, iova)
        if not self._waited:
            self._waited = True
            if how == "delay":
                await asyncio.sleep(self._plan.milliseconds / 1000)
            elif how == "hold":
                await self._state.held()
        wrong = {"next_page": iova + PAGE, "stale_address": stale}.get(how)
        if wrong is not None and wrong + size <= ALL:
            return wrong, how
        return iova, how if how in ("delay", "hold", "wrong_requester") else ""

    def _nobody(self, access: Access, iova: int, size: int) -> DmaError:
        """The refusal of an access as a function that is gone: nobody has made it, so it is in this one's log."""
        transfer = Transfer(access, iova, size, False, [(iova, size)], errno.ENODEV, self._plan.how)
        self._own.log.add(transfer)
        return DmaError(transfer)
