"""``harness repro`` up to where it would start a guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness.cli.app import app
from harness.errors import FailureClass
from harness.results import CellResult, Outcome, RunResult

SEED = "DMAR:[DMA Read] Request device [02:01.2] fault addr 900000 DMAR:[fault reason 06] PTE Read access is not set"
TWO = f"talk\n{SEED}\n{SEED.replace('900000', 'a00000')}\n{SEED}\n"


def repro(*words: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, ["repro", *words], input=stdin)


def test_the_scenario_can_be_looked_at_first():
    done = repro("--dry-run", SEED)
    assert done.exit_code == 0
    assert "iova: 0x900000" in done.stdout
    assert done.stdout.startswith("title: '02:01.2 is refused a read at 0x900000")


def test_a_line_may_be_words_a_file_or_standard_input(tmp_path: Path):
    file = tmp_path / "dmesg.txt"
    file.write_text(f"{SEED}\n")
    once = repro("--dry-run", SEED).stdout
    for done in (
        repro("--dry-run", *SEED.split(" ")),
        repro("--dry-run", str(file)),
        repro("--dry-run", "-", stdin=SEED),
        repro("--dry-run", stdin=SEED),
        repro("--dry-run", stdin=SEED.encode() + b"\n\xff\xfe\x00 not text"),
    ):
        assert (done.exit_code, done.stdout) == (0, once)


def test_one_of_several_is_chosen_by_its_line():
    assert "1 other fault in this log; --line chooses" in repro("--dry-run", "-", stdin=TWO).stderr
    assert "0xa00000" in repro("--dry-run", "--line", "3", "-", stdin=TWO).stdout


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        (["-"], "", "there is no fault in standard input"),
        (["-"], "DMAR: IOMMU enabled\n", "'harness explain' says what it reads"),
        (["--line", "1", "-"], TWO, "faults begin at the lines 2, 3, 4"),
        (["no/such.log"], "", "there is no file no/such.log"),
        (["."], "", ". is a folder"),
        (["--write", "again.txt", SEED], "", "ends in .yaml"),
        (["--write", "no/such/again.yaml", SEED], "", "there is no folder no/such"),
        ([SEED.replace("06", "13")], "", "reason 0x0d (context entry blocks"),
        (["--tier", "guest", SEED.replace("06", "02")], "", "reason 0x02 (present bit in context entry is clear)"),
        ([SEED.replace("02:01.2", "00:1f.0")], "", "a place of the emulated chipset"),
        ([SEED.replace("900000", "fee00000")], "", "interrupt address range"),
        (["--state", "read-only", SEED], "", "a read-only mapping refuses writes"),
    ],
)
def test_a_mistake_is_told_with_a_remedy(words: list[str], stdin: str, said: str):
    done = repro(*words, stdin=stdin)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "secret.log"
    file.write_text(SEED)

    def refused(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    done = repro(str(file))
    assert done.exit_code == 2
    assert "cannot be read: Permission denied" in done.stderr


def test_ctrl_c_is_no_defect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    stopped = RunResult(started="", argv=(), interrupted=True)
    monkeypatch.setattr("harness.repro.run.run_scenarios", lambda options, progress: stopped)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "again.yaml"
    done = repro("--write", str(file), SEED)
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")
    assert not file.exists()


def test_what_stopped_the_run_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    cell = CellResult(
        scenario="s",
        title="t",
        source="s",
        file="f",
        outcome=Outcome.ERROR,
        failure_class=FailureClass.PANIC,
        message="why",
    )
    ended = RunResult(started="", argv=(), cells=(cell,))
    monkeypatch.setattr("harness.repro.run.run_scenarios", lambda options, progress: ended)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    done = repro(SEED)
    assert done.exit_code == 4
    assert "no fault happened" in done.stdout
    assert "not reproduced: why" in done.stdout
