"""The compiler out of packages: unpacked once, reached through wrappers, and tried before it is used.

The programs are shell scripts here; tests/guest boots what the real ones compile.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import InfrastructureError
from harness.image import cache, toolchain
from harness.image.apt import Package
from harness.image.toolchain import Toolchain, get_toolchain, key_of

BIN = "usr/bin"
TARGET = "x86_64-linux-gnu"
PROGRAMS = (
    *(f"{TARGET}-{name}" for name in ("ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip")),
    *(f"{TARGET}-gcc-12", f"{TARGET}-gcc-ar-12", "gcc-12", "bc", "bison", "flex", "m4", "make"),
)
NOT_NEEDED = (f"{BIN}/{TARGET}-lto-dump-12", "usr/lib/gcc/x86_64-linux-gnu/12/lto1", "usr/share/doc/make/copyright")
# Answers as a compiler whose program runs: it writes the program.
GCC = "#!/bin/sh\necho \"$0 $*|$LD_LIBRARY_PATH\" >>log\nprintf '#!/bin/sh\\necho runs\\n' >trial\nchmod 755 trial\n"
PACKAGES = [Package("gcc-12", "12.2.0-14", "gcc-12_amd64.deb", "SHA256:1", 1), Package("make", "4.3", "m.deb", "x", 1)]


class Archive:
    """Packages that are unpacked into pretended programs."""

    def __init__(self) -> None:
        self.programs = dict.fromkeys(PROGRAMS, "#!/bin/sh\necho $0\n") | {f"{TARGET}-gcc-12": GCC}
        self.downloads = 0

    def download(self, packages: list[Package]) -> dict[str, Path]:
        self.downloads += 1
        return {package.name: Path(package.file) for package in packages}

    def unpack(self, deb: Path, folder: Path) -> None:
        if deb.name != "gcc-12_amd64.deb":
            return
        for name, text in {
            **{f"{BIN}/{n}": t for n, t in self.programs.items()},
            **dict.fromkeys(NOT_NEEDED, ""),
        }.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Archive:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = Archive()
    monkeypatch.setattr(toolchain.apt, "unpack", archive.unpack)
    return archive


def got(archive: Any, said: list[str] | None = None) -> Toolchain:
    return get_toolchain(archive, PACKAGES, ([] if said is None else said).append)


def test_it_is_unpacked_once_and_without_what_is_not_needed(archive: Archive):
    first = got(archive)
    assert got(archive) == first
    assert archive.downloads == 1
    for name in NOT_NEEDED:
        assert not (first.folder / name).exists()
    (entry,) = cache.entries(toolchain.KIND)
    assert entry.facts["packages"] == {"gcc-12": "12.2.0-14", "make": "4.3"}


def test_a_damaged_one_is_unpacked_again(archive: Archive):
    (got(archive).folder / "bin/gcc").write_text("damaged")
    said: list[str] = []
    assert "exec" in (got(archive, said).folder / "bin/gcc").read_text()
    assert "damaged (bin/gcc was changed)" in said[0]


@pytest.mark.parametrize("change", [{"version": "12.2.0-15"}, {"digest": "SHA256:2"}, {"name": "gcc-13"}])
def test_every_package_counts_in_the_key(change: dict[str, str]):
    other = Package(**{**{name: getattr(PACKAGES[0], name) for name in Package.__slots__}, **change})
    assert key_of([other, PACKAGES[1]]) != key_of(PACKAGES)
    assert key_of(PACKAGES) == key_of(list(PACKAGES))


@pytest.mark.parametrize("move", [False, True])
def test_a_wrapper_starts_its_program_with_the_packages_libraries(archive: Archive, tmp_path: Path, move: bool):
    folder = got(archive).folder
    if move:
        folder = folder.rename(tmp_path / "a cache that was moved")
    done = subprocess.run(
        ["gcc", "-o", "x y"], env={"PATH": f"{folder}/bin:{os.defpath}"}, cwd=tmp_path, check=True, capture_output=True
    )
    assert done.stderr == b""
    program, libraries = (tmp_path / "log").read_text().strip().split("|")
    assert program == f"{folder}/bin/../usr/bin/{TARGET}-gcc-12 -o x y"
    root = f"{folder}/bin/.."
    assert libraries == f"{root}/usr/lib/{TARGET}:{root}/lib/{TARGET}"


def test_nothing_of_the_hosts_environment_is_in_the_builds(archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/the/users")
    env = got(archive).env
    assert set(env) == {"PATH", "LC_ALL", "M4", "BISON_PKGDATADIR"}
    assert "/the/users" not in env["PATH"]


@pytest.mark.parametrize("name", ["bc", f"{TARGET}-gcc-12", f"{TARGET}-ld"])
def test_packages_that_lack_a_program_are_refused_and_leave_nothing(archive: Archive, name: str):
    del archive.programs[name]
    with pytest.raises(InfrastructureError, match="0 programs") as caught:
        got(archive)
    assert name.removesuffix("12") in caught.value.message
    assert cache.entries(toolchain.KIND) == []


def test_it_is_tried_by_a_program_that_it_compiles(archive: Archive, tmp_path: Path):
    compiler = got(archive)
    compiler.check(tmp_path)
    assert f"--sysroot={compiler.folder} -o trial trial.c -lelf -static -lz|" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("gcc", "said"),
    [
        (
            "#!/bin/sh\necho \"cc1: /lib/libc.so.6: version 'GLIBC_2.36' not found\" >&2\nexit 1\n",
            "'GLIBC_2.36' not found",
        ),
        ("#!/no/such/loader\n", "not found"),
        ("#!/bin/sh\nexit 4\n", "exit status 4"),
        ("#!/bin/sh\nprintf '#!/bin/sh\\necho walks\\n' >trial\nchmod 755 trial\n", "exit status 0"),
    ],
)
def test_a_host_that_cannot_run_it_is_told_what_it_needs(archive: Archive, tmp_path: Path, gcc: str, said: str):
    archive.programs[f"{TARGET}-gcc-12"] = gcc
    with pytest.raises(InfrastructureError, match=said) as caught:
        got(archive).check(tmp_path)
    assert "does not work on this host (glibc " in caught.value.message
    assert "2.36 or later" in str(caught.value.hint)


def test_a_host_without_a_c_library_of_its_name(monkeypatch: pytest.MonkeyPatch):
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(toolchain.os, "confstr", unknown)
    assert toolchain._c_library() == "no GNU C library"


def test_a_host_without_a_program_is_told_its_package(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    missing = {"awk", "cmp", "diff"}
    which = SimpleNamespace(which=lambda name, path: None if name in missing else f"/bin/{name}")
    monkeypatch.setattr(toolchain, "shutil", which)
    with pytest.raises(InfrastructureError, match="compiling a kernel takes cmp, diff, awk, which") as caught:
        got(archive).check(tmp_path)
    assert caught.value.hint == "install diffutils, mawk"
