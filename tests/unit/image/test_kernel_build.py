"""Compiled kernels in the cache: what makes a new one, what does not, and what a build that fails leaves."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import build, cache, kernel_build
from harness.image.apt import Package
from harness.image.cache import Say
from harness.image.kernel_build import Kernel, find_kernel, get_kernel, promised_options, recipe_key
from harness.image.kernel_make import Compiled
from harness.image.recipe import Recipe, Source
from harness.image.toolchain import Toolchain
from harness.paths import cache_dir, state_dir

SOURCE = Source(package="linux-source-.*", fragments=("base",), tools_suite="bookworm", tools=("gcc-12",))
RECIPE = Recipe(
    name="mine", title="t", kernel="lab", suites=("trixie", "trixie-backports"), source=SOURCE, packages=("busybox",)
)
FRAGMENT = "# What it is for.\nCONFIG_VFIO=y\n# CONFIG_SOUND is not set\nCONFIG_NR_CPUS=64\n"


class Host:
    """A host whose archive has a source and a compiler, and on which a kernel is compiled at once."""

    def __init__(self, images: Path) -> None:
        self.fragments = images / "kernel"
        self.fragments.mkdir(parents=True)
        (self.fragments / "base.config").write_text(FRAGMENT)
        self.names_found = ["linux-source-7.2.9", "linux-source-7.2.12"]
        self.versions = {"linux-source-7.2.12": "7.2.12-1", "gcc-12": "12.2"}
        self.tarballs = ["usr/src/linux-source-7.2.tar.xz"]
        self.asked: list[object] = []
        self.working: list[str] = []
        self.error: BaseException | None = None

    @contextlib.contextmanager
    def private_apt(self, suites: tuple[str, ...], mirror: str | None, say: Say) -> Iterator[Host]:
        self.asked.append((suites, mirror))
        self.working.append("apt")
        yield self
        self.working.pop()

    def names(self, pattern: str) -> list[str]:
        assert pattern == SOURCE.package
        return self.names_found

    def exactly(self, names: list[str]) -> list[Package]:
        return [Package(name, self.versions[name], f"{name}.deb", "SHA256:1", 1) for name in names]

    def download(self, packages: list[Package]) -> dict[str, Path]:
        self.asked.append(f"download {packages[0].name}")
        return {package.name: Path(package.file) for package in packages}

    def unpack(self, deb: Path, folder: Path) -> None:
        for name in self.tarballs:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(str(deb))

    def toolchain(self, packages: Any, resolved: list[Package], say: Say) -> Toolchain:
        return Toolchain(f"compiler {resolved[0].version}", self.fragments)

    def extract(self, tarball: Path, folder: Path) -> None:
        (folder / "mm").mkdir(parents=True)
        # As a folder of the source may be.
        (folder / "mm").chmod(0o555)

    def compile(self, source: Path, work: Path, options: Any, toolchain: Toolchain, log: Path, say: Say) -> Compiled:
        assert self.working == [], "the archive's lock is not held meanwhile"
        assert list(work.iterdir()) == [], "the package is not kept meanwhile"
        assert (source / "mm").is_dir()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("all that was said\n")
        if self.error:
            raise self.error
        (work / "vmlinux").write_text("kernel")
        config = "".join(f"{option.line}\n" for option in options)
        return Compiled(work / "vmlinux", config, "7.2.12-lab", 1200)

    def get(self, *, refresh: bool = False, source: Source = SOURCE) -> Kernel:
        return get_kernel(RECIPE, source, mirror="http://HOST/debian", say=lambda text: None, refresh=refresh)

    @property
    def compiled(self) -> int:
        return sum(str(one).startswith("download linux") for one in self.asked)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    host = Host(tmp_path / "images")
    monkeypatch.setattr(kernel_build, "images_dir", lambda: tmp_path / "images")
    for name in ("private_apt", "unpack"):
        monkeypatch.setattr(kernel_build.apt, name, getattr(host, name))
    monkeypatch.setattr(kernel_build, "get_toolchain", host.toolchain)
    monkeypatch.setattr(kernel_build, "extract", host.extract)
    monkeypatch.setattr(kernel_build, "compile_kernel", host.compile)
    monkeypatch.setattr(Toolchain, "check", lambda self, scratch: (scratch / "trial").touch())
    return host


def test_a_kernel_is_compiled_once_from_the_newest_source(host: Host):
    kernel = host.get()
    assert kernel.file.read_text() == "kernel"
    assert (kernel.release, kernel.config.splitlines()[0]) == ("7.2.12-lab", "CONFIG_VFIO=y")
    assert (host.compiled, "download linux-source-7.2.12" in host.asked) == (1, True)
    assert {suites for suites, _ in (one for one in host.asked if isinstance(one, tuple))} == {
        ("trixie", "trixie-backports"),
        ("bookworm",),
    }
    host.asked.clear()
    assert host.get() == kernel
    assert host.asked == [], "the archive is not even looked at"
    assert find_kernel(SOURCE) == kernel


def test_the_entry_has_the_kernel_and_what_it_was_made_from_and_nothing_else(host: Host):
    folder = host.get().file.parent
    assert {path.name for path in folder.iterdir()} == {"vmlinux", "config", "manifest.json", "stamps.json"}
    (entry,) = cache.entries(kernel_build.KIND)
    assert entry.facts["packages"] == {"linux-source-7.2.12": "7.2.12-1", "gcc-12": "12.2"}
    assert list((state_dir() / "logs").iterdir()) == []


@pytest.mark.parametrize("package", ["linux-source-7.2.12", "gcc-12"])
def test_a_newer_package_is_taken_when_it_is_asked_for(host: Host, package: str):
    first = host.get()
    host.versions[package] += "+b1"
    assert host.get() == first
    second = host.get(refresh=True)
    assert (second.key != first.key, host.compiled) == (True, 2)
    assert host.get() in (first, second), "both are of the same second"
    host.asked.clear()
    assert host.get(refresh=True) == second
    assert host.compiled == 0, "it is there"


def test_what_is_compiled_again_and_what_is_not(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = [recipe_key(SOURCE)]
    base = host.fragments / "base.config"
    base.write_text(FRAGMENT.replace("What it is for.", "For something else."))
    assert recipe_key(SOURCE) == keys[0], "a comment"
    base.write_text(FRAGMENT.replace("64", "8"))
    keys.append(recipe_key(SOURCE))
    keys.append(recipe_key(SOURCE.model_copy(update={"tools": ("gcc-13",)})))
    code = tmp_path / "code"
    code.mkdir()
    for name in ("kernel_make.py", "kernel_source.py", "toolchain.py"):
        shutil.copy(Path(kernel_build.__file__).with_name(name), code)
    monkeypatch.setattr(kernel_build, "__file__", str(code / "kernel_build.py"))
    assert recipe_key(SOURCE) == keys[1], "the same code elsewhere"
    with (code / "kernel_make.py").open("a") as file:
        file.write("# another flag\n")
    keys.append(recipe_key(SOURCE))
    assert len(set(keys)) == len(keys)


def test_an_image_follows_its_kernel(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Its recipe's key is another one when the kernel is, and the kernel's stays when the guest changes."""
    guest = tmp_path / "images/guest"
    guest.mkdir()
    monkeypatch.setattr(build, "images_dir", lambda: tmp_path / "images")
    (guest / "init").write_text("#!/bin/sh\n")
    image, kernel = build._recipe_key(RECIPE), recipe_key(SOURCE)
    (guest / "init").write_text("#!/bin/sh\n# changed\n")
    assert (build._recipe_key(RECIPE) == image, recipe_key(SOURCE) == kernel) == (False, True)
    image = build._recipe_key(RECIPE)
    (host.fragments / "base.config").write_text(FRAGMENT.replace("64", "8"))
    assert build._recipe_key(RECIPE) != image


@pytest.mark.parametrize(
    "error", [InfrastructureError("the kernel's build failed"), KeyboardInterrupt(), OSError(28, "No")]
)
def test_a_build_that_ends_early_leaves_its_log_and_no_entry(host: Host, error: BaseException):
    host.error = error
    with pytest.raises((InfrastructureError, KeyboardInterrupt)):
        host.get()
    assert cache.entries(kernel_build.KIND) == []
    assert list((cache_dir() / "making").iterdir()) == []
    (log,) = (state_dir() / "logs").iterdir()
    assert log.read_text() == "all that was said\n"
    host.error = None
    assert host.get().release == "7.2.12-lab"
    assert not log.exists()


def test_a_full_disk_is_told(host: Host):
    host.error = OSError(28, os.strerror(28))
    with pytest.raises(InfrastructureError, match="the disk is full"):
        host.get()


def test_a_damaged_kernel_is_compiled_again(host: Host):
    kernel = host.get()
    kernel.file.write_text("damaged")
    assert host.get().file.read_text() == "kernel"
    assert host.compiled == 2


def test_a_source_that_is_gone_is_told(host: Host):
    host.names_found = []
    with pytest.raises(InfrastructureError, match=r"no package of trixie, trixie-backports matches linux-source-\.\*"):
        host.get()


@pytest.mark.parametrize("tarballs", [[], ["usr/src/linux-source-7.2.tar.xz", "usr/src/linux-source-7.3.tar.xz"]])
def test_a_package_without_one_source_is_told(host: Host, tarballs: list[str]):
    host.tarballs = tarballs
    with pytest.raises(InfrastructureError, match=f"linux-source-7.2.12 7.2.12-1 has {len(tarballs)} files"):
        host.get()


def test_a_wrong_fragment_is_told_before_anything_is_fetched(host: Host):
    (host.fragments / "base.config").write_text("CONFIG_VFIO\n")
    for call in (host.get, lambda: host.get(refresh=True), lambda: promised_options(SOURCE)):
        with pytest.raises(ConfigurationError, match=r"base\.config:1"):
            call()
    assert host.asked == []


def test_what_a_fragment_asks_for_is_promised(host: Host):
    assert promised_options(SOURCE) == {"VFIO"}


def test_pruning_images_takes_kernels_and_compilers_that_are_of_no_use(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "load_recipe", lambda name: RECIPE)
    for kind in ("image", "toolchain"):
        cache.store(kind, "k", lambda folder: {"name": "mine", "packages": {}, "kernel_release": "x"})
    old = host.get()
    (host.fragments / "base.config").write_text(FRAGMENT.replace("64", "8"))
    kernel = host.get()
    said: list[str] = []
    assert build.prune_images(1, said.append) == ["k", old.key]
    assert said == ["removed image mine k", f"removed kernel mine {old.key[:12]}"]
    assert [entry.key for entry in cache.entries(kernel_build.KIND)] == [kernel.key]
    assert build.prune_images(0, said.append) == [kernel.key, "k"]
