"""results.sqlite: what is written is read again; what is damaged, foreign or full is said, and nothing kept is lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import ConfigurationError, FailureClass, InfrastructureError
from harness.qualified.database import CELLS, FILE, Planned, Store, has_store
from harness.qualified.records import Standing
from harness.qualified.store import load_qualification, read
from harness.qualify.resume import with_asked
from harness.results import CellResult, Evidence, Outcome, StepEvidence

POINT = {"qemu": "11.1", "kernel": "6.12"}
LABELS = {**POINT, "viommu": "intel"}


def planned(name: str, fingerprint: str = "f1", note: str = "") -> Planned:
    return Planned(name, name.partition(" [")[0], POINT, LABELS, fingerprint, {"qemu": "k"}, note)


def result(name: str, outcome: Outcome = Outcome.PASS, message: str = "", **more: object) -> CellResult:
    failure = {Outcome.FAIL: FailureClass.EXPECTATION, Outcome.ERROR: FailureClass.INFRASTRUCTURE}.get(outcome)
    facts = {"scenario": name, "title": "t", "source": "s", "file": "f", "seconds": 1.5, "message": message}
    return CellResult(**{**facts, "outcome": outcome, "failure_class": failure, **more})  # type: ignore[arg-type]


def facts(**more: object) -> dict[str, object]:
    known = {
        "scenario": "dma/*", "when": {"viommu": ["intel"]}, "signature": "bad", "reason": "r",
        "link": "docs/a.md", "until": "2026-12-31", "place": "known.yaml:2",
    }  # fmt: skip
    start = {"title": "T", "matrix": "/m.yaml", "axes": {"qemu": ["11.1"]}, "not_run": [], "known": [known]}
    return {**start, "day": "2026-11-22", "notes": [], **more}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path)
    made.plan(facts(), [planned("dma/a"), planned("dma/b"), planned("dma/c")])
    made.begin("2026-11-22T00:00:00+00:00", ["harness"], {"cores": "2"}, "local", 2)
    return made


def test_what_was_written_is_read(store: Store, tmp_path: Path) -> None:
    odd = "\ud800 \x00 </script>"
    steps = (StepEvidence(index=0, kind="map", args={}, values={"said": odd, "nan": float("inf")}),)
    whole = result("dma/a", evidence=Evidence(steps=steps), folder=str(tmp_path / "cells" / "dma.a"))
    store.add(1, 2.0, planned("dma/a"), 1, whole)
    store.add(1, 3.0, planned("dma/b"), 1, result("dma/b", Outcome.ERROR, "no disk"))
    store.add(1, 4.0, planned("dma/b"), 2, result("dma/b", Outcome.FAIL, "it is bad"))
    store.close()
    found = load_qualification(tmp_path)
    assert found.cells[0].result == whole
    assert [one.outcome for one in found.cells[1].attempts] == [Outcome.ERROR, Outcome.FAIL]
    assert [one.standing for one in found.cells] == [Standing.PASS, Standing.KNOWN]
    assert (found.planned, found.complete, found.seconds) == (3, False, 4.0)
    assert (found.title, found.started, found.jobs) == ("T", "2026-11-22T00:00:00+00:00", 2)


def test_evidence_follows_the_folder(store: Store, tmp_path: Path) -> None:
    store.add(1, 2.0, planned("dma/a"), 1, result("dma/a", folder=str(tmp_path / "cells" / "dma.a")))
    store.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / FILE).rename(elsewhere / FILE)
    assert load_qualification(elsewhere).cells[0].result.folder == str(elsewhere / "cells" / "dma.a")


def test_a_result_of_what_has_changed_since_does_not_count(store: Store, tmp_path: Path) -> None:
    store.add(1, 2.0, planned("dma/a", "f0"), 1, result("dma/a"))
    assert [cell.name for cell in load_qualification(tmp_path).cells] == []
    assert store.last["dma/a"].fingerprint == "f0"


def test_an_order_of_rows_not_of_clocks(store: Store, tmp_path: Path) -> None:
    store.end(1, 5.0, "interrupted", ["first"])
    store.begin("1999-01-01T00:00:00+00:00", ["harness", "--resume"], {}, "local", 1)
    store.add(2, 1.0, planned("dma/a"), 1, result("dma/a"))
    found = load_qualification(tmp_path)
    assert found.started == "2026-11-22T00:00:00+00:00"
    assert found.notes == ("session 1 was interrupted by Ctrl-C", "first")
    assert found.seconds == 6.0


def test_a_failed_expectation_stays_one_whatever_comes_of_it_later(store: Store, tmp_path: Path) -> None:
    for name, later in (("dma/a", Outcome.PASS), ("dma/b", Outcome.SKIP), ("dma/c", Outcome.ERROR)):
        store.add(1, 2.0, planned(name), 1, result(name, Outcome.FAIL, "wrong"))
        store.add(1, 3.0, planned(name), 2, result(name, later))
    found = load_qualification(tmp_path).cells
    assert [one.standing for one in found] == [Standing.FAIL] * 3
    assert [one.result.message for one in found] == ["wrong"] * 3
    assert [len(one.attempts) for one in found] == [2, 2, 2]
    assert "passed when it was run again" in found[0].note
    # Of what has changed since, it says nothing.
    store.plan(facts(), [planned("dma/a", "f2")])
    store.add(1, 4.0, planned("dma/a", "f2"), 3, result("dma/a"))
    assert [one.standing for one in load_qualification(tmp_path).cells] == [Standing.PASS]


def test_a_finished_one_stays_so_when_one_cell_is_asked_for_and_all_have_changed(store: Store, tmp_path: Path) -> None:
    for name in ("dma/a", "dma/b", "dma/c"):
        store.add(1, 2.0, planned(name), 1, result(name))
    comparison = {"before": "2026-01-01", "folder": "/gone", "newly_failing": ["dma/b"]}
    store.note("comparison", comparison)
    now, cells = with_asked(store, facts(comparison=None, known=[]), [planned("dma/b", "f2")])
    store.plan(now, cells)
    store.add(1, 3.0, planned("dma/b", "f2"), 2, result("dma/b"))
    found = load_qualification(tmp_path)
    assert found.complete
    assert [(one.name, one.fingerprint) for one in found.cells] == [("dma/a", "f1"), ("dma/b", "f2"), ("dma/c", "f1")]
    assert found.comparison is not None
    assert found.comparison.newly_failing == ("dma/b",)
    assert found.title == "T"
    # A cell that the matrix has not had before comes last, with its values.
    more = Planned("dma/d", "dma/d", {"qemu": "7.2"}, LABELS, "f2")
    store.plan(*with_asked(store, now | {"known": []}, [more]))
    found = load_qualification(tmp_path)
    assert (found.planned, len(found.cells), found.axes["qemu"]) == (4, 3, ("11.1", "7.2"))


def test_a_skipped_cell_is_not_run(store: Store, tmp_path: Path) -> None:
    store.add(1, 2.0, planned("dma/a"), 1, result("dma/a", Outcome.SKIP, "needs KVM"))
    found = load_qualification(tmp_path)
    assert [one.reason for one in found.not_run] == ["needs KVM"]
    assert found.planned == 2


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no results\.sqlite"):
        load_qualification(tmp_path)


def _change_schema(file: Path, old: str, new: str) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        statement = "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = 'results'"
        connection.execute(statement, (old, new))
    connection.close()


@pytest.mark.parametrize("damage", ["truncated", "text", "middle", "a result", "a rule broken"])
def test_a_damaged_file_says_so_and_what_to_do(store: Store, tmp_path: Path, damage: str) -> None:
    for number in range(40):
        store.add(1, 2.0, planned(f"dma/{number}"), 1, result(f"dma/{number}", message=os.urandom(999).hex()))
    store.plan(facts(), [planned(f"dma/{number}") for number in range(40)])
    store.close()
    file = tmp_path / FILE
    data = file.read_bytes()
    match damage:
        case "truncated":
            file.write_bytes(data[: len(data) // 2])
        case "text":
            file.write_bytes(b"results: none\n" * 99)
        case "middle":
            file.write_bytes(data[:8192] + os.urandom(len(data) - 8192))
        case "a rule broken":
            _change_schema(file, "outcome TEXT NOT NULL", "outcome TEXT")
            with sqlite3.connect(file) as connection:
                connection.execute("UPDATE results SET outcome = NULL WHERE name = 'dma/7'")
            connection.close()
            _change_schema(file, "outcome TEXT", "outcome TEXT NOT NULL")
        case "a result":
            with sqlite3.connect(file) as connection:
                connection.execute("UPDATE results SET result = X'00' WHERE name = 'dma/7'")
            connection.close()
    with pytest.raises(InfrastructureError) as caught:
        load_qualification(tmp_path)
    assert str(file) in caught.value.message
    assert "--rebuild" in str(caught.value.hint)


@pytest.mark.parametrize(("number", "age"), [(2, "a later"), (0, "an earlier")])
def test_another_format(store: Store, tmp_path: Path, number: int, age: str) -> None:
    store.close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(f"PRAGMA user_version={number}")
    connection.close()
    with pytest.raises(
        ConfigurationError, match=f"has format {number}, and this version of harness reads format 1"
    ) as e:
        load_qualification(tmp_path)
    assert f"from {age} version" in str(e.value.hint)


def test_a_file_of_another_program(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(ConfigurationError, match="is no file of a qualification"):
        load_qualification(tmp_path)


def test_what_was_kept_stays_when_the_disk_is_full(store: Store, tmp_path: Path) -> None:
    store.add(1, 2.0, planned("dma/a"), 1, result("dma/a"))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(InfrastructureError, match="database or disk is full") as caught:
        store.add(1, 3.0, planned("dma/b"), 1, result("dma/b", message=os.urandom(50_000).hex()))
    assert "--resume" in str(caught.value.hint)
    store._connection.execute("PRAGMA max_page_count=1000000")
    store.add(1, 4.0, planned("dma/c"), 1, result("dma/c"))
    assert [cell.name for cell in load_qualification(tmp_path).cells] == ["dma/a", "dma/c"]


_KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import facts, planned, result, Store
store = Store.open(Path(sys.argv[1]))
store.add(1, 2.0, planned("dma/a"), 1, result("dma/a"))
store._connection.execute("PRAGMA cache_size=1")
store._connection.execute("BEGIN IMMEDIATE")
for number in range(200):
    store._connection.execute("UPDATE facts SET value = ? WHERE name = 'title'", ('"' + "x" * 100_000 + '"',))
    store._connection.execute("INSERT INTO facts VALUES (?, ?)", (f"n{number}", '"' + "x" * 9_000 + '"'))
os.kill(os.getpid(), 9)
"""


def test_what_was_kept_stays_when_the_process_is_killed_while_it_writes(store: Store, tmp_path: Path) -> None:
    store.close()
    command = [sys.executable, "-c", _KILLED, str(tmp_path), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -9
    assert (tmp_path / f"{FILE}-journal").exists(), "it was not killed while it wrote"
    found = load_qualification(tmp_path)
    assert found.title == "T"
    assert [cell.name for cell in found.cells] == ["dma/a"]


def test_an_empty_file_is_none(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    assert not has_store(tmp_path)


@pytest.mark.parametrize("empty", [True, False])
def test_results_without_their_file_are_no_new_qualification(tmp_path: Path, *, empty: bool) -> None:
    (tmp_path / CELLS / "dma.a").mkdir(parents=True)
    if empty:
        (tmp_path / FILE).touch()
    with pytest.raises(InfrastructureError, match="is empty" if empty else "is gone") as caught:
        Store.open(tmp_path)
    assert "--rebuild" in str(caught.value.hint)


def test_the_command_line_is_that_of_the_last_start(store: Store, tmp_path: Path) -> None:
    store.begin("2026-11-23T00:00:00+00:00", ["harness", "--usdm", "mine"], {}, "local", 2)
    store.close()
    assert load_qualification(tmp_path).argv == ("harness", "--usdm", "mine")


def test_what_counts_as_slower_is_kept(store: Store, tmp_path: Path) -> None:
    assert load_qualification(tmp_path).slower == 1.5
    store.plan(facts(slower=3.0), [])
    store.close()
    assert load_qualification(tmp_path).slower == 3.0


def test_a_skipped_cell_that_was_asked_for_is_not_missing(store: Store, tmp_path: Path) -> None:
    from harness.qualify.run import Done, asked_names

    wanted = [planned("dma/a"), planned("dma/b")]
    store.add(1, 2.0, wanted[0], 1, result("dma/a", Outcome.SKIP, "no such device there"))
    assert asked_names(wanted, store.last) == ("dma/b",)
    assert asked_names([planned("dma/a", "f2")], store.last) == ("dma/a",)
    store.add(1, 3.0, wanted[1], 1, result("dma/b"))
    assert Done(tmp_path, read(store), asked_names(wanted, store.last)).judged.complete
    store.close()
