"""A kernel module compiled against the headers of a Debian kernel, unpacked side by side and never installed.

Three things keep such headers from working as they are, and each is mended in the unpacked copy:

* They were made for a newer gcc than the compiler out of the cache: the options that say what that one can do are
  taken away.
* The programs that come with them (modpost, objtool, ...) want a newer C library than the host may have: each becomes
  a script that runs the program by the loader and the libraries of its own packages.
* BTF takes a program and the whole kernel; a module does without.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from harness.errors import InfrastructureError
from harness.image.group import run_group
from harness.image.toolchain import Toolchain

HOST_LIBRARIES = ("libc6", "libelf1t64", "libzstd1", "zlib1g")
"""Packages of the libraries that the headers' programs are linked to."""

_ARCH = "-amd64"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
# Script to the program behind it, below the package linux-kbuild's folder. Debian's modpost and objtool only choose one
# of several by their own path, which a program that is run by its loader does not see.
_PROGRAMS = {
    "scripts/basic/fixdep": "scripts/basic/fixdep",
    "scripts/mod/modpost": "scripts/mod/modpost.real-lsb-64",
    "tools/objtool/objtool": "tools/objtool/objtool.real-x86",
}
_WRAPPER = '#!/bin/sh\nexec {loader} --library-path {libraries} {program} "$@"\n'
_VARIABLES = "override ARCH = x86\noverride KERNELRELEASE = {release}\n"
# What gcc 12 does not have: -fmin-function-alignment, -finline-stringops, __attribute__((assume)). None of them changes
# the layout of anything.
_NEWER = ("CC_HAS_MIN_FUNCTION_ALIGNMENT", "CC_OPT_INLINE_MEMSET", "CC_HAS_ASSUME")
# Only out of what make reads: struct module has members for it, and must be as the kernel's.
_NOT_MADE = ("DEBUG_INFO_BTF", "DEBUG_INFO_BTF_MODULES")
_ERROR = re.compile(r"(?:fatal )?error: |ERROR: |not found$|No space left|^make(?:\[\d+\])?: \*\*\*")
_TAIL = 12
_BEFORE = 3  # a program that does not start says why before make does


def header_packages(release: str) -> tuple[str, ...]:
    """The packages with a kernel's headers.

    Args:
        release: as ``uname -r`` prints it, e.g. ``7.2.12+deb13-amd64``.
    """
    base = release.removesuffix(_ARCH)
    return (f"linux-headers-{release}", f"linux-headers-{base}-common", f"linux-kbuild-{base}")


def compile_module(source: Path, headers: Path, release: str, toolchain: Toolchain, log: Path) -> Path:
    """Compile a module.

    Args:
        source: a folder with its source and ``Kbuild``; it is written to.
        headers: the unpacked packages of :func:`header_packages` and :data:`HOST_LIBRARIES`; they are changed.
        release: the kernel.
        toolchain: compiler and make.
        log: where the build's output goes when it fails.

    Returns:
        The ``.ko`` in ``source``.

    Raises:
        InfrastructureError: the packages are not as expected, or the build failed; the message says why.
    """
    base = release.removesuffix(_ARCH)
    ours = headers / f"usr/src/linux-headers-{release}"
    _adapt(ours, release)
    _wrap_programs(headers, headers / f"usr/lib/linux-kbuild-{base}")
    command = ["make", "-C", str(headers / f"usr/src/linux-headers-{base}-common"), f"O={ours}", f"M={source}"]
    # Without debugging symbols, which would have the paths of this build in them.
    command += ["CC=gcc", "CROSS_COMPILE=", "KCFLAGS=-g0", "modules"]
    lines: list[str] = []
    env = {**toolchain.env, "HOME": str(source), "TMPDIR": str(source), "KBUILD_BUILD_TIMESTAMP": "1970-01-01"}
    status = run_group(command, env=env, cwd=source, on_line=lines.append)
    built = sorted(source.glob("*.ko"))
    if status or len(built) != 1:
        raise _failure(lines, status, release, log)
    return built[0]


def _adapt(ours: Path, release: str) -> None:
    """Take out of the headers' configuration what this compiler does not have."""
    try:
        (ours / ".kernelvariables").write_text(_VARIABLES.format(release=release), encoding="utf-8")
        for name, options, line in (
            ("include/config/auto.conf", (*_NEWER, *_NOT_MADE), r"^CONFIG_(?:{})=.*\n"),
            ("include/generated/autoconf.h", _NEWER, r"^#define CONFIG_(?:{}) .*\n"),
        ):
            path = ours / name
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(line.format("|".join(options)), "", text, flags=re.MULTILINE), encoding="utf-8")
    except FileNotFoundError as error:
        raise InfrastructureError(
            f"the headers of kernel {release} have no {Path(str(error.filename)).name}, so no module can be built",
            hint="Debian packs them in another way now: change harness/image/module_make.py",
        ) from error


def _wrap_programs(headers: Path, kbuild: Path) -> None:
    loader, libraries = headers / _LOADER, headers / _LIBRARIES
    for name, program in _PROGRAMS.items():
        script, real = kbuild / name, kbuild / program
        for path in (real, loader):
            if not path.is_file():
                raise InfrastructureError(
                    f"the kernel's headers lack the program {path.name}",
                    hint="Debian packs them in another way now: change harness/image/module_make.py",
                )
        if real == script:
            real = script.rename(script.with_suffix(".program"))
        words = {"loader": loader, "libraries": libraries, "program": real}
        quoted = {key: shlex.quote(str(path)) for key, path in words.items()}
        script.unlink(missing_ok=True)
        script.write_text(_WRAPPER.format(**quoted), encoding="utf-8")
        script.chmod(0o755)


def _failure(lines: list[str], status: int, release: str, log: Path) -> InfrastructureError:
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n".join([*lines, ""]), encoding="utf-8")
    first = next((index for index, line in enumerate(lines) if _ERROR.search(line)), max(0, len(lines) - _TAIL))
    text = "\n".join(lines[max(0, first - _BEFORE) : first + _TAIL]) or "it said nothing"
    return InfrastructureError(
        f"the test module for kernel {release} cannot be built (make: exit status {status}):\n{text}\nall of it: {log}",
        hint="only --implementation kernel and both need it",
        context={"build": text, "log": str(log)},
    )
