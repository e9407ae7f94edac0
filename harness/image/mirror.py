"""Which Debian mirror this host uses, out of its own apt configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError

_APT = Path("/etc/apt")
_SUITES = re.compile(r"(?:bullseye|bookworm|trixie|forky|duke|sid|stable|oldstable|testing|unstable)(?:-[a-z-]+)?/?")


@dataclass(frozen=True, slots=True)
class _Source:
    """One URI of the host's configuration with its suites and the keyring or key it names."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str


def host_mirror(folder: Path = _APT) -> str:
    """The URL of the mirror that the host takes Debian itself from.

    Security and third-party archives do not count: they lack the other suites.

    Args:
        folder: the host's apt folder.

    Raises:
        ConfigurationError: there is none.
    """
    found: list[_Source] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        # apt reads these two kinds and nothing else, e.g. no backup copies.
        if path.suffix not in (".list", ".sources"):
            continue
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found += _deb822(text) if path.suffix == ".sources" else _one_line(text)
    candidates = [source for source in found if _may_be_debian(source)]
    if candidates:
        return max(candidates, key=_likelihood).uri.rstrip("/")
    raise ConfigurationError(
        f"no Debian mirror is configured below {folder}",
        hint="name one with --mirror, e.g. --mirror http://HOST/debian",
    )


def _may_be_debian(source: _Source) -> bool:
    if "security" in source.uri:
        return False
    return any(_SUITES.fullmatch(suite) and "security" not in suite for suite in source.suites)


def _likelihood(source: _Source) -> tuple[int, bool]:
    """Vendors call their suites 'stable' or 'bookworm' too: their keys and paths tell them from Debian's mirrors.

    Of equal ones :func:`max` takes the first.
    """
    keyring = 0 if source.signed_by else 1
    if "debian-archive" in source.signed_by:
        keyring = 2
    return keyring, source.uri.rstrip("/").endswith("/debian")


def _one_line(text: str) -> list[_Source]:
    """``deb [options] URI SUITE COMPONENT...``, main among the components."""
    found = []
    for line in text.splitlines():
        options = re.search(r"\[([^\]]*)\]", line)
        words = re.sub(r"\[[^\]]*\]", "", line.split("#")[0]).split()
        if len(words) >= 4 and words[0] == "deb" and "main" in words[3:]:
            signed_by = re.search(r"signed-by=(\S+)", options[1]) if options else None
            found.append(_Source(words[1], (words[2],), signed_by[1] if signed_by else ""))
    return found


def _deb822(text: str) -> list[_Source]:
    """Stanzas with Types, URIs, Suites and Components."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
                continue
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
        usable = "deb" in fields.get("types", "").split() and "main" in fields.get("components", "").split()
        if usable and fields.get("enabled", "yes").lower() not in ("no", "false", "0"):
            suites = tuple(fields.get("suites", "").split())
            signed_by = fields.get("signed-by", "")
            found += [_Source(uri, suites, signed_by) for uri in fields.get("uris", "").split()]
    return found
