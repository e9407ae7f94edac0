"""Debian packages through apt with a private state: without root, signatures checked, no maintainer script ever run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from harness.errors import ConfigurationError, InfrastructureError
from harness.image.cache import Say, disk_error, waiting_lock
from harness.image.mirror import host_mirror
from harness.paths import cache_dir

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SAID_LINES = 3
_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) (?P<hash>\S*)$", re.MULTILINE)
_EXPIRED = re.compile(r"Release file for \S+ is expired")
# (what apt says, what it means, what to do); the first match wins.
_MEANINGS = (
    (
        r"No space left on device|enough free space|Wrote only \d+ of \d+ bytes",
        "the disk is full",
        "free some space or point XDG_CACHE_HOME elsewhere",
    ),
    (
        r"is not valid yet",
        "the archive's lists are of a later date than this host's clock shows",
        "set this host's clock",
    ),
    (
        r"NO_PUBKEY|not signed|GPG error|signatures? (?:couldn't be verified|were? invalid)|EXPKEYSIG|BADSIG|INVALID",
        "a signature of the package archive could not be verified",
        "the keyring may be old: update the package debian-archive-keyring; or the mirror is not Debian's",
    ),
    (
        r"Hash Sum mismatch|Hashes of expected file",
        "a download is damaged",
        "try again; the mirror may be in the middle of an update",
    ),
    (
        r"Unable to locate package|no installation candidate|was not found|Couldn't find",
        "the mirror has no such package",
        "the mirror may be partial or the suite may have moved on",
    ),
    (
        r"Could not resolve|Temporary failure|nable to connect|ould not connect|Connection (?:failed|timed out|refused)"
        r"|Network is unreachable",
        "the mirror could not be reached",
        "check the network, or name another mirror with --mirror; --offline uses only the cache",
    ),
    (
        r"does not have a Release file",
        "there is no Debian archive with this suite at the mirror's address",
        "name another mirror with --mirror, e.g. --mirror http://HOST/debian",
    ),
    (
        r"404 +Not Found",
        "the mirror lacks a file that its own lists name",
        "try again; the mirror may be in the middle of an update, or name another with --mirror",
    ),
    (
        r"Failed to fetch",
        "the mirror could not be reached",
        "check the network, or name another mirror with --mirror; --offline uses only the cache",
    ),
)


@dataclass(frozen=True, slots=True)
class Package:
    """A package as resolved.

    Args:
        name: its name.
        version: its version.
        file: the file name that apt gives it.
        digest: the archive's hash of it, ``SHA256:...``.
        size: bytes to download.
    """

    name: str
    version: str
    file: str
    digest: str
    size: int


class Apt:
    """apt for some suites, with its own lists and nothing installed. Use as made by :func:`private_apt`."""

    def __init__(self, folder: Path, suites: tuple[str, ...], mirror: str, say: Say) -> None:
        self._folder = folder
        self._suites = suites
        self._mirror = mirror
        self._say = say
        for name in ("lists/partial", "cache/archives/partial", "etc/preferences.d", "debs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite in suites]
        (folder / "sources.list").write_text("".join(lines), encoding="utf-8")
        (folder / "apt.conf").write_text(_configuration(folder), encoding="utf-8")

    def update(self) -> None:
        """Fetch the package lists.

        Raises:
            InfrastructureError: no network, bad signature, full disk.
        """
        self._say(f"reading the package lists of {', '.join(self._suites)}")
        done = self._apt("apt-get", "-q", "update", check=False)
        if done.returncode and _EXPIRED.search(done.stderr):
            self._say("the archive's Release file is past its date; its signature is checked all the same")
            done = self._apt("apt-get", "-q", "-o", "Acquire::Check-Valid-Until=false", "update", check=False)
        if done.returncode:
            raise _explain("apt-get update", done.stderr)

    def with_dependencies(self, names: list[str]) -> list[Package]:
        """Packages and all that they depend on. A name may have ``/suite``."""
        return self._uris("install", names)

    def exactly(self, names: list[str]) -> list[Package]:
        """The named packages and nothing else. A name may have ``/suite`` or ``=version``."""
        return self._uris("download", names)

    def names(self, pattern: str) -> list[str]:
        """Package names that a regular expression matches wholly, the highest version number last."""
        expression = re.compile(pattern)
        found = self._apt("apt-cache", "pkgnames").stdout.split()
        return sorted((name for name in found if expression.fullmatch(name)), key=_natural)

    def depends(self, name: str, pattern: str) -> list[str]:
        """Names of the direct dependencies of a package that a regular expression matches wholly."""
        expression = re.compile(pattern)
        text = self._apt("apt-cache", "depends", "--important", name).stdout
        words = [line.split()[-1] for line in text.splitlines() if "Depends:" in line]
        return [word for word in words if expression.fullmatch(word)]

    def download(self, packages: list[Package]) -> dict[str, Path]:
        """Download packages; apt checks each against the signed lists. Gives name to ``.deb``."""
        folder = self._folder / "debs"
        size = sum(package.size for package in packages)
        self._say(f"downloading {len(packages)} packages, {size / 1e6:.0f} MB")
        names = [f"{package.name}={package.version}" for package in packages]
        self._apt("apt-get", "-q", "download", *names, cwd=folder)
        found = {package.name: folder / package.file for package in packages}
        missing = [name for name, path in found.items() if not path.is_file()]
        if missing:
            raise InfrastructureError(f"apt did not download {', '.join(missing)}")
        return found

    def clean(self) -> None:
        """Remove the downloaded packages."""
        shutil.rmtree(self._folder / "debs", ignore_errors=True)

    def _uris(self, action: str, names: list[str]) -> list[Package]:
        text = self._apt("apt-get", "-q", "-y", "--print-uris", action, *names).stdout
        packages = []
        for match in _URI_LINE.finditer(text):
            name, version, _ = match["file"].removesuffix(".deb").split("_")
            packages.append(Package(name, unquote(version), match["file"], match["hash"], int(match["size"])))
        if not packages:
            raise InfrastructureError(f"apt resolved {', '.join(names)} to nothing")
        return sorted(packages, key=lambda package: package.name)

    def _apt(
        self, program: str, *arguments: str, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        done = run_tool([program, *arguments], env=env, cwd=cwd)
        if check and done.returncode:
            raise _explain(f"{program} {' '.join(arguments[:4])}", done.stderr)
        return done


@contextlib.contextmanager
def private_apt(suites: tuple[str, ...], mirror: str | None, say: Say) -> Iterator[Apt]:
    """Apt for these suites, for this process alone while the block lasts, with fresh lists.

    Args:
        suites: names such as ``trixie``.
        mirror: a mirror's URL, or None for the host's own.
        say: told what goes on.

    Raises:
        InfrastructureError: apt is missing, the lists cannot be had, the disk is full.
        ConfigurationError: no mirror is known.
    """
    if not KEYRING.is_file():
        raise InfrastructureError(
            f"{KEYRING} is missing, so no signature could be checked", hint="install the package debian-archive-keyring"
        )
    url = mirror or host_mirror()
    if not re.match(r"[a-z+]+:", url):
        raise ConfigurationError(f"'{url}' is no mirror URL", hint="it looks like http://HOST/debian")
    key = hashlib.sha256("\0".join([url, *suites]).encode()).hexdigest()[:16]
    folder = cache_dir() / "apt" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with waiting_lock(cache_dir() / "apt" / f"{key}.lock", say):
            apt = Apt(folder, suites, url, say)
            apt.update()
            try:
                yield apt
            finally:
                apt.clean()
    except OSError as error:
        raise disk_error(error) from error


def unpack(deb: Path, folder: Path) -> None:
    """Unpack a package's files; nothing of it is run.

    Raises:
        InfrastructureError: the file is no package, or the disk is full.
    """
    done = run_tool(["dpkg-deb", "--extract", str(deb), str(folder)])
    if done.returncode:
        raise _explain(f"unpacking {deb.name}", done.stderr)


def run_tool(
    argv: list[str], *, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a host program to its end and give its output.

    Raises:
        InfrastructureError: the program is not there.
    """
    try:
        return subprocess.run(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        package = "dpkg" if argv[0].startswith("dpkg") else "apt"
        raise InfrastructureError(
            f"the program '{argv[0]}' is not there", hint=f"install the package {package}"
        ) from error


def _configuration(folder: Path) -> str:
    """An apt configuration with the host's Acquire settings (proxies) and none of its hooks."""
    dump = run_tool(["apt-config", "dump", "Acquire"]).stdout
    kept = [line for line in dump.splitlines() if not line.startswith("Acquire::IndexTargets")]
    own = {
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::sourcelist": str(folder / "sources.list"),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": str(folder / "etc/preferences.d"),
        "Dir::Etc::preferences": "/dev/null",
        "Dir::State": str(folder),
        "Dir::State::lists": str(folder / "lists"),
        "Dir::State::status": str(folder / "status"),
        "Dir::Cache": str(folder / "cache"),
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
        "APT::Install-Recommends": "false",
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "true",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Acquire::Retries": "3",
        # Whatever the host allows itself: without a good signature nothing is taken.
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::AllowDowngradeToInsecureRepositories": "false",
    }
    return "\n".join([*kept, *(f'{name} "{value}";' for name, value in own.items()), ""])


def _explain(what: str, stderr: str) -> InfrastructureError:
    lines = [line for line in stderr.splitlines() if line.startswith("E:")] or stderr.splitlines()[-3:]
    said = " ".join(line.removeprefix("E:").strip() for line in lines[:_SAID_LINES]) or "no message"
    if len(lines) > _SAID_LINES:
        said += f" ... and {len(lines) - _SAID_LINES} more lines"
    for pattern, meaning, hint in _MEANINGS:
        if re.search(pattern, stderr):
            return InfrastructureError(f"{meaning} ({what}: {said})", hint=hint, context={"apt": stderr})
    return InfrastructureError(f"{what} failed: {said}", context={"apt": stderr})


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which 7.2.12 comes after 7.2.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
