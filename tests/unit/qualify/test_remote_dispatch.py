"""Cells on workers in this process: who runs what, what is refused, and what is left when things end badly."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import Worker, get_worker
from remote_rig import GIB, Rig, cell, passed, resources

from harness import stopping
from harness.errors import ConfigurationError, InfrastructureError
from harness.paths import scenarios_dir
from harness.qualify.executor import make_executor
from harness.qualify.remote import calls, dispatch, session
from harness.results import Outcome
from harness.run.resources import Resources
from harness.scenario import load_scenario

DMA = scenarios_dir() / "dma" / "unmapped_read.yaml"


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Rig(tmp_path, lambda one, *more: passed(one))
    monkeypatch.setattr(
        session, "run_and_write", lambda one, res, opt, where, telling: made.run_one(one, where, telling)
    )
    monkeypatch.setattr(session.Session, "_resources", lambda self, order: None)
    monkeypatch.setattr(calls, "measure_kvm", lambda: (False, "no /dev/kvm"))
    monkeypatch.setattr(calls, "system_version", lambda: "9.9")
    return made


def test_results_and_evidence_come_back(rig: Rig):
    def run(one, where, telling):
        telling.cell_stage(one.name, "steps")
        telling.message("making something")
        where.mkdir()
        (where / "console.log").write_text("it booted\n")
        (where / "usdm").mkdir()
        (where / "usdm" / "qmp.log").write_bytes(b"\0\xff")
        return passed(one, folder=str(where), message=f"see {where}/console.log", hint=f"look at {where}")

    rig.run_one = run
    ended = rig("ab", {"one": {}, "two": {}})
    assert (ended.interrupted, ended.left, ended.notes) == (False, (), ())
    assert rig.outcomes == {0: ["pass"], 1: ["pass"]}
    for _, result in rig.attempts:
        folder = Path(result.folder)
        assert folder.parent == rig.folder
        assert (folder / "console.log").read_text() == "it booted\n"
        assert (folder / "usdm" / "qmp.log").read_bytes() == b"\0\xff"
        assert (folder / "verdict.json").is_file()
        assert result.message == f"see {folder}/console.log"
        assert result.hint == f"look at {folder}"
    assert sorted(rig.heard.stages) == [("a", "steps"), ("b", "steps")]
    assert "making something" in rig.heard.messages
    assert not list(rig.folder.rglob("cell-*")), "nothing stays on the worker"


def test_what_is_to_run_again_does(rig: Rig):
    rig.again = lambda index, result: len(rig.attempts) < 3
    rig("a")
    assert rig.outcomes == {0: ["pass"] * 3}


def test_another_version_of_the_harness_is_refused_by_name(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calls, "source_key", lambda: "f" * 64)
    with pytest.raises(InfrastructureError, match=r"no worker.*worker one .* not used: its harness .* is not this one"):
        rig("a")
    assert rig.attempts == []


def test_no_worker_at_all_is_not_waited_for_for_ever(rig: Rig):
    with pytest.raises(InfrastructureError, match="has no worker that can be used: 2 cells were not run") as caught:
        rig("ab", {})
    assert "harness worker tcp://" in str(caught.value.hint)


def test_no_scheduler_is_an_error(monkeypatch: pytest.MonkeyPatch, rig: Rig):
    monkeypatch.setattr(dispatch, "CONNECT_SECONDS", 0.2)
    rig.address = "tcp://127.0.0.1:1"

    async def main() -> None:
        from harness.qualify.executor import Work
        from harness.run.options import RunOptions

        work = Work([], [], resources(), RunOptions(), 1, lambda index: rig.folder, lambda index, result: False)
        await dispatch.Dispatch(rig.address, "test", work, rig.heard, 0.1).run()

    with pytest.raises(InfrastructureError, match=r"scheduler tcp://127.0.0.1:1 cannot be reached"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("workers", "using", "says"),
    [
        ({"small": {"memory": GIB >> 2}}, resources(), r"dma need memory 700 MiB.*small .* memory 256 MiB"),
        ({"plain": {}}, resources("kvm"), r"dma need memory 700 MiB and kvm 1.*plain .* kvm 0 \(no /dev/kvm\)"),
        ({"old": {}}, resources(version="1.0"), r"need memory .* and QEMU 1.0 as the host's own.*old .*QEMU 9.9"),
    ],
)
def test_what_no_worker_has_is_said_before_anything_runs(rig: Rig, workers, using: Resources, says: str):
    guest = replace(cell("dma"), scenario=load_scenario(DMA))
    with pytest.raises(InfrastructureError, match=says):
        # No other worker is waited for: that would be the time-out of the rig.
        rig([cell("bare"), guest], workers, using=using, wait=1000)
    assert rig.attempts == []


def test_kvm_of_a_worker_serves_all_its_cells(rig: Rig):
    both = threading.Barrier(2)

    def run(one, where, telling):
        both.wait(10)
        return passed(one)

    rig.run_one = run
    guest = replace(cell("dma"), scenario=load_scenario(DMA))
    rig([guest, replace(guest, name="more")], {"fast": {"threads": 2, "kvm": 1}}, using=resources("kvm"))
    assert rig.outcomes == {0: ["pass"], 1: ["pass"]}


def test_memory_limits_what_runs_at_once(rig: Rig):
    most, now, lock, two = 0, 0, threading.Lock(), threading.Barrier(2)

    def run(one, where, telling):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        # There is always another one beside it, and never a third.
        two.wait(10)
        with lock:
            now -= 1
        return passed(one)

    rig.run_one = run
    guests = [replace(cell(name), scenario=load_scenario(DMA)) for name in "abcdef"]
    rig(guests, {"one": {"threads": 6, "memory": 1500 << 20}})
    assert most == 2


def test_a_lost_worker_costs_an_attempt(rig: Rig):
    running: list[Worker] = []
    once = threading.Lock()

    def run(one, where, telling):
        if once.acquire(blocking=False):
            telling.cell_stage(one.name, "steps")
            running.append(get_worker())
            while True:
                stopping.check()
                threading.Event().wait(0.01)
        return passed(one)

    rig.run_one = run

    async def lose() -> None:
        while not (running and rig.heard.stages):
            await asyncio.sleep(0.01)
        await running[0].close(executor_wait=False)

    ended = rig("abc", {"one": {}, "two": {}}, beside=lose)
    assert sorted(rig.outcomes.values()) == [["infrastructure", "pass"], ["pass"], ["pass"]]
    (note,) = ended.notes
    assert "was lost while it ran" in note
    (lost,) = [result for _, result in rig.attempts if result.outcome is Outcome.ERROR]
    assert "in its stage 'steps': it was lost" in lost.message


def test_a_worker_that_cannot_do_its_part_gets_no_more_cells(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    def full(**more: object) -> str:
        raise InfrastructureError("the disk is full")

    monkeypatch.setattr(session, "tempfile", SimpleNamespace(mkdtemp=full))
    with pytest.raises(InfrastructureError, match=r"not used any more: the disk is full.*3 cells were not run"):
        rig("abc")
    assert rig.attempts == []


def test_a_defect_is_the_cells_own(rig: Rig):
    def run(one, where, telling):
        if one.name == "a":
            raise ZeroDivisionError("oops")
        return passed(one)

    rig.run_one = run
    ended = rig("ab")
    assert ended.notes == ()
    assert rig.outcomes == {0: ["infrastructure"], 1: ["pass"]}
    assert "on the worker one: ZeroDivisionError: oops" in rig.attempts[0][1].message


def test_a_worker_that_joins_late_is_used(rig: Rig):
    second = threading.Event()

    def run(one, where, telling):
        # The first cell lasts until another one runs beside it.
        if one.name == "a":
            assert second.wait(30)
        else:
            second.set()
        return passed(one)

    rig.run_one = run

    async def join() -> None:
        while not any(worker.state.executing_count for worker in rig.workers.values()):
            await asyncio.sleep(0.01)
        await rig.stack.enter_async_context(rig.worker("late"))

    rig("ab", beside=join)
    assert rig.outcomes == {0: ["pass"], 1: ["pass"]}
    assert any("joined late: late" in text for text in rig.heard.messages)


def test_a_worker_that_joins_before_we_listen_is_not_missed(rig: Rig):
    async def join() -> None:
        # The subscriptions take long to get to the scheduler, and a worker comes meanwhile.
        real = rig.scheduler.stream_handlers["subscribe-topic"]
        later = asyncio.get_running_loop().call_later
        rig.scheduler.stream_handlers["subscribe-topic"] = lambda **more: later(1.0, lambda: real(**more))
        while not any(name.startswith("Client") for name in rig.scheduler.clients):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        await rig.stack.enter_async_context(rig.worker("one"))

    rig("a", {}, wait=2.0, beside=join)
    assert rig.outcomes == {0: ["pass"]}


@pytest.fixture
def stopped(rig: Rig) -> threading.Event:
    """Set when a cell that would run for ever was stopped; cells are such from now on."""
    event = threading.Event()

    def run(one, where, telling):
        telling.cell_stage(one.name, "steps")
        try:
            while True:
                stopping.check()
                threading.Event().wait(0.01)
        finally:
            event.set()

    rig.run_one = run
    return event


def test_an_interrupt_stops_the_cells_of_the_workers(rig: Rig, stopped: threading.Event):
    async def interrupt() -> None:
        while not rig.heard.stages:
            await asyncio.sleep(0.01)
        rig.dispatch.interrupt()

    ended = rig("ab", beside=interrupt)
    assert ended.interrupted
    assert ended.left == ()
    assert stopped.is_set()
    assert rig.attempts == []


def test_without_the_qualification_its_cells_stop(rig: Rig, stopped: threading.Event):
    async def die() -> None:
        while not rig.heard.stages:
            await asyncio.sleep(0.01)
        # What the scheduler does when a client's connection breaks.
        for client in list(rig.scheduler.clients):
            rig.scheduler.remove_client(client)
        assert await asyncio.to_thread(stopped.wait, 10)
        rig.dispatch.interrupt()

    rig("ab", beside=die)
    assert rig.attempts == []


def test_what_keeping_a_result_raises_ends_it(rig: Rig):
    def again(index: int, result: object) -> bool:
        raise InfrastructureError("the disk is full")

    rig.again = again
    with pytest.raises(InfrastructureError, match="the disk is full"):
        rig("abc")
    assert len(rig.attempts) == 1


def test_the_executor_is_made_by_its_name():
    assert make_executor("dask", "10.0.0.1:8786").name == "dask tcp://10.0.0.1:8786"
    with pytest.raises(ConfigurationError, match="needs the scheduler's address"):
        make_executor("dask", None)
    with pytest.raises(ConfigurationError, match="is no address"):
        make_executor("dask", "https://10.0.0.1")


def test_without_the_extra_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch):
    import sys

    for name in [one for one in sys.modules if one.startswith("harness.qualify.remote")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match="needs Dask") as caught:
        make_executor("dask", "tcp://10.0.0.1:8786")
    assert caught.value.hint == "in a checkout of usdm-harness: pip install -e '.[dask]'"
