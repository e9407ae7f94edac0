"""Intel's C library: recipes, the cache, and getting it with an apt that only pretends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import cache, library
from harness.image.library import DEFAULT, fetch_library, find_library, library_names, load_library_recipe

FILE = "usr/lib/x86_64-linux-gnu/libusdm.so.0"
RECIPE = f"""\
title: a library
suites: [forky, sid]
package: libusdm0
version: '26\\.08\\..*'
file: {FILE}
"""


@dataclass
class PretendedApt:
    """One package in place of an archive; it counts what was asked of it."""

    version: str = "26.08.0-2"
    digest: str = "d" * 64
    content: bytes = b"\x7fELF of libusdm"
    file: str = FILE
    asked: list[object] = field(default_factory=list)

    @contextlib.contextmanager
    def private_apt(self, suites: tuple[str, ...], mirror: str | None, say: object) -> Iterator[PretendedApt]:
        self.asked.append((suites, mirror))
        yield self

    def exactly(self, names: list[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, version=self.version, digest=self.digest) for name in names]

    def download(self, packages: list[SimpleNamespace]) -> dict[str, Path]:
        self.asked.append("download")
        return {one.name: Path(f"/packages/{one.name}.deb") for one in packages}

    def unpack(self, deb: Path, folder: Path) -> None:
        assert deb == Path("/packages/libusdm0.deb")
        target = folder / self.file
        target.parent.mkdir(parents=True)
        target.write_bytes(self.content)
        (folder / "usr/share").mkdir(mode=0o555)


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "images" / "libraries"
    folder.mkdir(parents=True)
    (folder / "26.08.yaml").write_text(RECIPE)
    monkeypatch.setattr(library, "images_dir", lambda: tmp_path / "images")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch) -> PretendedApt:
    pretended = PretendedApt()
    monkeypatch.setattr(library.apt, "private_apt", pretended.private_apt)
    monkeypatch.setattr(library.apt, "unpack", pretended.unpack)
    return pretended


def quiet(text: str) -> None:
    """Be told nothing."""


# ---- recipes


def test_the_recipes_that_come_along_can_be_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert library_names() == sorted(library_names())
    assert DEFAULT in library_names()
    for name in library_names():
        recipe = load_library_recipe(name)
        assert (recipe.name, recipe.package) == (name, "libusdm0")
        assert recipe.file.endswith(".so.0")


def test_a_recipe_is_read(recipes: Path):
    recipe = load_library_recipe("26.08")
    assert (recipe.name, recipe.title, recipe.suites) == ("26.08", "a library", ("forky", "sid"))
    assert (recipe.package, recipe.version, recipe.file) == ("libusdm0", r"26\.08\..*", FILE)


@pytest.mark.parametrize("name", ["27.02", "", "../26.08", "26.08.yaml"])
def test_an_unknown_name_is_refused_with_the_known_ones(recipes: Path, name: str):
    (recipes / "24.02.yaml").write_text(RECIPE)
    for ask in (load_library_recipe, find_library, lambda name: fetch_library(name, say=pytest.fail)):
        with pytest.raises(ConfigurationError, match=f"no libusdm '{name}'") as caught:
            ask(name)
        assert caught.value.hint == "--libusdm takes: 24.02, 26.08"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list\n",
        "a word\n",
        "title: [unclosed\n",
        "1: a number as a key\n",
        RECIPE.replace("package: libusdm0\n", ""),
        RECIPE.replace("suites: [forky, sid]", "suites: []"),
        RECIPE.replace("suites: [forky, sid]", "suites: forky"),
        RECIPE.replace("libusdm0", "a name; with more"),
        RECIPE.replace(r"'26\.08\..*'", "'('"),
        RECIPE + "dependencies: [libc6]\n",
    ],
)
def test_a_wrong_recipe_is_the_users_mistake_and_names_the_file(recipes: Path, text: str):
    (recipes / "26.08.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"libraries/26\.08\.yaml: is no recipe for a library"):
        load_library_recipe("26.08")


def test_a_recipe_that_is_no_text(recipes: Path):
    (recipes / "26.08.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is no recipe"):
        load_library_recipe("26.08")


# ---- the cache


def test_one_that_is_not_there_says_how_to_get_it():
    with pytest.raises(InfrastructureError, match=r"libusdm 26\.08 is not in the cache") as caught:
        find_library("26.08")
    assert "harness fetch --libusdm 26.08" in str(caught.value.hint)


def test_offline_nothing_is_asked_of_the_archive(apt: PretendedApt):
    with pytest.raises(InfrastructureError, match="not in the cache"):
        fetch_library("26.08", offline=True, say=pytest.fail)
    assert apt.asked == []


def test_it_is_fetched_once_and_then_found(apt: PretendedApt):
    fetched = fetch_library("26.08", mirror="http://m.example/debian", say=quiet)
    assert apt.asked == [(("forky", "sid"), "http://m.example/debian"), "download"]
    assert fetched.file.read_bytes() == apt.content
    assert (fetched.name, fetched.version, len(fetched.key)) == ("26.08", "26.08.0-2", 64)
    assert [path.name for path in fetched.file.parent.iterdir() if path.suffix != ".json"] == ["libusdm.so"]
    assert find_library("26.08") == fetched
    assert fetch_library("26.08", say=pytest.fail) == fetched
    assert fetch_library("26.08", offline=True, say=pytest.fail) == fetched
    assert len(apt.asked) == 2


def test_a_damaged_one_is_fetched_again(apt: PretendedApt):
    fetched = fetch_library("26.08", say=quiet)
    fetched.file.write_bytes(b"something else")
    said: list[str] = []
    again = fetch_library("26.08", say=said.append)
    assert again == fetched
    assert again.file.read_bytes() == apt.content
    assert len(said) == 1
    assert "is damaged (libusdm.so was changed)" in said[0]
    assert said[0].endswith("; getting it again")


def test_offline_a_damaged_one_stays_an_error(apt: PretendedApt):
    fetched = fetch_library("26.08", say=quiet)
    fetched.file.unlink()
    with pytest.raises(cache.DamagedEntryError, match=r"libusdm\.so is missing"):
        fetch_library("26.08", offline=True, say=pytest.fail)
    # It was set aside, so from now on there is none.
    with pytest.raises(InfrastructureError, match="not in the cache"):
        find_library("26.08")


@pytest.mark.parametrize("version", ["26.11.0-1", "26.080-1", "1:26.08.0-2"])
def test_a_suite_that_has_moved_on_is_noticed_before_anything_is_downloaded(apt: PretendedApt, version: str):
    apt.version = version
    with pytest.raises(InfrastructureError, match=f"libusdm0 of forky, sid is {version} now") as caught:
        fetch_library("26.08", say=quiet)
    assert "the suite has moved on" in str(caught.value.hint)
    assert "download" not in apt.asked
    assert cache.entries("library") == []


def test_a_package_without_the_file_leaves_nothing(apt: PretendedApt):
    apt.file = "usr/lib/libother.so"
    with pytest.raises(InfrastructureError, match=rf"libusdm0 26\.08\.0-2 has no {FILE}"):
        fetch_library("26.08", say=quiet)
    assert cache.entries("library") == []


def test_another_recipe_is_another_library(apt: PretendedApt, recipes: Path):
    first = fetch_library("26.08", say=quiet)
    (recipes / "26.08.yaml").write_text(RECIPE.replace("[forky, sid]", "[sid]"))
    with pytest.raises(InfrastructureError, match="not in the cache"):
        find_library("26.08")
    apt.content = b"rebuilt"
    second = fetch_library("26.08", say=quiet)
    assert second.key != first.key
    assert find_library("26.08").file.read_bytes() == b"rebuilt"


def test_a_package_that_was_built_again_is_another_entry(apt: PretendedApt):
    first = fetch_library("26.08", say=quiet)
    cache.remove(cache.entries("library")[0])
    apt.digest = "e" * 64
    assert fetch_library("26.08", say=quiet).key != first.key
