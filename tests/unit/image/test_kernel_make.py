"""The kernel's build as the host sees it: what make is told, what is said meanwhile, and every way to fail.

make is a shell script here. tests/guest boots what the real one gives.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import kernel_make
from harness.image.kernel_config import Option
from harness.image.kernel_make import Compiled, compile_kernel
from harness.image.toolchain import Toolchain

OPTIONS = [Option("VFIO", "y", "vfio.config:2"), Option("SOUND", "n", "base.config:7")]
MAKE = r"""#!/bin/sh
echo "$@" >>"$HOME/../../make.arguments"
env >"$HOME/../../make.environment"
for word; do
    case $word in */source) source=$word ;; O=*) out=${word#O=} ;; KCONFIG_ALLCONFIG=*) fragments=${word#*=} ;; esac
done
cd "$out" || exit 1
case "$*" in
    *allnoconfig) cp "$fragments" .config ;;
    *)
        mkdir -p include/config
        echo 7.2.12-lab >include/config/kernel.release
        echo symbols >vmlinux
        . "$HOME/../../compiling"
        ;;
esac
"""
OBJCOPY = '#!/bin/sh\n[ "$1" = --strip-all ] || exit 1\nsed s/symbols/kernel/ "$2" >"$3"\n'


@dataclass
class Build:
    """A build with pretended tools in a folder."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, text in (("make", MAKE), ("objcopy", OBJCOPY)):
            path = self.folder / "tools/bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        (self.folder / "source").mkdir()
        (self.folder / "work").mkdir()
        self.compiling("")

    def compiling(self, script: str) -> None:
        """What the compilation does."""
        (self.folder / "compiling").write_text(script)

    @property
    def log(self) -> Path:
        return self.folder / "state/kernel.log"

    def run(self, options: list[Option] = OPTIONS) -> Compiled:
        toolchain = Toolchain("k", self.folder / "tools")
        return compile_kernel(
            self.folder / "source", self.folder / "work", options, toolchain, self.log, self.said.append
        )


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_the_kernel_its_configuration_and_its_release(build: Build):
    compiled = build.run()
    assert compiled.vmlinux.read_text() == "kernel\n", "without symbols"
    assert compiled.config == "CONFIG_VFIO=y\n# CONFIG_SOUND is not set\n"
    assert (compiled.release, compiled.files) == ("7.2.12-lab", 0)


def test_nothing_of_the_host_or_the_time_is_in_a_build(build: Build, monkeypatch: pytest.MonkeyPatch):
    for name in ("MAKEFLAGS", "KCFLAGS", "LANG", "CROSS_COMPILE", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "the user's")
    build.run()
    environment = dict(line.split("=", 1) for line in (build.folder / "make.environment").read_text().splitlines())
    assert "the user's" not in environment.values()
    assert environment["PATH"] == f"{build.folder}/tools/bin:{os.defpath}"
    assert {"KBUILD_BUILD_TIMESTAMP", "KBUILD_BUILD_USER", "KBUILD_BUILD_HOST", "SOURCE_DATE_EPOCH"} <= set(environment)
    assert Path(environment["TMPDIR"]).is_relative_to(build.folder / "work")
    configuring, compiling = (build.folder / "make.arguments").read_text().splitlines()
    assert f"HOSTCC=gcc --sysroot={build.folder}/tools HOSTLDFLAGS=-static" in configuring
    assert compiling.endswith(f" -j{len(os.sched_getaffinity(0))} vmlinux")


def test_an_option_that_is_not_followed_ends_it_before_anything_is_compiled(build: Build):
    (build.folder / "tools/bin/make").write_text(MAKE.replace('cp "$fragments"', 'grep -v VFIO "$fragments" >'))
    with pytest.raises(ConfigurationError, match=r"vfio\.config:2: 'CONFIG_VFIO=y' became '# CONFIG_VFIO is not set'"):
        build.run()
    assert len((build.folder / "make.arguments").read_text().splitlines()) == 1


def test_progress_is_a_line_now_and_then(build: Build):
    # Neither what is compiled for the host nor what is linked counts.
    build.compiling(
        "i=0; while [ $i -lt 1300 ]; do i=$((i+1)); echo \"  CC      mm/file$i.o\"; echo '  AR      mm/built-in.a'; "
        "echo '  CC      /build/tools/objtool/check.o'; echo '  AS      arch/x86/head.o'; done"
    )
    assert build.run().files == 2600
    counts = [text for text in build.said if text.startswith("compiling: ")]
    assert counts[0] == "compiling: 120 of about 1200 files"
    assert counts[-1] == "compiling: 2520 of about 2520 files"
    assert len(counts) == 21
    assert build.log.read_text().count("\n") == 4 * 1300


def test_a_compilers_error_is_told_with_what_follows_and_where_the_rest_is(build: Build):
    build.compiling(
        "echo 'In file included from mm/slub.c:1:'; echo '  CC      mm/slub.o'; "
        "echo 'mm/slub.c:7:1: error: expected identifier' >&2; echo '  CC      mm/util.o'; "
        'echo "make[3]: *** [$source/mm/slub.o] Error 1"; '
        "i=0; while [ $i -lt 13 ]; do i=$((i+1)); echo line $i; done; exit 2"
    )
    with pytest.raises(InfrastructureError) as caught:
        build.run()
    message = caught.value.message
    assert message.startswith(
        "the kernel's build failed (make: exit status 2):\nIn file included from mm/slub.c:1:\nmm/slub.c:7:1: "
    )
    assert "*** [mm/slub.o] Error 1" in message
    assert "mm/util.o" not in message, "what else is compiled at the same time"
    assert "line 9\n" in message
    assert "line 10" not in message
    assert message.endswith(f"all of it: {build.log}")
    assert "line 13\n" in build.log.read_text()


def test_what_ends_without_a_word_of_an_error_is_told_by_its_last_lines(build: Build):
    build.compiling("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do echo line $i; done; kill -SEGV $$")
    with pytest.raises(InfrastructureError, match=r"exit status 139.*\nline 2\n(.*\n)*line 13\nall of it"):
        build.run()


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ("fatal error: error writing to /t/x.s: No space left on device", "^the disk is full", "free some space"),
        ("gcc: fatal error: Killed signal terminated program cc1", "failed", "too little memory"),
        (
            "make[5]: *** No rule to make target 'drivers/gpu/drm/a.o', needed by 'drivers/gpu/built-in.a'.  Stop.",
            "failed",
            "kernel_source.py leaves the source",
        ),
        ("drivers/x.c:1:10: fatal error: sound/core.h: No such file or directory", "failed", None),
        ("mm/x.c:1:10: error: 'y' undeclared", "failed", None),
    ],
)
def test_an_error_with_a_meaning_says_what_to_do(build: Build, line: str, said: str, hint: str | None):
    (build.folder / "lines").write_text(f"{line}\n")
    build.compiling(f"cat {build.folder}/lines; exit 2")
    with pytest.raises(InfrastructureError, match=said) as caught:
        build.run()
    assert str(build.log) in caught.value.message
    assert caught.value.hint is None if hint is None else hint in str(caught.value.hint)


def test_a_full_disk_is_noticed_where_nothing_says_so(build: Build, monkeypatch: pytest.MonkeyPatch):
    build.compiling("echo 'link-vmlinux.sh: 297: echo: echo: I/O error'; exit 1")
    monkeypatch.setattr(kernel_make.shutil, "disk_usage", lambda path: SimpleNamespace(free=4 << 20))
    with pytest.raises(InfrastructureError, match="the disk is full while the kernel is compiled"):
        build.run()


def test_the_log_of_an_earlier_build_is_overwritten(build: Build):
    build.log.parent.mkdir()
    build.log.write_text("old\n")
    build.run()
    assert build.log.read_text() == ""
