"""What a worker keeps for one qualification, as a plugin of its Dask worker: payloads, parcels, running cells."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from distributed import Worker, WorkerPlugin

from harness.guest.payload import Payload
from harness.image.build import image_of_key
from harness.image.library import library_of_key
from harness.image.module import module_of_key
from harness.machine.builds import build_of_key, find_build
from harness.machine.emulator import stop_all
from harness.machine.probe import capabilities
from harness.qualify.remote.evidence import pack_folder
from harness.qualify.remote.orders import Answer, CellOrder, Entry
from harness.results import Progress
from harness.run.resources import Emulation, Resources
from harness.run.schedule import run_and_write
from harness.stopping import stopped_by

_ROUND_SECONDS: Final = 0.05
BEGIN: Final = "begin"


def plugin_name(session: str) -> str:
    """How a session's plugin is called in a worker."""
    return f"usdm-harness-{session}"


class CellStoppedError(Exception):
    """The cell was ended under way; nobody waits for its result."""


@dataclass(slots=True)
class _Running:
    """A cell that is being run: what stops it, and what says that it has ended."""

    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        """Kill its guests until its thread has ended: one that was just being started is caught by a later round."""
        self.stop.set()
        while not self.ended.wait(_ROUND_SECONDS):
            stop_all(self.stop)


class Session(WorkerPlugin):
    """One qualification's things in one worker.

    Attributes:
        payloads: what is sent into guests, by key.
        incoming: parcels that have not come whole yet.
    """

    def __init__(self, name: str) -> None:
        self.name = plugin_name(name)
        self.topic = self.name
        self.payloads: dict[str, Payload] = {}
        self.incoming: dict[Entry, BinaryIO] = {}
        self._running: dict[str, _Running] = {}
        self._emulations: dict[tuple[str, str | None], Emulation] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def running(self) -> tuple[str, ...]:
        """Keys of the cells that have not ended."""
        return tuple(self._running)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Dask's word on a task. It cannot end a thread; we end the guests that the thread waits for."""
        cell = self._running.get(str(key))
        if cell is not None and start in ("executing", "long-running") and finish == "released":
            threading.Thread(target=cell.end, name=f"stop-{key}", daemon=True).start()

    def teardown(self, worker: Worker) -> None:
        """The session is over, or the worker is: whatever still runs is ended."""
        self._closed = True
        for key, cell in list(self._running.items()):
            threading.Thread(target=cell.end, name=f"stop-{key}", daemon=True).start()
        for parcel in self.incoming.values():
            parcel.close()
        self.incoming.clear()

    def run(self, order: CellOrder, worker: Worker) -> Answer:
        """Run a cell, in a thread of the worker's.

        Raises:
            CellStoppedError: it was to stop.
            HarnessError: what it runs on is not here, or damaged.
        """
        cell = self._running[order.key] = _Running()
        top = Path(tempfile.mkdtemp(prefix="cell-", dir=worker.local_directory))
        try:
            if self._closed:
                raise CellStoppedError(order.cell.name)
            with stopped_by(cell.stop):
                where = top / order.cell.folder_name
                telling = _Telling(lambda *words: worker.log_event(self.topic, [order.key, *words]))
                telling.cell_stage("", BEGIN)
                resources = self._resources(order)
                result = run_and_write(order.cell, resources, order.options, where, telling)
            return Answer(result, str(where), pack_folder(where))
        except KeyboardInterrupt:
            # As it is it would end the worker.
            raise CellStoppedError(order.cell.name) from None
        finally:
            cell.ended.set()
            del self._running[order.key]
            shutil.rmtree(top, ignore_errors=True)

    def _resources(self, order: CellOrder) -> Resources:
        """What the cell runs on, as it is on this machine."""
        cell = order.cell
        image = image_of_key(order.image) if order.image else None
        module = module_of_key(order.module) if order.module else None
        return Resources(
            emulations={cell.qemu: self._emulation(order)},
            images={cell.kernel: image} if image else {},
            payload=self.payloads[order.payload],
            library=library_of_key(order.library) if order.library else None,
            modules={cell.kernel: module} if module else {},
            no_module={cell.kernel: order.no_module} if order.no_module else {},
        )

    def _emulation(self, order: CellOrder) -> Emulation:
        """The QEMU build, and what it can do here; tried once."""
        which = (order.cell.qemu, order.qemu)
        with self._lock:
            if which not in self._emulations:
                build = build_of_key(order.cell.qemu, order.qemu) if order.qemu else find_build(order.cell.qemu)
                self._emulations[which] = Emulation(build, capabilities(build), order.accelerator)
            return self._emulations[which]


class _Telling(Progress):
    """Sends what happens in a cell to the qualification, as Dask's events."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell

    def cell_stage(self, scenario: str, stage: str) -> None:
        """A stage begins."""
        self._tell("stage", stage)

    def message(self, text: str) -> None:
        """A template is being made, and the like."""
        self._tell("message", text)
