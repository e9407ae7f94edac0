"""The compiler for the lab kernel: Debian packages unpacked side by side, so that none has to be installed.

The same packages give the same kernel on every host. The programs run with their own libraries on the host's C library.
A wrapper in ``bin/`` sets that up for each: a ``LD_LIBRARY_PATH`` for the whole build would also reach the host's
programs that the kernel's build calls (sed, awk, ...).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfrastructureError
from harness.image import apt, cache
from harness.image.cache import Say

KIND = "toolchain"
_FORMAT = "1"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
_BINUTILS = ("ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip")
# Name in bin/ to the packages' program, as a pattern in usr/bin: the build knows no versions.
_PROGRAMS = {
    "gcc": "x86_64-linux-gnu-gcc-[0-9]*",
    **{name: f"x86_64-linux-gnu-{name}" for name in _BINUTILS},
    **{name: name for name in ("bc", "bison", "flex", "m4", "make")},
}
# What no kernel needs: half of the bytes.
_DROPPED = (
    *("etc", "var", "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian"),
    *("usr/lib/gcc/x86_64-linux-gnu/*/lto1", "usr/lib/gcc/x86_64-linux-gnu/*/lib*san*.a", "usr/bin/*lto-dump*"),
    *("usr/bin/*gold", "usr/bin/*-dwp", "usr/bin/*-gp-*", "usr/bin/*gprofng", "usr/lib/x86_64-linux-gnu/gprofng"),
)
_WRAPPER = """\
#!/bin/sh
root=${{0%/*}}/..
export LD_LIBRARY_PATH="{libraries}"
exec "$root/usr/bin/{program}" "$@"
"""
# The host's programs that the kernel's build calls, and the package that has each.
_HOST = {
    **dict.fromkeys(("cat", "cut", "date", "expr", "mkdir", "mktemp", "sort", "tr"), "coreutils"),
    **dict.fromkeys(("cmp", "diff"), "diffutils"),
    **dict.fromkeys(("find", "xargs"), "findutils"),
    "awk": "mawk",
    "grep": "grep",
    "sed": "sed",
    "sh": "dash",
}
_TRIAL = (
    '#include <stdio.h>\n#include <gelf.h>\nint main(void) { puts("runs"); return elf_version(EV_CURRENT) == 0; }\n'
)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Compiler, linker, make and what else the kernel's build needs.

    Args:
        key: the hash over the packages.
        folder: the unpacked packages.
    """

    key: str
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment that its programs need; nothing of the host's own goes into a build."""
        return {
            "PATH": f"{self.folder / 'bin'}:{os.defpath}",
            "LC_ALL": "C",
            "M4": str(self.folder / "bin/m4"),
            "BISON_PKGDATADIR": str(self.folder / "usr/share/bison"),
        }

    @property
    def for_host(self) -> tuple[str, str]:
        """The compiler for programs that the build itself runs, and their linker flags.

        They are linked statically, so that they take nothing of the host's headers and libraries.
        """
        return f"gcc --sysroot={self.folder}", "-static -lz"

    def check(self, scratch: Path) -> None:
        """Compile a program and run it.

        Args:
            scratch: an existing folder that may be written.

        Raises:
            InfrastructureError: this host cannot; the hint says what to do.
        """
        missing = [name for name in _HOST if shutil.which(name, path=os.defpath) is None]
        if missing:
            raise InfrastructureError(
                f"compiling a kernel takes {', '.join(missing)}, which this host does not have",
                hint=f"install {', '.join(sorted({_HOST[name] for name in missing}))}",
            )
        (scratch / "trial.c").write_text(_TRIAL, encoding="utf-8")
        compiler, flags = self.for_host
        command = f"{compiler} -o trial trial.c -lelf {flags} && ./trial"
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env=self.env,
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode or done.stdout != "runs\n":
            said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise InfrastructureError(
                f"the compiler out of Debian's packages does not work on this host ({_c_library()}): {said}",
                hint="it needs an x86-64 host with the GNU C library 2.36 or later (Debian 12, Ubuntu 23.04), and a "
                "cache that programs may be run from; XDG_CACHE_HOME says where the cache is",
                context={"compiler": done.stderr},
            )


def key_of(resolved: list[apt.Package]) -> str:
    """The key of the toolchain that packages give."""
    material = [_FORMAT, *(f"{package.name} {package.version} {package.digest}" for package in resolved)]
    return hashlib.sha256("\n".join(material).encode()).hexdigest()


def get_toolchain(packages: apt.Apt, resolved: list[apt.Package], say: Say) -> Toolchain:
    """The toolchain of some packages, unpacked into the cache unless it is there.

    Args:
        packages: the apt that resolved them.
        resolved: the packages.
        say: told what goes on.

    Raises:
        InfrastructureError: a download, the disk, or the packages lack a program.
    """
    key = key_of(resolved)

    def fill(folder: Path) -> dict[str, object]:
        debs = packages.download(resolved)
        say("unpacking the compiler")
        for deb in debs.values():
            apt.unpack(deb, folder)
        for pattern in _DROPPED:
            for path in folder.glob(pattern):
                if path.is_dir():
                    cache.remove_tree(path)
                else:
                    path.unlink()
        _wrap(folder)
        return {"name": "compiler", "packages": {package.name: package.version for package in resolved}}

    try:
        entry = cache.find(KIND, key)
    except cache.DamagedEntryError as error:
        say(f"{error.message}; unpacking it again")
        entry = None
    return Toolchain(key, (entry or cache.store(KIND, key, fill, say)).folder)


def _wrap(folder: Path) -> None:
    """Write ``bin/``."""
    (folder / "bin").mkdir()
    libraries = ":".join(f"$root/{path}" for path in _LIBRARIES)
    for name, pattern in _PROGRAMS.items():
        found = sorted((folder / "usr/bin").glob(pattern))
        if len(found) != 1:
            raise InfrastructureError(
                f"the compiler's packages have {len(found)} programs {pattern} instead of one",
                hint="change 'tools' of the recipe",
            )
        wrapper = folder / "bin" / name
        wrapper.write_text(_WRAPPER.format(libraries=libraries, program=found[0].name), encoding="utf-8")
        wrapper.chmod(0o755)


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "no GNU C library"
    except (OSError, ValueError):
        return "no GNU C library"
