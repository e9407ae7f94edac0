"""A qualification on real emulators: run, killed, resumed, full disk, damaged, compared.

Most of it runs scenarios without a guest: they take tenths of a second, and a qualification treats all cells alike.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import ConfigurationError, FailureClass, InfrastructureError
from harness.paths import scenarios_dir
from harness.qualified.database import FILE, Store
from harness.qualified.records import Standing
from harness.qualified.store import load_qualification
from harness.qualify import keep
from harness.qualify.run import Done, QualifyOptions, qualify
from harness.results import CellResult, Outcome, Progress
from harness.run.cells import Cell
from harness.run.options import RunOptions

BARE = ("overflow", "page_2m", "read_unmapped", "scalable_second", "write_unmapped")
MATRIX = """
matrix: bare ones
scenarios: [bare]
axes: {qemu: ["11.1", "7.2"]}
known_failures: known.yaml
"""


class Lines(Progress):
    """Keeps what is said, and may do something when a cell is done."""

    def __init__(self, when: Callable[[int], None] = lambda number: None) -> None:
        self.said: list[str] = []
        self.done: list[str] = []
        self._when = when

    def message(self, text: str) -> None:
        self.said.append(text)

    def cell_finished(self, result: CellResult) -> None:
        self.done.append(result.scenario)
        self._when(len(self.done))


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    root = tmp_path / "scenarios"
    (root / "bare").mkdir(parents=True)
    (root / "schema.json").write_text("{}")
    for name in BARE:
        (root / "bare" / f"{name}.yaml").write_bytes((scenarios_dir() / "bare" / f"{name}.yaml").read_bytes())
    (root / "known.yaml").write_text("failures: []\n")
    (root / "m.yaml").write_text(MATRIX)
    return root / "m.yaml"


def go(matrix: Path, out: Path, progress: Progress | None = None, **more: object) -> Done:
    options = QualifyOptions(matrix=matrix, run=RunOptions(jobs=2, fetch=True), out=out)
    return qualify(replace(options, **more), progress or Progress())  # type: ignore[arg-type]


def command(matrix: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "harness", "qualify", str(matrix), "--out", str(out), "-j", "1", *more]


def test_run_then_nothing_left_then_what_changed(matrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = go(matrix, out)
    assert [cell.standing for cell in first.qualification.cells] == [Standing.PASS] * 10
    assert first.qualification.complete
    lines = Lines()
    again = go(matrix, out, lines, resume=True)
    assert lines.done == []
    assert "10 cells are done and unchanged: kept" in lines.said
    assert again.qualification.cells == first.qualification.cells
    # Another text of a scenario, and one that fails now.
    wrong = matrix.parent / "bare" / "write_unmapped.yaml"
    wrong.write_text(wrong.read_text().replace("reason: 0x05, step", "reason: 0x06, step"))
    lines = Lines()
    changed = go(matrix, out, lines, resume=True, since=out)
    wanted = ("bare/write_unmapped [qemu 11.1]", "bare/write_unmapped [qemu 7.2]")
    assert sorted(lines.done) == sorted(wanted)
    assert "2 cells are run again: the scenario's file changed" in lines.said
    assert changed.qualification.comparison is not None
    assert changed.qualification.comparison.newly_failing == wanted
    assert load_qualification(out).comparison == changed.qualification.comparison
    # Known, for one of the two builds.
    entry = "{scenario: bare/write_*, when: {qemu: ['7.2']}, signature: 'faults: ', reason: r, link: docs/a.md,"
    (matrix.parent / "known.yaml").write_text(f"failures:\n  - {entry} until: 2999-01-01}}\n")
    known = go(matrix, out, Lines(), resume=True).qualification
    assert [cell.standing for cell in known.cells][-2:] == [Standing.FAIL, Standing.KNOWN]


def test_one_cell_of_a_finished_one_whose_files_have_changed(matrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = go(matrix, out).qualification
    go(matrix, out, resume=True, since=out)
    for name in BARE:
        file = matrix.parent / "bare" / f"{name}.yaml"
        file.write_text(file.read_text() + "# changed\n")
    asked = "bare/overflow [qemu 7.2]"
    lines = Lines()
    found = go(matrix, out, lines, resume=True, cell=asked).qualification
    assert lines.done == [asked]
    assert found.complete
    assert [cell.name for cell in found.cells] == [cell.name for cell in before.cells]
    changed = [new.name for old, new in zip(before.cells, found.cells, strict=True) if new != old]
    assert changed == [asked]
    assert found.comparison is not None


def test_killed_in_the_middle_and_resumed(matrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = subprocess.Popen(command(matrix, out), stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    done = []
    for line in running.stdout:
        if line.startswith("PASS"):
            done.append(line.split("s  ")[1].strip())
        if len(done) == 3:
            running.kill()
            break
    running.wait()
    running.stdout.close()
    lines = Lines()
    found = go(matrix, out, lines, resume=True).qualification
    assert found.complete
    assert not set(done) & set(lines.done)
    # The last one that was kept may not have been told of.
    assert len(lines.done) in (6, 7)
    assert "session 1 ended before it was done" in found.notes


def test_ctrl_c_and_resumed(matrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = subprocess.Popen(command(matrix, out), stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    text = ""
    for line in running.stdout:
        text += line
        if line.startswith("PASS") and running.poll() is None and text.count("PASS") == 2:
            running.send_signal(signal.SIGINT)
    running.stdout.close()
    assert running.wait() == 130
    assert "Not finished" in text
    assert f"--out {out} --resume" in text
    assert go(matrix, out, resume=True).qualification.complete


def test_two_in_one_folder(matrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = []

    def second(number: int) -> None:
        if number == 1:
            with pytest.raises(ConfigurationError) as caught:
                go(matrix, out, resume=True)
            said.append(caught.value.message)

    go(matrix, out, Lines(second))
    assert said == [f"{out} is used by another qualification (process {os.getpid()})"]
    with pytest.raises(ConfigurationError, match="has a qualification already"):
        go(matrix, out)


def test_another_matrix(matrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(matrix, out, text="page_2m [qemu 7.2")
    other = matrix.with_name("other.yaml")
    other.write_text(re.sub("^matrix: .*", "matrix: Another one", MATRIX, flags=re.M))
    with pytest.raises(ConfigurationError, match="is the qualification of another matrix"):
        go(other, out, resume=True)


def test_a_full_disk_in_the_middle(matrix: Path, tmp_path: Path) -> None:
    """The folder is on a file system of 260 KB, in a mount namespace of the process; what was kept is copied out."""
    out, small = tmp_path / "out", tmp_path / "small"
    small.mkdir()
    run = " ".join(map(shlex.quote, command(matrix, small / "out")))
    script = (
        f"mount -t tmpfs -o size=260k small {small} && {{ {run}; status=$?; cp -r {small}/out {out}; exit $status; }}"
    )
    # A user who may not mount needs a user namespace.
    mount = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    ended = subprocess.run([*mount, "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == FailureClass.INFRASTRUCTURE.exit_code, ended.stdout + ended.stderr
    assert "cannot be written" in ended.stderr
    assert "make room, then go on" in ended.stderr
    kept = [cell.name for cell in load_qualification(out).cells if cell.standing is Standing.PASS]
    assert 0 < len(kept) < 10
    lines = Lines()
    found = go(matrix, out, lines, resume=True).qualification
    assert found.complete
    assert all(cell.standing is Standing.PASS for cell in found.cells)
    assert sorted(kept + lines.done) == sorted(cell.name for cell in found.cells)


def test_a_damaged_file_is_made_again_from_the_cells(matrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = go(matrix, out).qualification
    file = out / FILE
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InfrastructureError) as caught:
        go(matrix, out, resume=True)
    assert "--rebuild" in str(caught.value.hint)
    (out / "cells" / "bare.overflow-qemu-7.2" / "verdict.json").write_text("{")
    lines = Lines()
    found = go(matrix, out, lines, rebuild=True).qualification
    assert lines.done == ["bare/overflow [qemu 7.2]"]
    assert any(re.match("9 results were read again, 1 could not be", text) for text in lines.said)
    kept = [(old, new) for old, new in zip(before.cells, found.cells, strict=True) if new.name not in lines.done]
    assert len(kept) == 9
    assert all(old.result == new.result for old, new in kept)
    assert (out / f"{FILE}.damaged-1").stat().st_size == 5000


def test_a_folder_that_may_not_be_written(matrix: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(InfrastructureError, match="cannot be written") as caught:
        go(matrix, tmp_path / "locked" / "out")
    assert "who owns" in str(caught.value.hint)


def test_infrastructure_is_tried_again_and_an_expectation_is_not(
    matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt at one cell fails as a full disk does; it is the real one after that."""
    from harness.run import schedule

    real, seen = schedule.run_cell, []

    def run_cell(cell: Cell, *rest: object) -> CellResult:
        seen.append(cell.name)
        result: CellResult = real(cell, *rest)  # type: ignore[arg-type]
        if cell.name == "bare/overflow [qemu 11.1]" and seen.count(cell.name) == 1:
            error = {"outcome": Outcome.ERROR, "failure_class": FailureClass.INFRASTRUCTURE, "message": "no disk"}
            return result.model_copy(update=error)
        return result

    monkeypatch.setattr(schedule, "run_cell", run_cell)
    wrong = matrix.parent / "bare" / "write_unmapped.yaml"
    wrong.write_text(wrong.read_text().replace("reason: 0x05, step", "reason: 0x06, step"))
    out = tmp_path / "out"
    found = {cell.name: cell for cell in go(matrix, out).qualification.cells}
    attempts = found["bare/overflow [qemu 11.1]"].attempts
    assert [one.outcome for one in attempts] == [Outcome.ERROR, Outcome.PASS]
    assert attempts[0].folder != attempts[1].folder
    assert all((Path(one.folder) / "verdict.json").is_file() for one in attempts)
    assert seen.count("bare/write_unmapped [qemu 11.1]") == 1
    assert found["bare/write_unmapped [qemu 11.1]"].standing is Standing.FAIL


def test_guests_on_points_with_other_expectations(tmp_path: Path) -> None:
    """The project's own scenarios, each on two vIOMMUs; what virtio-iommu says otherwise stands in the matrix."""
    root = tmp_path / "scenarios"
    (root / "dma").mkdir(parents=True)
    (root / "schema.json").write_text("{}")
    file = root / "dma" / "refused.yaml"
    text = (scenarios_dir() / "dma" / "unmapped_read.yaml").read_text()
    file.write_text(re.sub(r"\n  kernel_log:\n(    .*\n?)+", "\n", text))
    matrix = root / "m.yaml"
    matrix.write_text(
        "matrix: two vIOMMUs\naxes: {viommu: [intel, virtio], cmdline: [default]}\n"
        "expectations: [{when: {viommu: virtio}, reasons: {5: mapping, 6: mapping}, why: virtio has no VT-d codes}]\n"
    )
    out = tmp_path / "out"
    done = go(matrix, out)
    assert [cell.standing for cell in done.qualification.cells] == [Standing.PASS, Standing.PASS]
    ruled = done.qualification.cells[1]
    assert ruled.note == "other expectations here: virtio has no VT-d codes"
    assert ruled.result.rerun == shlex.join(["harness", "qualify", str(matrix), "--cell", ruled.name])
    row = json.loads((Path(ruled.result.folder) / keep.ROW_FILE).read_text())
    assert row["made_of"]["rule"]
    store = Store.open(out)
    columns = store._rows("SELECT viommu, cmdline, outcome, kernel_release, template FROM results ORDER BY number")
    store.close()
    assert sorted(row[:3] for row in columns) == [("intel", "default", "pass"), ("virtio", "default", "pass")]
    assert all(row[3].startswith("6.12") and row[4] for row in columns)
