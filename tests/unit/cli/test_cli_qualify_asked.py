"""``harness qualify`` before anything runs: what is refused at once, and what ``--list`` prints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.errors import FailureClass
from harness.qualify.show import plan_lines


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    file = tmp_path / "m.yaml"
    file.write_text("matrix: m\nscenarios: [bare/read_unmapped]\n")
    return file


def qualify(*words: object):
    return CliRunner().invoke(app, ["qualify", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--executor", "slurm"), "--executor: there is no 'slurm'"),
        (("--executor", "dask"), "--executor dask needs the scheduler's address"),
        (("--scheduler", "tcp://h:1"), "--scheduler is of no use with --executor local"),
    ],
)
def test_a_list_refuses_what_the_run_would(matrix: Path, words: tuple[str, ...], said: str):
    done = qualify(matrix, "--list", *words)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("junit", "said"), [("-", "takes a file"), (".", "it is a folder"), ("m.yaml/a/b.xml", "is no folder")]
)
def test_where_the_results_cannot_go_is_said_before_anything_runs(
    matrix: Path, junit: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("harness.qualify.run.qualify", lambda *_: pytest.fail("it ran"))
    done = qualify(matrix, "--junit", junit if junit == "-" else matrix.parent / junit)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize(("verdict", "status"), [(0, 2), (FailureClass.EXPECTATION.exit_code, 1)])
def test_a_file_that_fails_at_the_end_does_not_hide_the_verdict(
    matrix: Path, verdict: int, status: int, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.qualify.run.qualify", lambda *_: SimpleNamespace(qualification=None, judged=None))
    monkeypatch.setattr("harness.qualify.show.next_lines", lambda _: ())
    monkeypatch.setattr("harness.report.qualified_terminal.print_qualification", lambda *_: None)
    monkeypatch.setattr("harness.report.verdict.exit_code", lambda _: verdict)
    monkeypatch.setattr("harness.report.junit.write_qualified_junit", full)
    done = qualify(matrix, "--junit", matrix.parent / "out.xml")
    assert done.exit_code == status
    assert "cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("number", "said"), [(1, "1 cell, 1 point, 1 template,"), (2, "2 cells, 2 points, 2 templates,")]
)
def test_one_is_not_many(number: int, said: str):
    items = [SimpleNamespace(cell=SimpleNamespace(name=str(one))) for one in range(number)]
    prepared: Any = SimpleNamespace(
        plan=SimpleNamespace(items=items, not_run=(), points=number, notes=()),
        wanted=range(number),
        matrix=SimpleNamespace(title="m"),
        seconds=lambda *_: 60.0,
        grouped=lambda _: items,
    )
    assert said in list(plan_lines(prepared, 1))[-1]
