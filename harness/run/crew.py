"""The threads that cells run in, and how Ctrl-C ends them.

It must be impossible to hang here. Every wait on a guest ends when its QEMU is killed; a wait for a lock looks at
:mod:`harness.stopping`; a new stage is not entered. What ends in none of these ways is left behind: the threads are
daemons, the process can end without them, and a QEMU that one of them may still start ends with the process.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from types import FrameType

from harness.deadline import Deadline
from harness.machine.emulator import stop_all
from harness.results import CellResult
from harness.stopping import stopped_by

# How long threads may take to end after their guests were killed.
STOP_SECONDS = 1.5
# A guest that was just being started when the others were killed is caught by a later round.
_ROUND_SECONDS = 0.05
_SIGNAL_SECONDS = 0.2


class _Event(Enum):
    ENDED = auto()
    INTERRUPTED = auto()


class Crew:
    """Runs cells in threads. For one use.

    Args:
        run_one: runs the cell of an index. Called in several threads at once, in which ``harness.stopping.check``
            raises when all is to stop.

    Attributes:
        results: what was done, by index.
        interrupted: Ctrl-C ended it.
        left: the cells whose threads did not end in time.
    """

    def __init__(self, run_one: Callable[[int], CellResult]) -> None:
        self.results: dict[int, CellResult] = {}
        self.interrupted = False
        self.left: list[int] = []
        self._run_one = run_one
        self._stopping = threading.Event()
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        # Read by the thread that calls run(). Of all queues only this kind may be written in a signal handler.
        self._news: queue.SimpleQueue[_Event | BaseException | tuple[int, CellResult]] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._running = 0
        self._at: dict[int, int] = {}

    def run(self, order: Iterable[int], jobs: int) -> None:
        """Run all cells, started in this order.

        Ctrl-C ends it within :data:`STOP_SECONDS`; in the main thread further ones change nothing.

        Args:
            order: the cells' indices.
            jobs: how many at once, >= 1.

        Raises:
            BaseException: the first thing that ``run_one`` raised; the other cells were stopped.
        """
        for index in order:
            self._waiting.put(index)
        with on_sigint(lambda: self._news.put(_Event.INTERRUPTED)):
            try:
                for number in range(jobs):
                    threading.Thread(target=self._work, args=(number,), name=f"cell-{number}", daemon=True).start()
                    self._running += 1
                while self._running and not self.interrupted and self._error is None:
                    # Not for ever: a signal that comes just before this wait begins does not end it.
                    with contextlib.suppress(queue.Empty):
                        self._take(self._news.get(timeout=_SIGNAL_SECONDS))
            finally:
                self._stop()
        if self._error is not None:
            raise self._error

    def _take(self, news: _Event | BaseException | tuple[int, CellResult]) -> None:
        if news is _Event.ENDED:
            self._running -= 1
        elif news is _Event.INTERRUPTED:
            self.interrupted = True
        elif isinstance(news, tuple):
            self.results[news[0]] = news[1]
        elif isinstance(news, BaseException) and not self._stopping.is_set():
            self._error = self._error or news

    def _stop(self) -> None:
        """End every guest and wait for the threads; nothing when they have ended."""
        self._stopping.set()
        limit = Deadline.after(STOP_SECONDS)
        while self._running and not (limit.expired and self._news.empty()):
            stop_all()
            with contextlib.suppress(queue.Empty):
                self._take(self._news.get(timeout=_ROUND_SECONDS))
        if self._running:
            stop_all()
            self.left = sorted(self._at.values())

    def _work(self, number: int) -> None:
        """A thread: cell after cell."""
        try:
            with stopped_by(self._stopping):
                while not self._stopping.is_set():
                    index = self._waiting.get_nowait()
                    self._at[number] = index
                    self._news.put((index, self._run_one(index)))
        except queue.Empty:
            pass
        except BaseException as error:
            self._news.put(error)
        finally:
            self._at.pop(number, None)
            self._news.put(_Event.ENDED)


@contextlib.contextmanager
def on_sigint(handle: Callable[[], object]) -> Iterator[None]:
    """Have SIGINT call ``handle`` while the block lasts, where it would raise otherwise.

    Where it is ignored (a job in the background) or ends the process it stays so. Only the main thread may change it.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        handle()

    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
