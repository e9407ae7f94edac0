"""Which Debian mirror this host uses, out of its own apt configuration."""

from __future__ import annotations

import re
from pathlib import Path

from harness.errors import ConfigurationError

_APT = Path("/etc/apt")
_SUITES = re.compile(r"(?:bullseye|bookworm|trixie|forky|duke|sid|stable|oldstable|testing|unstable)(?:-[a-z-]+)?/?")


def host_mirror(folder: Path = _APT) -> str:
    """The URL of the mirror that the host takes Debian itself from.

    Security and third-party archives do not count: they lack the other suites.

    Args:
        folder: the host's apt folder.

    Raises:
        ConfigurationError: there is none.
    """
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        pairs = _deb822(text) if path.suffix == ".sources" else _one_line(text)
        for uri, suites in pairs:
            if any(_is_debian(uri, suite) for suite in suites):
                return uri.rstrip("/")
    raise ConfigurationError(
        f"no Debian mirror is configured below {folder}",
        hint="name one with --mirror, e.g. --mirror http://HOST/debian",
    )


def _is_debian(uri: str, suite: str) -> bool:
    return bool(_SUITES.fullmatch(suite)) and "security" not in uri and "security" not in suite


def _one_line(text: str) -> list[tuple[str, list[str]]]:
    """``deb [options] URI SUITE COMPONENT...``, main among the components."""
    found = []
    for line in text.splitlines():
        words = re.sub(r"\[[^\]]*\]", "", line.split("#")[0]).split()
        if len(words) >= 4 and words[0] == "deb" and "main" in words[3:]:
            found.append((words[1], [words[2]]))
    return found


def _deb822(text: str) -> list[tuple[str, list[str]]]:
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
            found += [(uri, fields.get("suites", "").split()) for uri in fields.get("uris", "").split()]
    return found
