"""Runs without guests: the order of the cells, what is learned from them, and what an interrupted run leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.paths import scenarios_dir
from harness.report import load_run
from harness.results import CellResult, Outcome, Progress, RunResult
from harness.run import crew, schedule
from harness.run.cells import Cell
from harness.run.durations import Durations, key
from harness.run.options import RunOptions
from harness.run.schedule import longest_first, run_scenarios
from harness.scenario import load_scenario, parse_scenario

GIVE_UP = 30.0
FILE = scenarios_dir() / "dma" / "unmapped_read.yaml"

Say = Callable[[str], None]
Run = Callable[[Cell, Say, Say], CellResult]


def cell(name: str) -> Cell:
    return Cell(load_scenario(FILE).located(name, FILE), "11.1", "6.12", name)


def passed(one: Cell, seconds: float = 1.0, **more: object) -> CellResult:
    fields = {"scenario": one.name, "title": "t", "source": "s", "file": "f", "outcome": Outcome.PASS, "start": "clone"}
    return CellResult.model_validate({**fields, "seconds": seconds, **more})


class Heard(Progress):
    def __init__(self) -> None:
        self.jobs = 0
        self.stages: list[tuple[str, str]] = []
        self.done: list[str] = []
        self.messages: list[str] = []
        self.run: RunResult | None = None

    def run_started(self, total: int, jobs: int) -> None:
        self.jobs = jobs

    def cell_stage(self, scenario: str, stage: str) -> None:
        self.stages.append((scenario, stage))

    def cell_finished(self, result: CellResult) -> None:
        self.done.append(result.scenario)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def run_finished(self, result: RunResult) -> None:
        self.run = result


class Bench:
    """Runs cells through the schedule with another function in the place of ``run_cell``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
        self.started: list[str] = []
        self.heard = Heard()
        self.out = out
        self._monkeypatch = monkeypatch

    def __call__(self, names: str, run: Run, jobs: int | None = 1, **more: object) -> RunResult:
        cells = [cell(name) for name in names]

        def run_cell(one: Cell, resources: object, options: object, folder: Path, stage: Say, say: Say) -> CellResult:
            self.started.append(one.name)
            return run(one, stage, say)

        self._monkeypatch.setattr(schedule, "prepare_cells", lambda options, say: (cells, None))
        self._monkeypatch.setattr(schedule, "run_cell", run_cell)
        return run_scenarios(RunOptions(jobs=jobs, out=self.out, **more), self.heard)  # type: ignore[arg-type]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(crew, "stop_all", lambda: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Bench(monkeypatch, tmp_path / "out")
    signal.signal(signal.SIGINT, before)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_longest_first_and_those_before_that_nobody_knows():
    cells = [cell(name) for name in "abcdef"]
    known = {key("a", "boot"): 9.0, key("b", "clone"): 1.0, key("c", "clone"): 2.0, key("f", "clone"): 1.0}
    order = longest_first(cells, "clone", known)
    assert [cells[index].name for index in order] == ["a", "d", "e", "c", "b", "f"]
    assert longest_first(cells[:2], "boot", known) == [1, 0]
    assert longest_first([], "clone", known) == []


def test_of_those_that_nobody_knows_each_machine_begins_with_one():
    """Three threads that begin with cells of one machine would make its template once and wait for it twice."""
    machines = ["{}", "{}", "{aw_bits: 39}", "{aw_bits: 39}", *["{vm: true, memory: 1G}"] * 2]
    cells = []
    for name, machine in zip("abcdef", machines, strict=True):
        text = f"title: t\nsource: s\nmachine: {machine}\nsteps: [{{statistics: {{}}}}]\n"
        cells.append(Cell(parse_scenario(text, FILE).located(name, FILE), "11.1", "6.12", name))
    assert [cells[index].name for index in longest_first(cells, "clone", {})] == list("eacbdf")
    known = {key("a", "clone"): 50.0, key("e", "clone"): 60.0}
    assert [cells[index].name for index in longest_first(cells, "clone", known)] == list("fbcdea")


def test_results_are_in_the_order_of_the_scenarios_and_the_next_run_starts_with_the_longest(bench):
    took = {"a": 1.0, "b": 3.0, "c": 2.0}
    for order in ("abc", "bca"):
        bench.started.clear()
        result = bench("abc", lambda one, stage, say: passed(one, took[one.name]))
        assert bench.started == list(order)
        assert [one.scenario for one in result.cells] == ["a", "b", "c"]
        assert load_run(bench.out) == result
        assert bench.heard.run == result


def test_a_booted_guest_teaches_nothing_about_clones(bench):
    bench("ab", lambda one, stage, say: passed(one, 6.0 if one.name == "b" else 7.0, start="boot"), fresh_boot=True)
    assert Durations().load() == {"boot a": 7.0, "boot b": 6.0}
    bench("ab", lambda one, stage, say: passed(one, 2.0 if one.name == "b" else 1.0))
    bench("ab", lambda one, stage, say: passed(one))
    bench("ba", lambda one, stage, say: passed(one), fresh_boot=True)
    assert bench.started == ["a", "b", "a", "b", "b", "a", "a", "b"]


def test_only_what_ran_to_its_end_teaches(bench):
    outcomes = dict(zip("pfes", Outcome, strict=True))

    def run(one: Cell, stage: Say, say: Say) -> CellResult:
        outcome = outcomes[one.name]
        return passed(one, 5.0, outcome=outcome, start="" if outcome is Outcome.SKIP else "clone")

    bench("pfes", run)
    assert Durations().load() == {"clone p": 5.0, "clone f": 5.0}


def test_a_state_folder_that_cannot_be_used_costs_only_the_order(bench, tmp_path: Path):
    (tmp_path / "state").write_text("a file where the folder should be")
    assert len(bench("ab", lambda one, stage, say: passed(one)).cells) == 2


@pytest.mark.parametrize(("jobs", "expected"), [(1, 1), (2, 2), (9, 3), (None, 3)])
def test_jobs_are_chosen_where_the_user_names_none(bench, monkeypatch: pytest.MonkeyPatch, jobs, expected):
    asked: list[str] = []
    monkeypatch.setattr(schedule, "default_jobs", lambda kind: asked.append(kind) or 8)
    result = bench("abc", lambda one, stage, say: passed(one), jobs)
    assert (result.jobs, bench.heard.jobs) == (expected, expected)
    assert asked == (["clone"] if jobs is None else [])


def test_an_interrupted_run_reports_what_was_done(bench):
    def run(one: Cell, stage: Say, say: Say) -> CellResult:
        if one.name == "b":
            ctrl_c()
            while True:  # as a cell that goes from stage to stage; it must not come to another one
                stage("boot")
        return passed(one)

    result = bench("abc", run)
    assert result.interrupted
    assert [one.scenario for one in result.cells] == ["a"]
    assert bench.started == ["a", "b"]
    assert bench.heard.done == ["a"]
    assert bench.heard.run == result == load_run(bench.out)
    assert Durations().load() == {"clone a": 1.0}


def test_a_cell_whose_guest_was_ended_under_it_has_no_result(bench, monkeypatch: pytest.MonkeyPatch):
    killed = threading.Event()
    monkeypatch.setattr(crew, "stop_all", killed.set)

    def run(one: Cell, stage: Say, say: Say) -> CellResult:
        ctrl_c()
        assert killed.wait(GIVE_UP)
        return passed(one, outcome=Outcome.ERROR, message="the emulator was killed")

    result = bench("ab", run)
    assert (result.interrupted, result.cells, bench.heard.done) == (True, (), [])


def test_who_does_not_stop_is_named(bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crew, "STOP_SECONDS", 0.1)
    forgotten = threading.Event()

    def run(one: Cell, stage: Say, say: Say) -> CellResult:
        ctrl_c()
        assert forgotten.wait(GIVE_UP)
        say("nobody wants to hear this any more")
        return passed(one)

    result = bench("ab", run)
    forgotten.set()
    for thread in threading.enumerate():
        if thread.name.startswith("cell-"):
            thread.join(GIVE_UP)
    assert result.interrupted
    assert [text for text in bench.heard.messages if text.endswith(": a")] == bench.heard.messages
    assert len(bench.heard.messages) == 1


def test_what_many_cells_say_at_once_is_said_once(bench):
    def run(one: Cell, stage: Say, say: Say) -> CellResult:
        say("making a template")
        say(f"only {one.name}")
        return passed(one)

    bench("abcd", run, 4)
    assert sorted(bench.heard.messages) == ["making a template", "only a", "only b", "only c", "only d"]


STUCK = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from harness.run import crew, schedule
from harness.run.cells import expand
crew.STOP_SECONDS = 0.1

def run_cell(one, resources, options, folder, stage, say):
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

schedule.prepare_cells = lambda options, say: (expand(options), None)
schedule.run_cell = run_cell
from harness.cli import main
sys.argv = ["harness", "run", "-j", "3", *sys.argv[1:]]
main()
"""


def test_the_process_ends_although_threads_are_stuck_for_ever(tmp_path: Path):
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", STUCK, str(FILE), str(FILE.with_name("unmapped_write.yaml")), "--out"]
    done = subprocess.run(
        [*command, str(tmp_path / "out")], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == ""
    assert "(interrupted)" in done.stdout
    assert load_run(tmp_path / "out").interrupted
