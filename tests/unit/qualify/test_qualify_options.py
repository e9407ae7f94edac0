"""What ``harness qualify`` makes of its options, before anything is looked for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from typer.testing import CliRunner, Result

from harness.cli.app import app
from harness.errors import ConfigurationError, FailureClass
from harness.qualified.records import Qualification, QualifiedCell
from harness.qualify.run import Done, Prepared, _facts
from harness.results import CellResult, Outcome
from harness.run.options import RunOptions
from harness.scenario.matrix import Matrix
from harness.scenario.matrix_load import load_matrix

Write = Callable[..., Path]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """The options with which a plan was asked for, which ends there."""
    found: list[RunOptions] = []

    def make_plan(matrix: Matrix, options: RunOptions) -> None:
        found.append(options)
        raise ConfigurationError("planned")

    monkeypatch.setattr("harness.qualify.run.make_plan", make_plan)
    return found


def invoke(*words: object, **env: str) -> Result:
    return CliRunner().invoke(app, ["qualify", *map(str, words)], env=env)


def test_deadlines_are_the_matrix_s_unless_they_are_asked_for(write: Write, asked: list[RunOptions]) -> None:
    matrix = write("matrix: M\nlimits: {timeout: 60s, boot_timeout: 50s}\n")
    invoke(matrix, "--list")
    invoke(matrix, "--list", "--timeout", "9", "--boot-timeout", "8")
    invoke(matrix, "--list", HARNESS_TIMEOUT="300", HARNESS_BOOT_TIMEOUT="301")
    assert [(one.timeout, one.boot_timeout) for one in asked] == [(60, 50), (9, 8), (300, 301)]


def test_what_counts_as_slower_is_kept_for_the_report(write: Write) -> None:
    matrix = load_matrix(write("matrix: M\nlimits: {slower: 3}\n"))
    prepared = SimpleNamespace(matrix=matrix, plan=SimpleNamespace(not_run=(), notes=()))
    assert _facts(cast("Prepared", prepared), date(2026, 1, 1))["slower"] == 3.0


@pytest.mark.parametrize("listed", [["--list"], []])
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--executor", "locale"], "there is no 'locale'"),
        (["--executor", "dask"], "needs the scheduler's address"),
        (["--scheduler", "tcp://a:1"], "--scheduler is of no use"),
    ],
)
def test_a_list_refuses_an_executor_that_the_run_refuses(
    write: Write, asked: list[RunOptions], words: list[str], wanted: str, listed: list[str]
) -> None:
    done = invoke(write("matrix: M\n"), *words, *listed)
    assert done.exit_code == 2
    assert wanted in done.stderr
    assert not asked


def test_junit_that_cannot_be_written_is_said_before_anything_is_run(
    write: Write, asked: list[RunOptions], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    matrix = write("matrix: M\n")
    for bad in (tmp_path / "file" / "out.xml", tmp_path):
        done = invoke(matrix, "--junit", bad, "--out", tmp_path / "q")
        assert done.exit_code == 2
        assert f"--junit {bad} cannot be written" in done.stderr
    assert not asked
    invoke(matrix, "--junit", tmp_path / "out.xml", "--out", tmp_path / "q")
    assert asked
    assert not list(tmp_path.glob("*out.xml*"))


@pytest.mark.parametrize(("outcome", "status"), [(Outcome.FAIL, 1), (Outcome.PASS, 2)])
def test_junit_that_cannot_be_written_any_more_hides_no_verdict(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Outcome, status: int
) -> None:
    (tmp_path / "below").mkdir()
    failure = FailureClass.EXPECTATION if outcome is Outcome.FAIL else None
    facts = {"scenario": "a", "title": "t", "source": "s", "file": "f"}
    result = CellResult(**facts, outcome=outcome, failure_class=failure)
    cells = (QualifiedCell(name="a", scenario="a", attempts=(result,)),)

    def ran(*_: object) -> Done:
        (tmp_path / "below").rmdir()
        (tmp_path / "below").touch()
        return Done(tmp_path, Qualification(started="", cells=cells, planned=1))

    monkeypatch.setattr("harness.qualify.run.qualify", ran)
    done = invoke(write("matrix: M\n"), "--junit", tmp_path / "below" / "out.xml")
    assert done.exit_code == status
    assert "cannot be written" in done.stderr
