"""A qualification's run on workers: one thread, one queue of what happens, one place that decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from distributed import Client, Future
from distributed.client import FutureCancelledError

from harness import __version__
from harness.errors import HarnessError, InfrastructureError
from harness.qualify.executor import Ended, Work
from harness.qualify.remote import calls
from harness.qualify.remote.evidence import localized, unpack_folder
from harness.qualify.remote.orders import (
    Answer,
    CellOrder,
    Entry,
    WorkerFacts,
    make_order,
    needs_of,
    source_key,
    template_of,
)
from harness.qualify.remote.placement import Host, Placement, describe
from harness.qualify.remote.session import BEGIN, plugin_name
from harness.qualify.remote.shipping import Shipping, UnfitWorkerError, call
from harness.report.json_report import write_cell
from harness.results import CellResult, Progress
from harness.run.cell import cell_facts
from harness.run.crew import STOP_SECONDS
from harness.run.outcome import errored

CONNECT_SECONDS: Final = 10.0
# A cell whose workers are lost again and again is what loses them.
LOSSES: Final = 3
# KVM is tried for two seconds at most, and each QEMU build asked for its version.
_JOIN_SECONDS: Final = 60.0
_ROUND_SECONDS: Final = 0.05

_Event = Callable[[], None]


class Dispatch:
    """One run. For one use, in one event loop.

    Args:
        address: the scheduler's.
        session: a name that no other run has.
        work: the cells.
        progress: told what happens.
        wait: seconds to wait for a worker when there is none.
    """

    def __init__(self, address: str, session: str, work: Work, progress: Progress, wait: float) -> None:
        self._address = address
        self._session = session
        self._work = work
        self._progress = progress
        self._wait = wait
        self._client: Client
        self._shipping: Shipping
        self._needs = {index: needs_of(work.cells[index], work.resources) for index in work.order}
        groups = {index: template_of(work.cells[index]) for index in work.order}
        self._placement = Placement(self._needs, groups, work.order)
        # What happens is put here by whoever sees it, and dealt with one after the other.
        self._news: asyncio.Queue[_Event] = asyncio.Queue()
        self._hosts: dict[str, Host] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._futures: dict[int, Future[Answer]] = {}
        self._orders: dict[str, int] = {}
        self._stages: dict[int, str] = {}
        self._number = 0
        self._lost: Counter[int] = Counter()
        self._notes: list[str] = []
        self._interrupted = False
        self._started = False
        self._error: BaseException | None = None

    def interrupt(self) -> None:
        """Have it end soon; in the loop's thread."""
        self._news.put_nowait(self._on_interrupt)

    async def run(self) -> Ended:
        """Run everything.

        Raises:
            InfrastructureError: see ``DaskExecutor.run``.
            Exception: what ``Work.again`` raised.
        """
        left: tuple[int, ...] = ()
        async with self._connected():
            try:
                await self._work_through()
            finally:
                left = await self._stop()
        if self._error is not None:
            raise self._error
        return Ended(self._interrupted, left, tuple(self._notes))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        try:
            client = await Client(self._address, asynchronous=True, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InfrastructureError(
                f"the scheduler {self._address} cannot be reached: {error}", hint="start one with 'dask scheduler'"
            ) from error
        self._client = client
        self._shipping = Shipping(client, self._session, self._progress.message)
        try:
            yield
        finally:
            self._shipping.close()
            with contextlib.suppress(OSError, TimeoutError):
                await client.close(timeout=STOP_SECONDS)

    async def _work_through(self) -> None:
        try:
            await self._listen()
            # Without a number Dask names five workers at most.
            known = await self._client.scheduler.identity(n_workers=-1) if self._client.scheduler else {}
        except (OSError, TimeoutError) as error:
            raise self._gone() from error
        for address in known.get("workers", ()):
            self._join(address)
        if not self._joining:
            self._progress.message(f"no worker yet: start one with 'harness worker {self._address}'")
        while self._error is None and not self._interrupted:
            self._send_out()
            if self._error is not None or not (self._tasks or self._placement.waiting):
                return
            try:
                event = await asyncio.wait_for(self._news.get(), None if self._tasks or self._joining else self._wait)
            except TimeoutError:
                self._give_up()
            else:
                event()

    async def _listen(self) -> None:
        """Hear of workers and cells from now on.

        Dask does not say when a subscription has begun; so we call until we hear ourselves. What comes between that and
        the question which workers there are is not missed.
        """
        topic = plugin_name(self._session)
        heard = asyncio.Event()
        self._client.subscribe_topic("all", self._on_cluster)
        self._client.subscribe_topic(topic, lambda event: heard.set())
        async with asyncio.timeout(CONNECT_SECONDS):
            while not heard.is_set():
                await self._client.log_event(topic, [])
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(heard.wait(), _ROUND_SECONDS)
        self._client.subscribe_topic(topic, self._on_cell)

    def _send_out(self) -> None:
        """Have each worker that has room begin a cell."""
        if not self._started:
            # Before the first cell the workers that are there have said what they have, and it is enough.
            if self._joining or not self._hosts:
                return
            impossible = self._placement.impossible(list(self._hosts.values()))
            if impossible:
                self._error = self._refusal(impossible)
                return
            self._started = True
        for address, host in self._hosts.items():
            while (index := self._placement.next_for(host, self._hosts.values())) is not None:
                self._number += 1
                order = make_order(
                    self._number, self._session, self._work.cells[index], self._work.resources, self._work.options
                )
                self._orders[order.key] = index
                self._tasks[index] = asyncio.create_task(self._one(index, order, address))

    def _refusal(self, impossible: list[int]) -> InfrastructureError:
        names = [self._work.cells[index].name for index in impossible]
        return self._placement.refusal(impossible, names, list(self._hosts.values()))

    def _give_up(self) -> None:
        """Nothing runs, cells wait, and no worker came."""
        waiting = self._placement.waiting
        impossible = self._placement.impossible(list(self._hosts.values()))
        if self._hosts and impossible:
            self._error = self._refusal(impossible)
            return
        refused = f" ({'; '.join(self._notes)})" if self._notes else ""
        self._error = InfrastructureError(
            f"the scheduler {self._address} has no worker that can be used{refused}: {len(waiting)} cells were not run",
            hint=f"start one with 'harness worker {self._address}'",
        )

    # One cell, and one worker: what takes time, each in a task of its own. They change nothing but through the queue.

    async def _one(self, index: int, order: CellOrder, address: str) -> None:
        host = self._hosts[address]
        payload = self._work.resources.payload
        try:
            await self._shipping.supply(host.facts, order.entries, payload)
        except Exception as error:
            self._news.put_nowait(partial(self._on_unsupplied, index, host, error))
            return
        future = self._futures[index] = self._client.submit(
            calls.run_cell_here,
            order,
            key=order.key,
            workers=[address],
            allow_other_workers=False,
            resources=self._needs[index].resources,
            pure=False,
        )
        try:
            answer = await future
        except Exception as error:
            self._news.put_nowait(partial(self._on_broken, index, host, error))
        else:
            self._news.put_nowait(partial(self._on_answer, index, host, answer))

    def _join(self, address: str) -> None:
        if address not in self._joining and address not in self._hosts:
            self._joining[address] = asyncio.create_task(self._ask(address))

    async def _ask(self, address: str) -> None:
        def join() -> Awaitable[WorkerFacts]:
            return call(self._client, address, calls.join, self._session, source_key(), seconds=_JOIN_SECONDS)

        try:
            facts = await join()
            if facts.source == source_key() and any(needs.kvm for needs in self._needs.values()) and not facts.kvm:
                # KVM is believed after a QEMU has run under it; the worker may have none yet.
                builds = [one.build for one in self._work.resources.emulations.values() if one.build.folder is not None]
                first = [Entry("qemu", one.key) for one in builds[:1]]
                await self._shipping.supply(facts, first, self._work.resources.payload)
                facts = await call(
                    self._client, address, calls.join, self._session, source_key(), seconds=_JOIN_SECONDS
                )
        except Exception as error:
            reason = f"the worker {address} is not used: it cannot say what it has: {type(error).__name__}: {error}"
            self._news.put_nowait(lambda: self._on_refused(address, reason))
            return
        if facts.source != source_key():
            reason = (
                f"the worker {facts.name} ({address}) is not used: its harness {facts.version} "
                f"(sources {facts.source[:12]}) is not this one, {__version__} ({source_key()[:12]})"
            )
            self._news.put_nowait(lambda: self._on_refused(address, reason))
        else:
            self._news.put_nowait(lambda: self._on_joined(facts))

    # What Dask says, as it comes.

    def _on_cluster(self, event: tuple[float, Any]) -> None:
        what = event[1] if isinstance(event[1], dict) else {}
        address = str(what.get("worker", ""))
        if what.get("action") == "add-worker":
            self._news.put_nowait(lambda: self._join(address))
        elif what.get("action") == "remove-worker":
            self._news.put_nowait(lambda: self._on_lost(address))

    def _on_cell(self, event: tuple[float, Any]) -> None:
        if not event[1]:
            return
        key, kind, text = event[1]
        index = self._orders.get(key)
        if index is None or index not in self._tasks:
            return
        if kind == "message":
            self._progress.message(text)
        else:
            self._stages[index] = text
            if text != BEGIN:
                self._progress.cell_stage(self._work.cells[index].name, text)

    # What happens, one after the other.

    def _on_interrupt(self) -> None:
        self._interrupted = True

    def _on_joined(self, facts: WorkerFacts) -> None:
        self._joining.pop(facts.address, None)
        self._hosts[facts.address] = Host(facts)
        late = " joined late:" if self._started else ""
        self._progress.message(f"worker{late} {describe(facts)}")

    def _on_refused(self, address: str, reason: str) -> None:
        if self._joining.pop(address, None) is not None:
            self._note(reason)

    def _on_lost(self, address: str) -> None:
        joining = self._joining.pop(address, None)
        if joining is not None:
            joining.cancel()
        self._drop(address, "")

    def _drop(self, address: str, reason: str) -> None:
        """A worker is gone, or is not used any more for a reason: what was sent to it runs elsewhere."""
        host = self._hosts.pop(address, None)
        if host is None:
            return
        lost = list(host.running)
        host.running.clear()
        begun = [index for index in lost if index in self._stages]
        names = ", ".join(self._work.cells[index].name for index in begun) or "no cell"
        what = f"is not used any more: {reason}; it ran" if reason else "was lost while it ran"
        self._note(f"the worker {host.facts.name} ({address}) {what} {names}")
        again = []
        for index in lost:
            stage = self._stages.get(index)
            self._forget(index)
            if stage is None:
                again.append(index)
                continue
            self._lost[index] += 1
            why = reason or "it was lost"
            message = f"the worker {host.facts.name} did not end this cell, which was in its stage '{stage}': {why}"
            result = errored(InfrastructureError(message), cell_facts(self._work.cells[index]))
            # It was no fault of the cell's; but a cell that ends each worker must not end them all.
            if self._hand_over(index, result) or self._lost[index] < LOSSES:
                again.append(index)
        self._placement.put_back(again)

    def _on_answer(self, index: int, host: Host, answer: Answer) -> None:
        if index not in host.running:
            return
        folder = self._work.folder(index)
        result = localized(answer, folder)
        try:
            unpack_folder(answer.evidence, folder)
            if result.folder:
                write_cell(result, folder)
        except (OSError, HarnessError) as error:
            # Such a result is worth nothing without its evidence; and here the disk is full for every cell.
            self._error = error if isinstance(error, HarnessError) else InfrastructureError(f"{folder}: {error}")
            return
        self._finished(index, host, result)

    def _on_unsupplied(self, index: int, host: Host, error: Exception) -> None:
        """A worker did not get what a cell runs on: it cannot keep it, or this machine does not have it."""
        if isinstance(error, HarnessError) and not isinstance(error, UnfitWorkerError):
            self._error = error
        else:
            self._on_broken(index, host, error)

    def _on_broken(self, index: int, host: Host, error: Exception) -> None:
        """A cell came to nothing: because of the scheduler, its worker, or a defect."""
        if index not in host.running:
            return
        if isinstance(error, FutureCancelledError) or self._scheduler_lost:
            self._error = self._gone()
        elif isinstance(error, HarnessError | OSError | TimeoutError):
            # A worker whose disk is full would go through all cells in no time.
            self._drop(host.facts.address, str(error) or "it does not answer")
        else:
            message = f"on the worker {host.facts.name}: {type(error).__name__}: {error}"
            self._finished(index, host, errored(InfrastructureError(message), cell_facts(self._work.cells[index])))

    def _gone(self) -> InfrastructureError:
        return InfrastructureError(
            f"the scheduler {self._address} was lost; what has come back is kept",
            hint="start scheduler and workers again, and go on with --resume",
        )

    @property
    def _scheduler_lost(self) -> bool:
        comm = self._client.scheduler_comm
        return self._client.status != "running" or comm is None or comm.comm.closed()

    def _finished(self, index: int, host: Host, result: CellResult) -> None:
        del host.running[index]
        self._forget(index)
        if self._hand_over(index, result):
            self._placement.put_back([index])

    def _hand_over(self, index: int, result: CellResult) -> bool:
        again = self._work.again(index, result)
        self._progress.cell_finished(result)
        return again

    def _forget(self, index: int) -> None:
        self._stages.pop(index, None)
        task = self._tasks.pop(index, None)
        if task is not None:
            task.cancel()
        future = self._futures.pop(index, None)
        if future is not None:
            future.release()

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._progress.message(text)

    async def _stop(self) -> tuple[int, ...]:
        """End what still runs on the workers; the cells that did not end in time."""
        for task in (*self._tasks.values(), *self._joining.values()):
            task.cancel()
        if self._client.status != "running":
            return tuple(sorted(self._tasks))
        left: set[int] = set()
        try:
            async with asyncio.timeout(2 * STOP_SECONDS):
                for topic in ("all", plugin_name(self._session)):
                    self._client.unsubscribe_topic(topic)
                if self._futures:
                    await self._client.cancel(list(self._futures.values()), force=True)
                while self._tasks and (left := await self._still_running()):
                    await asyncio.sleep(_ROUND_SECONDS)
                if self._hosts:
                    await self._client.run(calls.leave, self._session, workers=list(self._hosts), on_error="ignore")
        except (OSError, TimeoutError):
            left = left or set(self._tasks)
        return tuple(sorted(left))

    async def _still_running(self) -> set[int]:
        keys = await self._client.run(calls.running, self._session, workers=list(self._hosts), on_error="ignore")
        return {self._orders[key] for found in keys.values() for key in found}
