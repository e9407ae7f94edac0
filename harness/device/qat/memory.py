"""How the stub reaches memory for a request: rightly, or as it has been told to do it wrong."""

from __future__ import annotations

import asyncio

from harness.device.dma import PAGE, Dma
from harness.device.qat.misbehave import Misbehaviour, Plan

_WRONG_BYTE = b"\xee"


class StubMemory:
    """The DMA of one request."""

    def __init__(self, dma: Dma, plan: Plan, state: Misbehaviour) -> None:
        self._own = dma
        self._plan = plan
        self._state = state
        self._waited = False
        self._dma = plan.through if plan.how == "wrong_requester" and plan.through is not None else dma

    async def _place(self, iova: int, stale: int | None) -> int:
        """Wait where the plan says so; gives the IOVA that is really used."""
        if not self._waited:
            self._waited = True
            if self._plan.how == "delay":
                await asyncio.sleep(self._plan.milliseconds / 1000)
            elif self._plan.how == "hold":
                await self._state.held()
        if self._plan.how == "next_page":
            return iova + PAGE
        if self._plan.how == "stale_address" and stale is not None:
            return stale
        return iova

    async def read(self, iova: int, size: int) -> bytes:
        """Read the request's data."""
        last = self._state.last
        iova = await self._place(iova, last.source if last and last.source else None)
        if self._plan.how == "write_instead_of_read":
            await self._dma.write(iova, _WRONG_BYTE * size, self._plan.how)
            return _WRONG_BYTE * size
        return await self._dma.read(iova, size, self._plan.how)

    async def write(self, iova: int, data: bytes) -> None:
        """Write the request's data."""
        last = self._state.last
        iova = await self._place(iova, last.destination if last and last.destination else None)
        await self._dma.write(iova, data, self._plan.how)

    async def list(self, iova: int, size: int) -> bytes:
        """Read a scatter list, which never goes wrong."""
        return await self._own.read(iova, size)
