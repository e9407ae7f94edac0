"""A module compiled against unpacked headers: how these are mended, what make is told, and every way to fail.

make is a shell script here. tests/guest/test_kernel_module.py loads what the real one gives.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.image.module_make import compile_module, header_packages
from harness.image.toolchain import Toolchain

RELEASE = "7.2.12+deb13-amd64"
MAKE = """#!/bin/sh
echo "$@" >"$HOME/arguments"
env >"$HOME/environment"
. "$HOME/making"
"""
CONFIG = """CONFIG_CC_HAS_ASSUME=y
CONFIG_CC_HAS_ASSUME_MORE=y
CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=y
CONFIG_CC_OPT_INLINE_MEMSET="-finline-stringops=memset"
CONFIG_DEBUG_INFO_BTF=y
CONFIG_DEBUG_INFO_BTF_MODULES=y
CONFIG_PCI=y
"""
DEFINED = "#define CONFIG_CC_HAS_ASSUME 1\n#define CONFIG_DEBUG_INFO_BTF_MODULES 1\n#define CONFIG_PCI 1\n"


@dataclass
class Build:
    """Unpacked packages and pretended tools in a folder."""

    folder: Path

    def __post_init__(self) -> None:
        files = {
            f"src/linux-headers-{RELEASE}/include/config/auto.conf": CONFIG,
            f"src/linux-headers-{RELEASE}/include/generated/autoconf.h": DEFINED,
            "src/linux-headers-7.2.12+deb13-common/Makefile": "",
            "lib/linux-kbuild-7.2.12+deb13/scripts/basic/fixdep": "a program",
            "lib/linux-kbuild-7.2.12+deb13/scripts/mod/modpost": "chooses",
            "lib/linux-kbuild-7.2.12+deb13/scripts/mod/modpost.real-lsb-64": "a program",
            "lib/linux-kbuild-7.2.12+deb13/tools/objtool/objtool": "chooses",
            "lib/linux-kbuild-7.2.12+deb13/tools/objtool/objtool.real-x86": "a program",
            "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": '#!/bin/sh\necho "$@"\n',
        }
        for name, text in files.items():
            path = self.headers / "usr" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        make = self.folder / "tools/bin/make"
        make.parent.mkdir(parents=True)
        make.write_text(MAKE)
        make.chmod(0o755)
        self.source.mkdir()
        self.making('echo object >"$HOME/a.ko"')

    @property
    def headers(self) -> Path:
        return self.folder / "head ers"

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def kbuild(self) -> Path:
        return self.headers / "usr/lib/linux-kbuild-7.2.12+deb13"

    def making(self, script: str) -> None:
        """What make does."""
        (self.source / "making").write_text(f"{script}\n")

    def run(self) -> Path:
        toolchain = Toolchain("key", self.folder / "tools")
        return compile_module(self.source, self.headers, RELEASE, toolchain, self.folder / "logs/module.log")


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_the_packages_of_a_kernel():
    assert header_packages(RELEASE) == (
        "linux-headers-7.2.12+deb13-amd64",
        "linux-headers-7.2.12+deb13-common",
        "linux-kbuild-7.2.12+deb13",
    )


def test_what_make_is_told(build: Build):
    assert build.run() == build.source / "a.ko"
    arguments = (build.source / "arguments").read_text()
    ours = build.headers / f"usr/src/linux-headers-{RELEASE}"
    assert f"-C {build.headers}/usr/src/linux-headers-7.2.12+deb13-common O={ours} M={build.source} " in arguments
    assert arguments.endswith("CC=gcc CROSS_COMPILE= KCFLAGS=-g0 modules\n")
    environment = dict(line.split("=", 1) for line in (build.source / "environment").read_text().splitlines())
    assert environment["TMPDIR"] == str(build.source)
    assert environment["PATH"].startswith(f"{build.folder}/tools/bin:")
    assert "override KERNELRELEASE = 7.2.12+deb13-amd64\n" in (ours / ".kernelvariables").read_text()


def test_only_what_the_compiler_lacks_is_taken_away(build: Build):
    build.run()
    ours = build.headers / f"usr/src/linux-headers-{RELEASE}/include"
    assert (ours / "config/auto.conf").read_text() == "CONFIG_CC_HAS_ASSUME_MORE=y\nCONFIG_PCI=y\n"
    # struct module has members for BTF: what C sees of it stays.
    assert (ours / "generated/autoconf.h").read_text() == DEFINED.partition("\n")[2]


@pytest.mark.parametrize(
    ("script", "program"),
    [
        ("scripts/basic/fixdep", "scripts/basic/fixdep.program"),
        ("scripts/mod/modpost", "scripts/mod/modpost.real-lsb-64"),
        ("tools/objtool/objtool", "tools/objtool/objtool.real-x86"),
    ],
)
def test_the_headers_programs_run_by_their_own_loader(build: Build, script: str, program: str):
    build.run()
    assert (build.kbuild / program).read_text() == "a program"
    done = subprocess.run([build.kbuild / script, "-a", "b c"], capture_output=True, text=True, check=True)
    libraries = build.headers / "usr/lib/x86_64-linux-gnu"
    assert done.stdout == f"--library-path {libraries} {build.kbuild / program} -a b c\n"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (f"src/linux-headers-{RELEASE}/include/config/auto.conf", "have no auto.conf"),
        ("lib/linux-kbuild-7.2.12+deb13/tools/objtool/objtool.real-x86", "lack the program objtool.real-x86"),
        ("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lack the program ld-linux-x86-64.so.2"),
    ],
)
def test_packages_that_are_not_as_expected(build: Build, missing: str, said: str):
    (build.headers / "usr" / missing).unlink()
    with pytest.raises(InfrastructureError, match=said) as caught:
        build.run()
    assert "module_make.py" in str(caught.value.hint)


def test_a_failure_tells_the_first_error_and_keeps_all_of_it(build: Build):
    said = ["1", "2", "3", "4", "  CC [M]  a.o", "a.c:7:2: error: no such thing", "make: *** [a.o] Error 1"]
    build.making("\n".join([*(f"echo '{line}'" for line in said), "exit 2"]))
    with pytest.raises(InfrastructureError) as caught:
        build.run()
    message = caught.value.message
    # With what stands right before the error.
    shown = "\n".join(said[2:])
    assert f"kernel {RELEASE} cannot be built (make: exit status 2):\n{shown}\nall of it: " in message
    log = build.folder / "logs/module.log"
    assert str(log) in message
    assert log.read_text().splitlines() == said


@pytest.mark.parametrize("script", ["true", 'touch "$HOME/a.ko" "$HOME/b.ko"'])
def test_success_without_one_module_is_a_failure(build: Build, script: str):
    build.making(script)
    with pytest.raises(InfrastructureError, match="it said nothing"):
        build.run()
