"""QEMU builds: the host's own, and Debian packages unpacked side by side and run by their own loader."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import apt, cache
from harness.image.cache import Entry, Say

KIND = "qemu"
_FORMAT = "2"
_LIB = "usr/lib/x86_64-linux-gnu"
_BINARY = "usr/bin/qemu-system-x86_64"
_LOADERS = ("usr/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2", f"{_LIB}/ld-linux-x86-64.so.2")
# Neither runs nor is read by a guest of ours.
_DROPPED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/icons",
    "usr/share/applications",
    "var",
    "etc",
)
_QEMU_PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a fetched build comes from.

    Args:
        suites: the suites that apt looks into.
        packages: what is asked for, with ``/suite`` where it is not the first suite's.
    """

    suites: tuple[str, ...]
    packages: tuple[str, ...]


def _backport(base: str) -> Source:
    suite = f"{base}-backports"
    return Source((base, suite), tuple(f"{name}/{suite}" for name in _QEMU_PACKAGES))


SOURCES: dict[str, Source] = {
    "7.2": Source(("bookworm",), _QEMU_PACKAGES),
    "10.0": _backport("bookworm"),
    "11.1": _backport("trixie"),
}
BUILDS: tuple[str, ...] = ("system", *SOURCES)
DEFAULT = "11.1"


@dataclass(frozen=True, slots=True)
class QemuBuild:
    """A QEMU that can be started.

    Args:
        name: ``system`` or the version that it is asked for by.
        version: the version that the program itself prints.
        key: identifies exactly these files.
        argv_prefix: the program and what must come first: loader, libraries, firmware folders.
        env: environment variables that it needs.
        folder: the unpacked root, or None for the host's own.
    """

    name: str
    version: str
    key: str
    argv_prefix: tuple[str, ...]
    env: dict[str, str]
    folder: Path | None


def find_build(name: str) -> QemuBuild:
    """A build that is here, verified; nothing is downloaded.

    Raises:
        ConfigurationError: no build has that name.
        InfrastructureError: it is not here, or its files were damaged.
    """
    if name == "system":
        return _system_build()
    source = _source(name)
    for entry in cache.entries(KIND):
        if entry.facts.get("recipe") == _recipe_key(name, source):
            found = cache.find(KIND, entry.key, trust_stamps=True)
            if found is not None:
                return _from_entry(name, found)
    raise InfrastructureError(
        f"QEMU {name} is not in the cache", hint=f"get it with 'harness qemu fetch {name}', or run with --fetch"
    )


def build_of_key(name: str, key: str) -> QemuBuild:
    """The fetched build of a key.

    Raises:
        InfrastructureError: it is not in the cache, or was damaged.
    """
    return _from_entry(name, cache.by_key(KIND, key))


def fetch_build(
    name: str, *, mirror: str | None = None, offline: bool = False, say: Say = print, refresh: bool = False
) -> QemuBuild:
    """A build, downloaded when the cache lacks it.

    Args:
        name: ``7.2``, ``10.0`` or ``11.1``; ``system`` is only looked up.
        mirror: a Debian mirror, or None for the host's.
        offline: use the cache only.
        say: told what goes on.
        refresh: look for newer packages although the build is here.

    Raises:
        ConfigurationError, InfrastructureError: as :func:`find_build`, and what apt may meet.
    """
    if refresh and offline:
        raise ConfigurationError("newer packages cannot be looked for offline")
    if name == "system":
        return find_build(name)
    if not refresh:
        found = cache.there(lambda: find_build(name), only=offline, say=say, doing="fetching")
        if found is not None:
            return found
    source = _source(name)
    with apt.private_apt(source.suites, mirror, say) as packages:
        resolved = packages.with_dependencies(list(source.packages))
        listing = {package.name: package.version for package in resolved}
        material = [_recipe_key(name, source), *(f"{package.name} {package.digest}" for package in resolved)]
        key = hashlib.sha256("\n".join(material).encode()).hexdigest()

        def fill(folder: Path) -> dict[str, object]:
            debs = packages.download(resolved)
            say(f"unpacking QEMU {name}")
            for deb in debs.values():
                apt.unpack(deb, folder)
            for dropped in _DROPPED:
                cache.remove_tree(folder / dropped)
            version = _version(_prefix(folder), _environment(folder))
            return {"name": name, "recipe": _recipe_key(name, source), "version": version, "packages": listing}

        entry = cache.store(KIND, key, fill, say)
    return _from_entry(name, entry)


def list_builds() -> list[QemuBuild]:
    """The builds that are here, in the order of :data:`BUILDS`; not verified file by file."""
    found: list[QemuBuild] = []
    if shutil.which("qemu-system-x86_64"):
        found.append(_system_build())
    stored = cache.entries(KIND)
    for name, source in SOURCES.items():
        found += [_from_entry(name, e) for e in stored if e.facts.get("recipe") == _recipe_key(name, source)][:1]
    return found


def prune_builds(keep: int, say: Say = print) -> list[str]:
    """Remove builds that are no longer known, and all but the newest ``keep`` of each; gives the removed keys.

    Raises:
        InfrastructureError: the cache cannot be written.
    """

    def known(entry: Entry) -> str | None:
        name = str(entry.facts.get("name"))
        return name if name in SOURCES and entry.facts.get("recipe") == _recipe_key(name, SOURCES[name]) else None

    return cache.prune(KIND, known, keep, say)


def _source(name: str) -> Source:
    try:
        return SOURCES[name]
    except KeyError:
        raise ConfigurationError(
            f"there is no QEMU build named '{name}'", hint=f"there are: {', '.join(BUILDS)}"
        ) from None


def _recipe_key(name: str, source: Source) -> str:
    return hashlib.sha256(repr((_FORMAT, name, source)).encode()).hexdigest()


def _from_entry(name: str, entry: Entry) -> QemuBuild:
    folder = entry.folder
    return QemuBuild(name, str(entry.facts["version"]), entry.key, _prefix(folder), _environment(folder), folder)


def _prefix(folder: Path) -> tuple[str, ...]:
    """The program by its own loader: neither its libraries nor its firmware come from the host."""
    loader = next((folder / path for path in _LOADERS if (folder / path).is_file()), None)
    if loader is None or not (folder / _BINARY).is_file():
        raise InfrastructureError(f"the packages unpacked in {folder} have no loader or no QEMU")
    libraries = ":".join(str(folder / path) for path in (_LIB, "lib/x86_64-linux-gnu") if (folder / path).is_dir())
    firmware = [folder / path for path in ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")]
    words = [str(loader), "--library-path", libraries, str(folder / _BINARY)]
    for path in firmware:
        words += ["-L", str(path)]
    return tuple(words)


def _environment(folder: Path) -> dict[str, str]:
    # Debian's module path is absolute: without this, modules of the host's QEMU would be looked for.
    return {"QEMU_MODULE_DIR": str(folder / _LIB / "qemu")}


def _system_build() -> QemuBuild:
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        raise InfrastructureError(
            "qemu-system-x86_64 is not on PATH",
            hint="use a fetched build, e.g. --qemu 11.1, or install qemu-system-x86",
        )
    path = Path(found).resolve()
    stat = path.stat()
    key = hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    return QemuBuild("system", _version((found,), {}), key, (found,), {}, None)


def _version(prefix: tuple[str, ...], env: dict[str, str]) -> str:
    done = apt.run_tool([*prefix, "--version"], env=env or None)
    match = re.search(r"version (\d+(?:\.\d+)+)", done.stdout)
    if done.returncode or not match:
        raise InfrastructureError(f"{prefix[0]} does not run: {(done.stderr or done.stdout).strip()}")
    return match[1]
