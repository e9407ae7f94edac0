"""The test module: for which kernels, the cache, and building it with an apt and a compiler that only pretend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import cache, module
from harness.image.build import Image
from harness.image.module import fetch_module, find_module, module_kernels, prune_modules, source_dir, unsupported
from harness.image.recipe import load_recipe

RELEASE = "7.2.12+deb13-amd64"
VERSION = "7.2.12-1~bpo13+1"
IMAGE = Image(
    name="trixie-7.2",
    key="k" * 64,
    folder=Path("/nowhere"),
    kernel=Path("/nowhere/vmlinux"),
    initrd=Path("/nowhere/initrd.img"),
    kernel_release=RELEASE,
    packages={f"linux-image-{RELEASE}": VERSION, "libc6": "2.41"},
    created="2026-01-01T00:00:00+00:00",
    size=1,
)


@dataclass
class Pretended:
    """An archive with the headers, and a compiler; what was asked of them."""

    lacking: str = ""
    fails: str = ""
    asked: list[object] = field(default_factory=list)

    @contextlib.contextmanager
    def private_apt(self, suites: tuple[str, ...], mirror: str | None, say: object) -> Iterator[Pretended]:
        self.asked.append((suites, mirror))
        yield self

    def exactly(self, names: list[str]) -> list[SimpleNamespace]:
        if self.lacking and any(self.lacking in name for name in names):
            raise InfrastructureError("the mirror has no such package", context={"apt": "E: no version"})
        self.asked.append(names)
        parted = [name.partition("=") for name in names]
        return [SimpleNamespace(name=name, version=version or "1", digest="d") for name, _, version in parted]

    def download(self, packages: list[SimpleNamespace]) -> dict[str, Path]:
        return {one.name: Path(f"/packages/{one.name}.deb") for one in packages}

    def unpack(self, deb: Path, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / deb.name).touch()

    def get_toolchain(self, packages: object, resolved: list[SimpleNamespace], say: object) -> SimpleNamespace:
        return SimpleNamespace(key="toolchain", check=lambda scratch: self.asked.append(scratch.is_dir()))

    def compile_module(self, source: Path, headers: Path, release: str, toolchain: object, log: Path) -> Path:
        if self.fails:
            raise InfrastructureError(self.fails)
        assert (source / "Kbuild").is_file()
        assert (headers / f"linux-headers-{RELEASE}.deb").is_file()
        built = source / "dma_iova_test.ko"
        built.write_bytes(f"module for {release}".encode())
        return built


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    one = Pretended()
    monkeypatch.setattr(module.apt, "private_apt", one.private_apt)
    monkeypatch.setattr(module.apt, "unpack", one.unpack)
    monkeypatch.setattr(module, "get_toolchain", one.get_toolchain)
    monkeypatch.setattr(module, "compile_module", one.compile_module)
    return one


def quiet(text: str) -> None:
    """Be told nothing."""


def test_the_kernels_that_it_is_for():
    assert module_kernels() == ["7.2"]
    assert unsupported(load_recipe("trixie-7.2")) is None
    assert unsupported(load_recipe("lab")) == "kernel lab loads no modules"
    assert "6.12 has no dma_iova_*: they came with 6.16" in str(unsupported(load_recipe("trixie")))


def test_the_kernels_are_in_the_order_of_their_releases(monkeypatch: pytest.MonkeyPatch):
    recipe = load_recipe("trixie-7.2")
    recipes = {kernel: recipe.model_copy(update={"kernel": kernel}) for kernel in ("10.0", "6.9", "7.2", "6.16")}
    monkeypatch.setattr(module, "recipe_names", lambda: list(recipes))
    monkeypatch.setattr(module, "load_recipe", recipes.__getitem__)
    assert module_kernels() == ["6.16", "7.2", "10.0"]


@pytest.mark.parametrize("name", ["trixie", "lab"])
def test_another_kernel_is_the_users_mistake(pretended: Pretended, name: str):
    image = replace(IMAGE, name=name)
    for ask in (find_module, lambda image: fetch_module(image, say=quiet)):
        with pytest.raises(ConfigurationError, match="no test module for this kernel") as caught:
            ask(image)
        assert caught.value.hint == "choose --kernel 7.2"
    assert pretended.asked == []


def test_one_that_is_not_there_says_how_to_get_it(pretended: Pretended):
    for ask in (find_module, lambda image: fetch_module(image, offline=True, say=quiet)):
        with pytest.raises(InfrastructureError, match=r"kernel 7\.2\.12\+deb13-amd64 is not in the cache") as caught:
            ask(IMAGE)
        assert "harness fetch --module 7.2" in str(caught.value.hint)
    assert pretended.asked == []


def test_it_is_built_once_of_the_headers_of_exactly_this_kernel(pretended: Pretended):
    built = fetch_module(IMAGE, mirror="http://m.example/debian", say=quiet)
    assert built.release == RELEASE
    assert built.file.read_bytes() == f"module for {RELEASE}".encode()
    tools, names = pretended.asked[0], pretended.asked[3]
    assert tools == (("bookworm",), "http://m.example/debian")
    assert names == [
        f"linux-headers-{RELEASE}={VERSION}",
        f"linux-headers-7.2.12+deb13-common={VERSION}",
        f"linux-kbuild-7.2.12+deb13={VERSION}",
        *("libc6", "libelf1t64", "libzstd1", "zlib1g"),
    ]
    assert pretended.asked[4] is True
    assert [path.name for path in built.file.parent.iterdir() if path.suffix != ".json"] == ["dma_iova_test.ko"]
    assert find_module(IMAGE) == built
    assert fetch_module(IMAGE, offline=True, say=pytest.fail) == built
    assert len(pretended.asked) == 5


def test_another_build_of_the_kernel_or_another_source_is_another_module(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    built = fetch_module(IMAGE, say=quiet)
    newer = replace(IMAGE, packages={f"linux-image-{RELEASE}": "7.2.12-2~bpo13+1"})
    with pytest.raises(InfrastructureError):
        find_module(newer)
    changed = tmp_path / "images/module/dma_iova_test"
    changed.mkdir(parents=True)
    for path in source_dir().iterdir():
        (changed / path.name).write_bytes(path.read_bytes() + b"\n")
    monkeypatch.setattr(module, "source_dir", lambda: changed)
    with pytest.raises(InfrastructureError):
        find_module(IMAGE)
    assert fetch_module(IMAGE, say=quiet).key != built.key


def test_a_damaged_one_is_built_again(pretended: Pretended):
    built = fetch_module(IMAGE, say=quiet)
    built.file.write_bytes(b"something else")
    said: list[str] = []
    assert fetch_module(IMAGE, say=said.append) == built
    assert "is damaged (dma_iova_test.ko was changed)" in said[0]


def test_an_archive_that_has_moved_on(pretended: Pretended):
    pretended.lacking = "linux-headers"
    with pytest.raises(InfrastructureError, match=r"no headers of kernel 7\.2\.12\+deb13-amd64 7\.2\.12-1") as caught:
        fetch_module(IMAGE, say=quiet)
    assert "harness image build trixie-7.2 --refresh" in str(caught.value.hint)
    assert caught.value.context["apt"] == "E: no version"
    assert cache.entries(module.KIND) == []


def test_an_image_that_does_not_say_its_kernels_version(pretended: Pretended):
    with pytest.raises(InfrastructureError, match="does not say from which version"):
        find_module(replace(IMAGE, packages={}))


def test_a_build_that_fails_leaves_nothing(pretended: Pretended):
    pretended.fails = "cannot be built"
    with pytest.raises(InfrastructureError, match="cannot be built"):
        fetch_module(IMAGE, say=quiet)
    assert cache.entries(module.KIND) == []


def test_pruning_keeps_those_of_the_images(pretended: Pretended, monkeypatch: pytest.MonkeyPatch):
    built = fetch_module(IMAGE, say=quiet)
    monkeypatch.setattr(module, "find_image", lambda name: IMAGE)
    assert prune_modules(1, quiet) == []

    def gone(name: str) -> Image:
        raise InfrastructureError("no image")

    monkeypatch.setattr(module, "find_image", gone)
    assert prune_modules(1, quiet) == [built.key]
