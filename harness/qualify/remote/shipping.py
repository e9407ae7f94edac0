"""What workers lack is sent to them: images, QEMU builds, modules, libraries; by content hash, once for each cache."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, BinaryIO, Final, TypeVar

from distributed import Client

from harness.errors import HarnessError, InfrastructureError
from harness.guest.payload import Payload
from harness.image import cache, parcel
from harness.qualify.remote import calls
from harness.qualify.remote.orders import Entry, WorkerFacts

CHUNK_BYTES: Final = 4 << 20
TRIES: Final = 3
# What a call on a worker may take; unpacking an image on a slow disk takes the longest.
CALL_SECONDS: Final = 300.0

_T = TypeVar("_T")
Say = Callable[[str], None]


class UnfitWorkerError(InfrastructureError):
    """A worker cannot do its part: its disk is full, or what is sent to it arrives damaged."""


async def call(
    client: Client,
    address: str,
    function: Callable[..., Awaitable[_T]],
    *args: object,
    seconds: float = CALL_SECONDS,
) -> _T:
    """Call a function of ``calls`` on a worker.

    Raises:
        TimeoutError: no answer in ``seconds``.
        OSError: the worker or the scheduler is gone.
        DamagedParcelError, UnfitWorkerError: the function raised this, or another error of the harness.
        Exception: whatever else it raised.
    """
    async with asyncio.timeout(seconds):
        answers: dict[str, Any] = await client.run(function, *args, workers=[address], on_error="return")
    if address not in answers:
        raise ConnectionError(f"the worker {address} is gone")
    answer = answers[address]
    if isinstance(answer, HarnessError) and not isinstance(answer, parcel.DamagedParcelError):
        raise UnfitWorkerError(answer.message, hint=answer.hint) from answer
    if isinstance(answer, BaseException):
        raise answer
    return answer  # type: ignore[no-any-return]


class Shipping:
    """Sends what is lacking. For one session.

    Args:
        client: connected to the scheduler.
        session: its name.
        say: told what is sent.
    """

    def __init__(self, client: Client, session: str, say: Say) -> None:
        self._client = client
        self._session = session
        self._say = say
        self._parcels: dict[Entry, tuple[parcel.Label, BinaryIO]] = {}
        self._packing = asyncio.Lock()
        self._once: dict[Hashable, asyncio.Task[None]] = {}
        self.sent: list[tuple[str, Entry]] = []

    async def supply(self, facts: WorkerFacts, entries: Iterable[Entry], payload: Payload) -> None:
        """Return when a worker has everything; what is there is not sent, what is under way is waited for.

        Raises:
            UnfitWorkerError: the worker cannot keep an entry, or it arrived damaged :data:`TRIES` times.
            InfrastructureError: an entry is not on this machine.
            OSError, TimeoutError: the worker is gone.
        """
        await self._do_once(
            (facts.address, payload.key),
            lambda: call(self._client, facts.address, calls.take_payload, self._session, payload),
        )
        for entry in entries:
            # A cache that several workers share gets it once.
            await self._do_once((facts.cache, entry), lambda entry=entry: self._send(facts, entry))  # type: ignore[misc]

    def close(self) -> None:
        """Give the parcels' space back."""
        for task in self._once.values():
            task.cancel()
        for _, file in self._parcels.values():
            file.close()

    async def _do_once(self, what: Hashable, do: Callable[[], Awaitable[None]]) -> None:
        """Do it, unless it was done; one that failed, or whose worker went away, is done again by the next."""
        while True:
            task = self._once.get(what)
            mine = task is None
            if task is None:
                task = self._once[what] = asyncio.ensure_future(_awaited(do()))
                # When its worker is lost nobody may be left who asks.
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            # Who waits may be cancelled because of a worker; others wait for the same.
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is None:
                return
            if self._once.get(what) is task:
                del self._once[what]
            if mine:
                await task

    async def _send(self, facts: WorkerFacts, entry: Entry) -> None:
        for attempt in range(1, TRIES + 1):
            if await call(self._client, facts.address, calls.is_there, entry):
                return
            label, file = await self._parcel(entry)
            self._say(f"sending the {entry.kind} {entry.key[:12]} to {facts.name}: {label.size // 10**6} MB")
            for offset in range(0, label.size, CHUNK_BYTES):
                data = _chunk(file, offset)
                await call(self._client, facts.address, calls.take_chunk, self._session, entry, offset, data)
            self.sent.append((facts.name, entry))
            try:
                await call(self._client, facts.address, calls.take_parcel, self._session, label)
            except parcel.DamagedParcelError as error:
                if attempt == TRIES:
                    raise UnfitWorkerError(f"{error.message}, {TRIES} times") from error
                self._say(f"{facts.name}: {error.message}; sending it again")
            else:
                return

    async def _parcel(self, entry: Entry) -> tuple[parcel.Label, BinaryIO]:
        async with self._packing:
            if entry not in self._parcels:
                found = await asyncio.to_thread(cache.by_key, entry.kind, entry.key)
                self._parcels[entry] = await asyncio.to_thread(parcel.pack, found)
            return self._parcels[entry]


def _chunk(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    return file.read(CHUNK_BYTES)


async def _awaited(doing: Awaitable[None]) -> None:
    await doing
