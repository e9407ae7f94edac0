"""Options of the kernel's configuration: fragments read and merged, and what came of them.

Fragments are written as the kernel writes its own configuration: ``CONFIG_NAME=y``, ``# CONFIG_NAME is not set``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError, InfrastructureError

_SET = re.compile(r'CONFIG_(?P<name>\w+)=(?P<value>[ym]|-?\d+|0x[0-9a-fA-F]+|"[^"\\]*")')
_UNSET = re.compile(r"# CONFIG_(?P<name>\w+) is not set")
# What of a comment could be a mistyped option.
_ALMOST = re.compile(r"#\s*CONFIG_|#.*\bis not set$")
_OFF = "n"
_MOST = 5


@dataclass(frozen=True, slots=True)
class Option:
    """An option as a fragment asks for it.

    Args:
        name: without ``CONFIG_``.
        value: ``y``, ``m``, ``n`` for "is not set", a number, or a text in double quotes.
        where: the fragment and the line, e.g. ``base.config:12``.
    """

    name: str
    value: str
    where: str

    @property
    def line(self) -> str:
        """As the kernel's build takes it."""
        return _line(self.name, self.value)


def read_fragments(names: Iterable[str], folder: Path) -> list[Option]:
    """The options of fragments, each once, in their order.

    Args:
        names: the fragments' files without ``.config``.
        folder: where they are.

    Raises:
        ConfigurationError: there is no such fragment, a line is none of a configuration, or two lines contradict each
            other; the message names file and line.
    """
    options: dict[str, Option] = {}
    for name in names:
        path = folder / f"{name}.config"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            known = ", ".join(sorted(path.stem for path in folder.glob("*.config"))) or "none"
            raise ConfigurationError(f"there is no fragment '{name}'", hint=f"in {folder} there are: {known}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: cannot be read: {error}") from error
        for number, line in enumerate(text.splitlines(), 1):
            found = _read(line.rstrip(), f"{path.name}:{number}")
            if found is None:
                continue
            before = options.setdefault(found.name, found)
            if before.value != found.value:
                raise ConfigurationError(
                    f"{found.where}: '{found.line}' contradicts {before.where}: '{before.line}'",
                    hint="leave one of them",
                )
    return list(options.values())


def merged(options: Iterable[Option]) -> str:
    """The options as one file, for ``KCONFIG_ALLCONFIG``."""
    return "".join(f"{option.line}\n" for option in options)


def check(options: Iterable[Option], config: str) -> None:
    """Compare what was asked for with what came of it.

    The kernel's configuration leaves out what depends on something that is off, and switches on what something else
    selects, both without a word.

    Args:
        options: what was asked for.
        config: the kernel's ``.config``.

    Raises:
        ConfigurationError: an option has another value; the message names fragment, line, option and both values.
    """
    values = _values(config)
    wrong = [one for one in options if values.get(one.name, _OFF) != one.value]
    if not wrong:
        return
    said = [
        f"{one.where}: '{one.line}' became '{_line(one.name, values.get(one.name, _OFF))}'" for one in wrong[:_MOST]
    ]
    if len(wrong) > _MOST:
        said.append(f"and {len(wrong) - _MOST} more")
    raise ConfigurationError(
        f"the kernel's configuration does not follow the fragments: {'; '.join(said)}",
        hint="the kernel has no such option, it depends on one that is off, or another selects it: see the Kconfig "
        "files of the kernel's source",
    )


def switched_on(config: str) -> frozenset[str]:
    """The names, without ``CONFIG_``, of the options that are built in or modules.

    Args:
        config: a kernel's ``.config``.

    Raises:
        InfrastructureError: it has none at all, so it is no such file.
    """
    names = frozenset(name for name, value in _values(config).items() if value in ("y", "m"))
    if not names:
        raise InfrastructureError("the kernel's configuration has no option that is on, so it is none")
    return names


def _read(line: str, where: str) -> Option | None:
    match = _SET.fullmatch(line)
    if match:
        return Option(match["name"], match["value"], where)
    match = _UNSET.fullmatch(line)
    if match:
        return Option(match["name"], _OFF, where)
    if line and (not line.startswith("#") or _ALMOST.match(line)):
        raise ConfigurationError(
            f"{where}: '{line}' is no option",
            hint="write CONFIG_NAME=y, =number, =\"text\" or '# CONFIG_NAME is not set'",
        )
    return None


def _values(config: str) -> dict[str, str]:
    """The options that are set. What a file does not name is off."""
    found = (_SET.fullmatch(line) for line in config.splitlines())
    return {match["name"]: match["value"] for match in found if match}


def _line(name: str, value: str) -> str:
    return f"# CONFIG_{name} is not set" if value == _OFF else f"CONFIG_{name}={value}"
