"""Cells on Dask's workers, all of them processes of this machine on its loopback: what is sent, lost, and left."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import copy_template

from harness.errors import InfrastructureError
from harness.machine.template import Template
from harness.paths import scenarios_dir
from harness.qualify.executor import Ended, LocalExecutor, Work, make_executor
from harness.results import CellResult, Outcome, Progress
from harness.run.cells import Cell, prepare_cells, prepare_for
from harness.run.options import RunOptions
from harness.run.resources import Resources

GUESTS = ("dma/unmapped_read", "dma/unmapped_write", "dma/roundtrip_allocated")
BARE = tuple(
    f"bare/{name}"
    for name in ("read_unmapped", "write_unmapped", "root_absent", "context_absent", "two_domains", "nvme", "overflow")
)
GIVE_UP = 60.0


class Watcher(Progress):
    """Notes what happens, and does something at the first stage of a cell that it is asked to look at."""

    def __init__(self, do: Callable[[str, str], bool] = lambda cell, stage: True) -> None:
        self.messages: list[str] = []
        self.done: list[str] = []
        self._do = do
        self.acted = False

    def cell_stage(self, scenario: str, stage: str) -> None:
        if not self.acted:
            self.acted = self._do(scenario, stage)

    def cell_finished(self, result: CellResult) -> None:
        self.done.append(result.scenario)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Bench:
    """A scheduler, workers, and cells to run on them."""

    def __init__(self, stack: ExitStack, tmp_path: Path) -> None:
        self._stack = stack
        self._tmp = tmp_path
        self.address = ""
        words = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        self.scheduler = self._start([sys.executable, "-m", "distributed.cli.dask_scheduler", *words])
        self.address = self._said(self.scheduler, r"Scheduler at:\s+(\S+)")
        self.results: dict[int, list[CellResult]] = {}

    def worker(self, name: str, jobs: int = 1, cache: Path | None = None) -> psutil.Process:
        """Start a worker; it has registered when this returns."""
        env = {"XDG_STATE_HOME": str(self._tmp / f"state-{name}")}
        env |= {"XDG_CACHE_HOME": str(cache)} if cache else {}
        words = [sys.executable, "-m", "harness", "worker", self.address, "-j", str(jobs), "--name", name]
        process = self._start(words, env)
        self._said(process, rf"(worker {name} at \S+)")
        return psutil.Process(process.pid)

    def run(self, cells: list[Cell], resources: Resources, progress: Progress, executor: str = "dask") -> Ended:
        """Run cells, each result of each attempt into ``results``."""
        folders: list[Path] = []

        def folder(index: int) -> Path:
            folders.append(self._tmp / executor / f"{len(folders)}-{cells[index].folder_name}")
            folders[-1].parent.mkdir(exist_ok=True)
            return folders[-1]

        def again(index: int, result: CellResult) -> bool:
            self.results.setdefault(index, []).append(result)
            return False

        work = Work(cells, range(len(cells)), resources, RunOptions(), 1, folder, again)
        made = LocalExecutor() if executor == "local" else make_executor("dask", self.address)
        return made.run(work, progress)

    def _start(self, words: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(env or {})}
        )
        self._stack.callback(_end, process)
        return process

    def _said(self, process: subprocess.Popen[str], pattern: str) -> str:
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError("".join(said))


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=GIVE_UP)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path)


@pytest.fixture(scope="module")
def prepared() -> tuple[list[Cell], Resources]:
    files = tuple(scenarios_dir() / f"{name}.yaml" for name in (*GUESTS, *BARE))
    return prepare_cells(RunOptions(paths=files, fetch=True), print)


def with_library(cells: list[Cell]) -> tuple[list[Cell], Resources]:
    """The same, and as the last one a cell whose steps run on the C library."""
    (one,) = [cell for cell in cells if cell.scenario.id == "dma/roundtrip_allocated"]
    last = replace(one, name=f"{one.name} [libusdm]", implementation="libusdm", libusdm="26.08")
    return prepare_for([*cells, last], RunOptions(fetch=True), print)


def guests_of(process: psutil.Process) -> list[psutil.Process]:
    """The QEMUs below a process; a launcher that is about to become one too."""
    return [one for one in process.children(recursive=True) if one.is_running()]


def seen(result: CellResult) -> object:
    """What must be the same wherever a cell runs: no times, no addresses of memory."""
    assert result.verdict is not None
    assert result.versions is not None
    checks = [(check.name, check.passed, check.expected) for check in result.verdict.checks]
    faults = [
        (one.witness, one.requester, one.access, one.address, one.reason, one.step) for one in result.verdict.faults
    ]
    return result.scenario, result.outcome, checks, faults, result.versions, result.rerun, result.file, result.start


def test_a_killed_worker_costs_an_attempt_and_no_result(
    bench: Bench, prepared: tuple[list[Cell], Resources], template: Template, tmp_path: Path
):
    cells, resources = with_library(prepared[0])
    killed = bench.worker("first")
    # It has nothing but the template, which it would make itself otherwise.
    (cache := tmp_path / "cache" / "usdm-harness").mkdir(parents=True)
    copy_template(template, cache)
    bench.worker("second", cache=tmp_path / "cache")
    victims: list[psutil.Process] = []

    def kill(cell: str, stage: str) -> bool:
        victims.extend(guests_of(killed))
        if victims:
            killed.kill()
        return bool(victims)

    watcher = Watcher(kill)
    ended = bench.run(cells, resources, watcher)
    attempts, bench.results = bench.results, {}

    assert not ended.interrupted
    assert sorted(attempts) == list(range(len(cells)))
    assert [results[-1].outcome for results in attempts.values()] == [Outcome.PASS] * len(cells)
    lost = {index: results for index, results in attempts.items() if len(results) > 1}
    assert len(lost) == 1, "one cell was running on the worker"
    (results,) = lost.values()
    assert [str(one.failure_class) for one in results[:-1]] == ["infrastructure"]
    assert "worker first" in results[0].message
    assert [note for note in ended.notes if "worker first" in note and results[0].scenario in note]
    assert psutil.wait_procs(victims, GIVE_UP)[1] == [], "no QEMU outlives its worker"

    sent = [text for text in watcher.messages if text.startswith("sending")]
    assert len(sent) == len({*sent}) == 3, sent
    assert all("to second" in text for text in sent), "the first worker shares the user's cache"
    for index, results in attempts.items():
        folder = Path(results[-1].folder)
        assert folder.is_relative_to(tmp_path / "dask")
        assert CellResult.model_validate_json((folder / "verdict.json").read_text()).folder == str(folder)
        logs = ("qemu.log", "qemu.sh", "qmp.log", "console.log", "kernel.log") if cells[index].kernel else ("qemu.log",)
        assert [name for name in logs if not (folder / name).is_file()] == []

    bench.run(cells, resources, Progress(), "local")
    assert [seen(bench.results[index][-1]) for index in attempts] == [seen(attempts[index][-1]) for index in attempts]


def test_ctrl_c_ends_the_guests_of_the_workers(bench: Bench, prepared: tuple[list[Cell], Resources]):
    cells, resources = prepared
    worker = bench.worker("only")
    victims: list[psutil.Process] = []

    def interrupt(cell: str, stage: str) -> bool:
        if stage != "steps":
            return False
        victims.extend(guests_of(worker))
        os.kill(os.getpid(), signal.SIGINT)
        return True

    ended = bench.run(cells[:2], resources, Watcher(interrupt))

    assert ended.interrupted
    assert ended.left == ()
    assert victims
    assert psutil.wait_procs(victims, GIVE_UP)[1] == []
    assert worker.is_running()
    assert guests_of(worker) == []
    assert bench.run(cells[3:4], resources, Progress()) == Ended(), "the worker is of use again"


def test_a_lost_scheduler_keeps_what_has_come(bench: Bench, prepared: tuple[list[Cell], Resources]):
    cells, resources = prepared
    worker = bench.worker("only")

    class Killer(Watcher):
        def cell_finished(self, result: CellResult) -> None:
            super().cell_finished(result)
            bench.scheduler.kill()

    with pytest.raises(InfrastructureError, match=r"scheduler .* was lost") as caught:
        bench.run(cells[3:], resources, Killer())
    assert "--resume" in str(caught.value.hint)
    # It is told in our words: of a reconnection that fails Dask would print a traceback, sooner or later.
    assert not logging.getLogger("distributed.client").isEnabledFor(logging.ERROR)
    assert [one.outcome for results in bench.results.values() for one in results] == [Outcome.PASS]
    assert worker.wait(GIVE_UP) == 8, "a worker ends with its scheduler"


def test_a_worker_that_joins_late_is_used(bench: Bench, prepared: tuple[list[Cell], Resources]):
    cells, resources = prepared
    first = bench.worker("first")
    stopped: list[str] = []

    def join(cell: str, stage: str) -> bool:
        # Without the first one all that is left is for the late one.
        bench.worker("late")
        first.kill()
        stopped.append(cell)
        return True

    ended = bench.run(cells[3:], resources, Watcher(join))
    assert len(ended.notes) == 1
    assert "worker first" in ended.notes[0]
    assert {results[-1].outcome for results in bench.results.values()} == {Outcome.PASS}
    assert len(bench.results) == len(cells[3:])


def test_a_plain_dask_worker_works_too(bench: Bench, prepared: tuple[list[Cell], Resources], tmp_path: Path):
    cells, resources = prepared
    with started_plain_worker(bench, tmp_path, "--resources", "memory=2e9 kvm=0"):
        assert bench.run(cells[3:5], resources, watcher := Watcher()) == Ended()
        assert any("memory 1907 MiB" in text for text in watcher.messages), watcher.messages
        greedy = replace(cells[0], scenario=with_memory(cells[0], 4 << 30))
        with pytest.raises(InfrastructureError, match=r"dma/unmapped_read need memory 4284 MiB.*plain .*memory 1907"):
            bench.run([greedy], resources, Progress())


@contextmanager
def started_plain_worker(bench: Bench, tmp_path: Path, *words: str) -> Iterator[None]:
    command = [sys.executable, "-m", "distributed.cli.dask_worker", bench.address, "--name", "plain", "--nthreads", "1"]
    command += [
        "--no-nanny",
        "--no-dashboard",
        "--dashboard-address",
        "127.0.0.1:0",
        "--host",
        "127.0.0.1",
        "--local-directory",
        str(tmp_path),
        *words,
    ]
    process = bench._start(command)
    bench._said(process, r"(Registered to)")
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=GIVE_UP)


def with_memory(cell: Cell, memory: int) -> object:
    machine = cell.scenario.machine.model_copy(update={"memory": memory})
    return cell.scenario.model_copy(update={"machine": machine})
