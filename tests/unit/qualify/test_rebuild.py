"""A results file made anew: what is interrupted can be gone on with, and evidence is where the folder is now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.qualified.database import CELLS, FILE, Planned, Store
from harness.qualify.keep import ROW_FILE
from harness.qualify.place import held
from harness.qualify.rebuild import rebuild
from harness.report.json_report import write_cell
from harness.results import CellResult, Outcome

CELL = Planned("dma/a", "dma/a", {}, {}, "f1", {"qemu": "k"})


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder with one cell that is whole, and a damaged results file with a journal."""
    folder = tmp_path / "out"
    where = folder / CELLS / "dma.a"
    where.mkdir(parents=True)
    result = CellResult(
        scenario="dma/a", title="t", source="s", file="f", seconds=1.5, outcome=Outcome.PASS, folder=str(where)
    )
    write_cell(result, where)
    row = {"name": "dma/a", "attempt": 1, "fingerprint": "f1", "made_of": {"qemu": "k"}}
    (where / ROW_FILE).write_text(json.dumps(row))
    (folder / FILE).write_bytes(b"damaged")
    (folder / f"{FILE}-journal").write_bytes(b"journal")
    return folder


def results(store: Store) -> list[CellResult]:
    found = [result for _, _, result in store.results()]
    store.close()
    return found


def test_the_journal_goes_with_its_file(damaged: Path) -> None:
    assert len(results(rebuild(damaged, [CELL], print))) == 1
    assert (damaged / f"{FILE}.damaged-1").read_bytes() == b"damaged"
    assert (damaged / f"{FILE}.damaged-1-journal").read_bytes() == b"journal"
    assert {path.name for path in damaged.iterdir() if path.name.startswith(FILE)} == {
        FILE, f"{FILE}.damaged-1", f"{FILE}.damaged-1-journal",
    }  # fmt: skip


def test_one_that_meets_a_full_disk_leaves_the_old_file_and_can_be_done_again(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise InfrastructureError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", full)
        with pytest.raises(InfrastructureError):
            rebuild(damaged, [CELL], print)
    assert (damaged / FILE).read_bytes() == b"damaged"
    with held(damaged, make=True):
        assert len(results(rebuild(damaged, [CELL], print))) == 1


def test_one_that_is_killed_between_two_names_can_be_done_again(damaged: Path) -> None:
    (damaged / FILE).rename(damaged / f"{FILE}.damaged-1")
    (damaged / f"{FILE}.new").write_bytes(b"begun")
    (damaged / "notes.txt").touch()
    with held(damaged, make=True):
        assert len(results(rebuild(damaged, [CELL], print))) == 1
    assert not (damaged / f"{FILE}.new").exists()


def test_evidence_is_where_the_folder_was_moved(damaged: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.move(damaged, moved)
    assert [one.folder for one in results(rebuild(moved, [CELL], print))] == [str(moved / CELLS / "dma.a")]
