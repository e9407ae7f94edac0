"""The store of durations: merged by several processes, and never in the way."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import filelock
import pytest

from harness.paths import state_dir
from harness.run import durations
from harness.run.durations import Durations, key


@pytest.fixture
def store(tmp_path: Path) -> Durations:
    return Durations(tmp_path / "state" / "durations.json")


def test_the_last_duration_of_a_scenario_is_kept_for_each_kind_of_start(store: Durations):
    assert store.load() == {}
    store.merge({key("dma/a", "boot"): 6.0, key("dma/a", "clone"): 0.5})
    store.merge({key("dma/a", "clone"): 0.75})
    assert store.load() == {"boot dma/a": 6.0, "clone dma/a": 0.75}


def test_it_is_in_the_users_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Durations().merge({"boot a": 1.0})
    assert Durations().file == state_dir() / "durations.json"
    assert tmp_path in Durations().file.parents
    assert Durations().load() == {"boot a": 1.0}


def test_only_the_newest_are_kept(store: Durations, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(durations, "MAX_ENTRIES", 3)
    store.merge({"a": 1.0, "b": 2.0, "c": 3.0})
    store.merge({"a": 4.0, "d": 5.0})
    assert list(store.load().items()) == [("c", 3.0), ("a", 4.0), ("d", 5.0)]


def test_nothing_new_makes_no_file(store: Durations):
    store.merge({})
    assert not store.file.parent.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "\xff\xfe",
        "[]",
        "3",
        '{"format": 1}',
        '{"format": 2, "seconds": {"a": 1}}',
        '{"format": 1, "seconds": [1]}',
        json.dumps({"format": 1, "seconds": {"a": "1", "b": None, "c": True, "d": -1, "e": [1], "f": 10**400}}),
        '{"format": 1, "seconds": {"a": NaN, "b": Infinity, "c": 1e999}}',
    ],
    ids=range(11),
)
def test_a_damaged_store_is_empty_and_is_replaced(store: Durations, text: str):
    store.file.parent.mkdir()
    store.file.write_text(text, encoding="latin-1")
    assert store.load() == {}
    store.merge({"new": 2.0})
    assert store.load() == {"new": 2.0}


def test_what_is_sound_in_a_damaged_store_is_kept(store: Durations):
    store.file.parent.mkdir()
    store.file.write_text('{"format": 1, "seconds": {"good": 2, "bad": "x"}}')
    assert store.load() == {"good": 2.0}


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path):
    (tmp_path / "file").touch()
    store = Durations(tmp_path / "file" / "durations.json")
    store.merge({"a": 1.0})
    assert store.load() == {}


def test_a_store_that_cannot_be_replaced_is_no_error_and_nothing_is_left(store: Durations):
    store.file.mkdir(parents=True)
    (store.file / "in the way").touch()
    store.merge({"a": 1.0})
    assert store.load() == {}
    assert [path.name for path in store.file.parent.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize("error", [PermissionError, NotImplementedError, lambda: filelock.Timeout("lock")])
def test_a_lock_that_cannot_be_had_is_no_error(store: Durations, monkeypatch: pytest.MonkeyPatch, error):
    def refuse(self: object, *arguments: object, **more: object) -> None:
        raise error()

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    store.merge({"a": 1.0})
    assert store.load() == {}


def merge_many(file: Path, name: str) -> None:
    for number in range(20):
        Durations(file).merge({f"{name}{number}": 1.0})


def test_several_processes_lose_nothing(store: Durations):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=merge_many, args=(store.file, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert set(store.load()) == {f"{name}{number}" for name in "ab" for number in range(20)}
