"""The kernel's own build: from fragments to ``vmlinux``, told as it goes on and explained when it fails."""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfrastructureError
from harness.image.cache import Say
from harness.image.group import run_group
from harness.image.kernel_config import Option, check, merged
from harness.image.kernel_source import is_left_out
from harness.image.toolchain import Toolchain

# Nothing of the time and the place of the build may be in its result.
_SAME_EVERYWHERE = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "usdm-harness",
    "KBUILD_BUILD_HOST": "usdm-harness",
    "KBUILD_BUILD_VERSION": "1",
    "SOURCE_DATE_EPOCH": "0",
    "TZ": "UTC",
}
_COMPILED = re.compile(r"  (?:CC|AS) +(?!/)\S+\.o$")
# Files that the project's fragments compile, for what is said meanwhile.
_FILES = 1200
_STEPS = 10
_TAIL = 12
_BEFORE = 3
_PROGRESS = re.compile(r"  [A-Z]+ +\S")
_ERROR = re.compile(
    r": (?:fatal |internal compiler )?error: |undefined reference|: not found$|No space left|^make(?:\[\d+\])?: \*\*\*"
)
# Linking takes that much at once; the linker's scripts only say "I/O error" when it is not there.
_ROOM = 64 << 20
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
_KILLED = re.compile(r"Killed|internal compiler error: Killed|Cannot allocate memory|virtual memory exhausted")
_MISSING = re.compile(r"No rule to make target '(?P<name>[^']+)'")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a build gave.

    Args:
        vmlinux: the kernel as an ELF file, without symbols.
        config: its ``.config``, as text.
        release: as ``uname -r`` prints it.
        files: number of files that were compiled.
    """

    vmlinux: Path
    config: str
    release: str
    files: int


def compile_kernel(
    source: Path, work: Path, options: list[Option], toolchain: Toolchain, log: Path, say: Say
) -> Compiled:
    """Compile the kernel.

    Args:
        source: the unpacked source; it is not written to.
        work: an existing, empty folder for what the build makes.
        options: what the fragments ask for.
        toolchain: compiler and make.
        log: where the build's whole output goes.
        say: told what goes on.

    Raises:
        ConfigurationError: an option did not become what a fragment asks for.
        InfrastructureError: the build failed; the message has the end of its output and the log's place.
    """
    build = _Build(source, work, toolchain, log, say)
    fragments = work / "fragments.config"
    fragments.write_text(merged(options), encoding="utf-8")
    say("configuring the kernel")
    build.make("allnoconfig", KCONFIG_ALLCONFIG=str(fragments))
    config = (work / ".config").read_text(encoding="utf-8")
    check(options, config)
    jobs = len(os.sched_getaffinity(0))
    say(f"compiling the kernel, {jobs} files at once")
    build.make(f"-j{jobs}", "vmlinux")
    build.run("objcopy", "--strip-all", "vmlinux", "vmlinux.stripped")
    release = (work / "include/config/kernel.release").read_text(encoding="utf-8").strip()
    return Compiled(work / "vmlinux.stripped", config, release, build.files)


class _Build:
    """Runs make, and remembers what it says."""

    def __init__(self, source: Path, work: Path, toolchain: Toolchain, log: Path, say: Say) -> None:
        self.files = 0
        self._source = source
        self._work = work
        self._toolchain = toolchain
        self._log = log
        self._say = say
        self._last: deque[str] = deque(maxlen=_TAIL)
        self._errors: list[str] = []
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")

    def make(self, *words: str, **variables: str) -> None:
        compiler, flags = self._toolchain.for_host
        given = {"ARCH": "x86_64", "O": str(self._work), "HOSTCC": compiler, "HOSTLDFLAGS": flags, **variables}
        self.run("make", "-C", str(self._source), *(f"{name}={value}" for name, value in given.items()), *words)

    def run(self, *command: str) -> None:
        # The compiler's temporary files are swept with the working folder when the build is killed.
        temporary = self._work / "tmp"
        temporary.mkdir(exist_ok=True)
        env = {**self._toolchain.env, **_SAME_EVERYWHERE, "HOME": str(temporary), "TMPDIR": str(temporary)}
        with self._log.open("a", encoding="utf-8") as log:

            def on_line(line: str) -> None:
                log.write(f"{line}\n")
                self._note(line)

            status = run_group(list(command), env=env, cwd=self._work, on_line=on_line)
        if status:
            raise self._failure(command[0], status)

    def _note(self, line: str) -> None:
        self._last.append(line)
        # The first error with what stands around it: the last lines only say which folders were left.
        if not self._errors and _ERROR.search(line):
            self._errors = [one for one in self._last if not _PROGRESS.match(one)][-_BEFORE:]
        elif self._errors and len(self._errors) < _TAIL and not _PROGRESS.match(line):
            self._errors.append(line)
        if not _COMPILED.match(line):
            return
        self.files += 1
        if self.files % (_FILES // _STEPS) == 0:
            self._say(f"compiling: {self.files} of about {max(_FILES, self.files)} files")

    def _failure(self, program: str, status: int) -> InfrastructureError:
        """What a failed command means, and what to do."""
        said = self._errors or list(self._last)
        text = "\n".join(said).replace(f"{self._source}/", "")
        message = f"the kernel's build failed ({program}: exit status {status}):\n{text}\nall of it: {self._log}"
        context = {"build": text, "log": str(self._log)}
        if _NO_SPACE.search(text) or shutil.disk_usage(self._work).free < _ROOM:
            return InfrastructureError(
                f"the disk is full while the kernel is compiled; all that was said: {self._log}",
                hint="free some space (it takes about 1 GB), or point XDG_CACHE_HOME elsewhere",
                context=context,
            )
        hint = None
        missing = _MISSING.search(text)
        if _KILLED.search(text):
            hint = "the host has too little memory: 200 MB for each file that is compiled at once"
        elif missing and is_left_out(missing["name"]):
            hint = "harness/image/kernel_source.py leaves the source of that folder out"
        return InfrastructureError(message, hint=hint, context=context)
