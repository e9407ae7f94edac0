"""Cells in threads, and Ctrl-C at every kind of wait: nothing hangs, and no emulator stays."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import stopping
from harness.image.cache import waiting_lock
from harness.results import CellResult, Outcome
from harness.run import crew as crew_module
from harness.run.crew import Crew

# A bound for what must happen at once; only a defect reaches it.
GIVE_UP = 30.0


class Emulators:
    """The emulators that fake cells have started; ``stop_all`` is put into the place of the real one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: dict[int, threading.Event] = {}
        self.started = 0
        self.rounds = 0
        self.on_stop: Callable[[int], None] = lambda rounds: None

    def boot(self) -> None:
        """Start one and wait for it, as a cell waits for its guest: until it is killed."""
        with self._lock:
            self.started += 1
            number = self.started
            ended = self._ended[number] = threading.Event()
        assert ended.wait(GIVE_UP), "nobody killed the emulator"

    @property
    def running(self) -> int:
        with self._lock:
            return sum(not ended.is_set() for ended in self._ended.values())

    def stop_all(self) -> None:
        with self._lock:
            for ended in self._ended.values():
                ended.set()
        self.rounds += 1
        self.on_stop(self.rounds)


@pytest.fixture
def emulators(monkeypatch: pytest.MonkeyPatch) -> Emulators:
    emulators = Emulators()
    monkeypatch.setattr(crew_module, "stop_all", emulators.stop_all)
    # That a thread ends in time is not what is tested here, except where a test says so.
    monkeypatch.setattr(crew_module, "STOP_SECONDS", GIVE_UP)
    return emulators


@pytest.fixture(autouse=True)
def ctrl_c_counts() -> Iterator[None]:
    """A test runner in the background has SIGINT ignored; here it must do what it does in a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def cell(index: int, outcome: Outcome = Outcome.PASS) -> CellResult:
    return CellResult(scenario=str(index), title="t", source="s", file="f", outcome=outcome)


def test_all_cells_are_run_in_order_and_no_guest_is_stopped(emulators: Emulators):
    started: list[int] = []

    def run_one(index: int) -> CellResult:
        started.append(index)
        return cell(index)

    crew = Crew(run_one)
    crew.run([2, 0, 1], 1)
    assert started == [2, 0, 1]
    assert {index: result.scenario for index, result in crew.results.items()} == {0: "0", 1: "1", 2: "2"}
    assert (crew.interrupted, crew.left, emulators.rounds) == (False, [], 0)


def test_as_many_at_once_as_there_are_jobs(emulators: Emulators):
    together = threading.Barrier(4)

    def run_one(index: int) -> CellResult:
        together.wait(GIVE_UP)
        return cell(index)

    crew = Crew(run_one)
    crew.run(range(8), 4)
    assert len(crew.results) == 8


def test_more_jobs_than_cells(emulators: Emulators):
    crew = Crew(cell)
    crew.run(range(2), 5)
    assert len(crew.results) == 2


def test_ctrl_c_keeps_what_was_done_and_starts_nothing_more(emulators: Emulators):
    booting = threading.Barrier(2, action=ctrl_c)

    def run_one(index: int) -> CellResult:
        if index == 0:
            return cell(index)
        booting.wait(GIVE_UP)
        emulators.boot()
        stopping.check()
        return cell(index)

    crew = Crew(run_one)
    crew.run(range(20), 2)
    assert crew.interrupted
    assert set(crew.results) == {0}
    assert emulators.started == 2
    assert emulators.running == 0
    assert crew.left == []


def test_a_guest_that_starts_while_the_others_are_killed_is_killed_by_a_later_round(emulators: Emulators):
    killed = threading.Event()
    emulators.on_stop = lambda rounds: killed.set()

    def run_one(index: int) -> CellResult:
        ctrl_c()
        assert killed.wait(GIVE_UP)
        emulators.boot()
        return cell(index)

    crew = Crew(run_one)
    crew.run(range(1), 1)
    assert emulators.rounds >= 2
    assert emulators.running == 0
    assert crew.left == []


def test_a_second_ctrl_c_does_not_cut_the_stopping_short(emulators: Emulators):
    second, third = threading.Event(), threading.Event()

    def again(rounds: int) -> None:
        ctrl_c()
        (second if rounds == 1 else third).set()

    emulators.on_stop = again

    def run_one(index: int) -> CellResult:
        ctrl_c()
        assert second.wait(GIVE_UP)
        assert third.wait(GIVE_UP)
        emulators.boot()
        return cell(index)

    crew = Crew(run_one)
    crew.run(range(3), 1)
    assert crew.interrupted
    assert emulators.started == 1
    assert emulators.running == 0
    assert crew.left == []


def test_ctrl_c_while_cells_wait_for_a_lock(emulators: Emulators, tmp_path: Path):
    """One cell makes what the others wait for. None of them makes it after all when the first one is stopped."""
    said = threading.Semaphore(0)
    made: list[int] = []

    def run_one(index: int) -> CellResult:
        with waiting_lock(tmp_path / "lock", lambda text: said.release()):
            made.append(index)
            for _ in range(3):
                assert said.acquire(timeout=GIVE_UP)
            ctrl_c()
            emulators.boot()
        return cell(index)

    crew = Crew(run_one)
    crew.run(range(8), 4)
    assert crew.interrupted
    assert len(made) == 1
    assert emulators.started == 1
    assert emulators.running == 0
    assert crew.left == []


def test_a_signal_that_does_not_wake_the_main_thread(emulators: Emulators):
    """Another thread takes it; one that comes just before the main thread's wait begins is no other."""
    main = threading.main_thread()

    def waits() -> bool:
        assert main.ident is not None
        frame = sys._current_frames()[main.ident]
        state = Path(f"/proc/self/task/{main.native_id}/stat").read_text().rpartition(")")[2].split()[0]
        return frame.f_code.co_name == "run" and state == "S"

    def run_one(index: int) -> CellResult:
        while not waits():
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        emulators.boot()
        return cell(index)

    crew = Crew(run_one)
    crew.run(range(2), 1)
    assert (crew.interrupted, emulators.running, crew.left) == (True, 0, [])


def test_ctrl_c_while_another_process_has_the_lock(emulators: Emulators, tmp_path: Path):
    with waiting_lock(tmp_path / "lock"):

        def run_one(index: int) -> CellResult:
            with waiting_lock(tmp_path / "lock", lambda text: ctrl_c()):
                return cell(index)

        crew = Crew(run_one)
        crew.run(range(2), 2)
    assert crew.interrupted
    assert (crew.results, crew.left) == ({}, [])


def test_a_thread_that_does_not_end_is_left_behind(emulators: Emulators, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crew_module, "STOP_SECONDS", 0.1)
    forgotten = threading.Event()

    def run_one(index: int) -> CellResult:
        if index == 7:
            ctrl_c()
            assert forgotten.wait(GIVE_UP)
        return cell(index)

    crew = Crew(run_one)
    crew.run([3, 7, 4], 1)
    assert crew.interrupted
    assert crew.left == [7]
    assert set(crew.results) == {3}
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("cell-"))
    forgotten.set()
    for thread in threading.enumerate():
        if thread.name.startswith("cell-"):
            thread.join(GIVE_UP)
    assert set(crew.results) == {3}, "what it came to is of no interest any more"


def test_a_defect_in_a_cell_stops_the_others_and_is_raised(emulators: Emulators):
    booting = threading.Event()

    def run_one(index: int) -> CellResult:
        if index == 1:
            booting.set()
            emulators.boot()
            raise OSError("only because it was stopped")
        assert booting.wait(GIVE_UP)
        raise BrokenPipeError("the reader has gone")

    with pytest.raises(BrokenPipeError, match="the reader has gone"):
        Crew(run_one).run(range(9), 2)
    assert emulators.started == 1
    assert emulators.running == 0


def test_an_ignored_sigint_stays_ignored(emulators: Emulators):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def run_one(index: int) -> CellResult:
            ctrl_c()
            return cell(index)

        crew = Crew(run_one)
        crew.run(range(3), 1)
        assert not crew.interrupted
        assert len(crew.results) == 3
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_crew_works_in_any_thread(emulators: Emulators):
    crew = Crew(cell)
    thread = threading.Thread(target=crew.run, args=(range(3), 2))
    thread.start()
    thread.join(GIVE_UP)
    assert len(crew.results) == 3


def test_nobody_is_told_to_stop_outside_a_crew():
    stopping.check()
    told = threading.Event()
    with stopping.stopped_by(told):
        stopping.check()
        told.set()
        with pytest.raises(KeyboardInterrupt):
            stopping.check()
    stopping.check()
