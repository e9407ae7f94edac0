"""A scheduler and workers in this process, on the loopback; cells that start nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from distributed import Scheduler, Worker

from harness.guest.payload import Payload
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.paths import scenarios_dir
from harness.qualify.executor import Ended, Work
from harness.qualify.remote.dispatch import Dispatch
from harness.results import CellResult, Outcome, Progress
from harness.run.cells import Cell
from harness.run.options import RunOptions
from harness.run.resources import Emulation, Resources
from harness.scenario import load_scenario

FILE = scenarios_dir() / "bare" / "read_unmapped.yaml"
GIB = 1 << 30


def cell(name: str, file: Path = FILE) -> Cell:
    return Cell(load_scenario(file).located(name, file), "system", "", name)


def resources(accelerator: str = "tcg", version: str = "9.9") -> Resources:
    build = QemuBuild("system", version, "b" * 64, ("qemu",), {}, None)
    decision = Decision(accelerator, "said so")  # type: ignore[arg-type]
    emulation = Emulation(build, Capabilities("pc-q35-9.9", True, {}, frozenset()), decision)
    return Resources({"system": emulation}, {}, Payload(b"data", "p"))


def passed(one: Cell, **more: object) -> CellResult:
    fields = {"scenario": one.name, "title": "t", "source": "s", "file": "f", "outcome": Outcome.PASS}
    return CellResult.model_validate({**fields, **more})


class Heard(Progress):
    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.done: list[CellResult] = []
        self.messages: list[str] = []

    def cell_stage(self, scenario: str, stage: str) -> None:
        self.stages.append((scenario, stage))

    def cell_finished(self, result: CellResult) -> None:
        self.done.append(result)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Rig:
    """Runs cells on workers in this process.

    Args:
        folder: for everything that is written.
        run: what stands in the place of ``run_and_write`` on the workers; called in threads.
    """

    def __init__(self, folder: Path, run: Callable[..., CellResult]) -> None:
        self.folder = folder
        self.run_one = run
        self.heard = Heard()
        self.attempts: list[tuple[int, CellResult]] = []
        self.again: Callable[[int, CellResult], bool] = lambda index, result: False
        self.workers: dict[str, Worker] = {}
        self.scheduler: Scheduler
        self.stack: AsyncExitStack
        self.dispatch: Dispatch
        self.address = ""

    def __call__(
        self,
        names: Sequence[str] | Sequence[Cell],
        workers: dict[str, dict[str, Any]] | None = None,
        *,
        wait: float = 0.2,
        using: Resources | None = None,
        beside: Callable[[], Any] | None = None,
    ) -> Ended:
        cells = [cell(name) if isinstance(name, str) else name for name in names]

        def keep(index: int, result: CellResult) -> bool:
            self.attempts.append((index, result))
            return self.again(index, result)

        def folder(index: int) -> Path:
            return self.folder / f"{index}-{len(self.attempts)}"

        async def main() -> Ended:
            work = Work(cells, range(len(cells)), using or resources(), RunOptions(), 1, folder, keep)
            async with self.cluster({"one": {}} if workers is None else workers):
                self.dispatch = Dispatch(self.address, "test", work, self.heard, wait)
                running = asyncio.ensure_future(self.dispatch.run())
                if beside is not None:
                    await beside()
                return await asyncio.wait_for(running, 60)

        return asyncio.run(main())

    @asynccontextmanager
    async def cluster(self, workers: dict[str, dict[str, Any]]) -> AsyncIterator[None]:
        async with AsyncExitStack() as self.stack:
            self.scheduler = Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0")
            await self.stack.enter_async_context(self.scheduler)
            self.address = self.scheduler.address
            for name, more in workers.items():
                await self.stack.enter_async_context(self.worker(name, **more))
            yield

    def worker(self, name: str, threads: int = 1, **has: float) -> Worker:
        self.workers[name] = Worker(
            self.address,
            name=name,
            nthreads=threads,
            host="127.0.0.1",
            dashboard=False,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            resources={"memory": 8 * GIB, "kvm": 0, **has},
            local_directory=str(self.folder),
        )
        return self.workers[name]

    @property
    def outcomes(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for index, result in self.attempts:
            found.setdefault(index, []).append(str(result.failure_class or result.outcome))
        return found
