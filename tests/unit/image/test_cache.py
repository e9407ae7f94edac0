"""The cache: whole entries or none, damage found, two builders at once, leftovers swept."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.image import cache

KEY = "ab" * 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "usdm-harness"


def fill(folder: Path) -> dict[str, object]:
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(b"x" * 1000)
    (folder / "link").symlink_to("sub/data")
    return {"made": "by a test"}


def test_an_entry_is_found_again_with_its_facts():
    assert cache.find("image", KEY) is None
    made = cache.store("image", KEY, fill)
    found = cache.find("image", KEY)
    assert found == made
    assert found.facts == {"made": "by a test"}
    assert [entry.key for entry in cache.entries("image")] == [KEY]
    assert found.size >= 1000


@pytest.mark.parametrize("trust_stamps", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_damage_is_found_and_the_entry_removed(damage: str, trust_stamps: bool):
    entry = cache.store("image", KEY, fill)
    assert cache.find("image", KEY, trust_stamps=True) == entry
    data = entry.folder / "sub" / "data"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(b"x" * 999 if damage == "truncated" else b"y" * 1000)
    with pytest.raises(cache.DamagedEntryError, match="sub/data"):
        cache.find("image", KEY, trust_stamps=trust_stamps)
    assert cache.find("image", KEY) is None
    assert cache.store("image", KEY, fill).folder.is_dir()


def test_a_full_disk_leaves_nothing_and_says_so(own_cache: Path):
    def full(folder: Path) -> dict[str, object]:
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InfrastructureError, match="disk is full"):
        cache.store("image", KEY, full)
    assert cache.find("image", KEY) is None
    assert list((own_cache / "making").iterdir()) == []


def test_an_interrupted_builder_leaves_nothing(own_cache: Path):
    def interrupted(folder: Path) -> dict[str, object]:
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.store("image", KEY, interrupted)
    assert list((own_cache / "making").iterdir()) == []


def hang(folder: Path) -> dict[str, object]:
    (folder / "half").write_bytes(b"x")
    (folder.parent.parent / "started").touch()
    time.sleep(600)
    return {}


def build_hanging() -> None:
    cache.store("image", KEY, hang)


def test_what_a_killed_builder_left_is_swept(own_cache: Path):
    context = multiprocessing.get_context("spawn")
    builder = context.Process(target=build_hanging)
    builder.start()
    try:
        while not (own_cache / "started").exists():
            assert builder.is_alive()
            time.sleep(0.01)
        assert builder.pid is not None
        os.kill(builder.pid, signal.SIGKILL)
    finally:
        builder.join(30)
    assert list((own_cache / "making").iterdir())
    assert cache.find("image", KEY) is None
    cache.store("image", "cd" * 32, fill)  # another key's builder sweeps as well
    assert list((own_cache / "making").iterdir()) == []


def count_and_fill(folder: Path) -> dict[str, object]:
    with (folder.parent.parent / "count").open("a") as file:
        file.write("x")
    time.sleep(0.2)
    return fill(folder)


def build_counting() -> None:
    cache.store("image", KEY, count_and_fill)


def test_two_builders_at_once_make_one_entry(own_cache: Path):
    context = multiprocessing.get_context("spawn")
    builders = [context.Process(target=build_counting) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
        assert builder.exitcode == 0
    assert (own_cache / "count").read_text() == "x"
    assert cache.find("image", KEY) is not None


def test_a_spoilt_manifest_is_no_entry():
    entry = cache.store("image", KEY, fill)
    (entry.folder / "manifest.json").write_text("{")
    assert cache.find("image", KEY) is None
    assert cache.entries("image") == []
    assert cache.store("image", KEY, fill) == cache.find("image", KEY), "it is not in the way of a new one"


def test_an_entry_that_was_made_anew_meanwhile_is_not_removed(monkeypatch: pytest.MonkeyPatch):
    """Two processes find the same damage; the slower one must not remove what the faster one has built."""
    cache.store("image", KEY, fill)
    answers = iter(["sub/data was changed", None])
    monkeypatch.setattr(cache, "_verify", lambda entry, key, trust_stamps: next(answers))
    assert cache.find("image", KEY) is not None


def test_read_only_folders_of_packages_are_removed(tmp_path: Path):
    folder = tmp_path / "tree"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / "link").symlink_to(tmp_path)
    (folder / "a" / "b").chmod(0o555)
    (folder / "a").chmod(0o000)
    cache.remove_tree(folder)
    assert not folder.exists()
    assert tmp_path.is_dir()


def test_a_cache_that_cannot_be_written_is_an_error(own_cache: Path):
    own_cache.parent.mkdir()
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(InfrastructureError, match="cannot be used"):
        cache.store("image", KEY, fill)


def test_waiting_for_another_process_is_told(tmp_path: Path):
    said: list[str] = []
    holding, told = threading.Event(), threading.Event()

    def hold() -> None:
        with cache.waiting_lock(tmp_path / "lock"):
            holding.set()
            told.wait(30)

    def say(text: str) -> None:
        said.append(text)
        told.set()

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(30)
    with cache.waiting_lock(tmp_path / "lock", say):
        holder.join()
    assert said == ["waiting for what somebody else is making for the cache"]
