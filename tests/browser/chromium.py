"""Headless Chromium for tests: Debian's packages in the cache, run by their own loader, without root.

As the QEMU builds are; a tool of the tests, not of users.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path
from typing import Final

from harness.errors import InfrastructureError
from harness.image import apt, cache

_KIND: Final = "browser"
_FORMAT: Final = "4"
_SUITES: Final = ("bookworm",)
_PACKAGES: Final = ("chromium-headless-shell", "fonts-dejavu-core")
_LIB: Final = "usr/lib/x86_64-linux-gnu"
_HOME: Final = "usr/lib/chromium"
_PROGRAMS: Final = ("headless_shell", "chromium-headless-shell", "chrome-headless-shell")
_LOADERS: Final = (f"{_LIB}/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
_DROPPED: Final = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/icons", "var")
# Chromium looks for its data beside the program that the kernel started, which is the loader.
_LOADER: Final = "loader"


def find_chromium() -> Path | None:
    """The program, when the cache has it, verified; None when it has not.

    Raises:
        InfrastructureError: the cache has it, and it is damaged; it was removed.
    """
    for entry in cache.entries(_KIND):
        if entry.facts.get("recipe") == _recipe():
            # Half a GB: only files that have changed are hashed again.
            found = cache.find(_KIND, entry.key, trust_stamps=True)
            return None if found is None else found.folder / "chromium"
    return None


def fetch_chromium(mirror: str | None = None) -> Path:
    """The program, downloaded when the cache lacks it: 160 MB.

    Raises:
        InfrastructureError: what apt may meet.
    """
    found = cache.there(_find, only=False, say=print, doing="fetching")
    if found is not None:
        return found
    with apt.private_apt(_SUITES, mirror, print) as packages:
        resolved = packages.with_dependencies(list(_PACKAGES))
        material = [_recipe(), *(f"{package.name} {package.digest}" for package in resolved)]
        key = hashlib.sha256("\n".join(material).encode()).hexdigest()

        def fill(folder: Path) -> dict[str, object]:
            for deb in packages.download(resolved).values():
                apt.unpack(deb, folder)
            for dropped in _DROPPED:
                cache.remove_tree(folder / dropped)
            # The entry is renamed when it is complete, so what names its folder names where it will be.
            _arrange(folder, cache.cache_dir() / _KIND / key)
            return {"recipe": _recipe(), "packages": {package.name: package.version for package in resolved}}

        return cache.store(_KIND, key, fill).folder / "chromium"


def _find() -> Path:
    found = find_chromium()
    if found is None:
        raise InfrastructureError("Chromium is not in the cache")
    return found


def _recipe() -> str:
    return hashlib.sha256(repr((_FORMAT, _SUITES, _PACKAGES)).encode()).hexdigest()


def _arrange(folder: Path, final: Path) -> None:
    """Write the scripts that start it: the browser, and each of its children, by its own loader and libraries."""
    home = folder / _HOME
    program = next((name for name in _PROGRAMS if (home / name).is_file()), None)
    loader = next((folder / path for path in _LOADERS if (folder / path).exists()), None)
    if program is None or loader is None:
        raise InfrastructureError(f"the packages of {', '.join(_PACKAGES)} have no loader or no Chromium")
    shutil.copy2(loader, home / _LOADER)
    fonts = folder / "fonts.conf"
    fonts.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd"><fontconfig>'
        f"<dir>{final}/usr/share/fonts</dir><cachedir prefix='xdg'>fontconfig</cachedir></fontconfig>\n",
        encoding="utf-8",
    )
    folders = (_HOME, _LIB, "lib/x86_64-linux-gnu", f"{_LIB}/pulseaudio")
    libraries = ":".join(str(final / path) for path in folders if (folder / path).is_dir())
    start = shlex.join([str(final / _HOME / _LOADER), "--library-path", libraries, str(final / _HOME / program)])
    environment = f"export FONTCONFIG_FILE={shlex.quote(str(final / 'fonts.conf'))}\n"
    for name, more in (("child", ""), ("chromium", f" --no-zygote --browser-subprocess-path={final}/child")):
        script = folder / name
        script.write_text(f'#!/bin/sh\n{environment}exec {start}{more} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
