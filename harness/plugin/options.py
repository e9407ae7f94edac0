"""The plugin's options: what pytest's command line, or else the environment, says of the points and of the run.

Only the standard library and pytest are imported at once: this is loaded with every pytest of the environment.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

if TYPE_CHECKING:
    from harness.results import Implementation
    from harness.run.options import RunOptions

GROUP: Final = "harness"
FOLDERS: Final = "harness_scenarios"
_PREFIX: Final = "--harness-"
_YES: Final = ("1", "true", "yes", "on", "t", "y")
_NO: Final = ("", "0", "false", "no", "off", "f", "n")


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Args:
        name: its name behind ``--harness-``, with dashes.
        help: what it means, for ``pytest --help``.
        kind: ``list`` (repeatable), ``word`` or ``flag``.
        metavar: what its value is called.
        environment: whether its variable counts: ``HARNESS_`` and the name.
    """

    name: str
    help: str
    kind: Literal["list", "word", "flag"] = "word"
    metavar: str = "NAME"
    environment: bool = True

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        return _PREFIX + self.name

    @property
    def dest(self) -> str:
        """The name of its value among pytest's options."""
        return "harness_" + self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "HARNESS_" + self.name.replace("-", "_").upper()


OPTIONS: Final = (
    Option("qemu", "QEMU build: 11.1 (default), 10.0, 7.2 or system", "list"),
    Option("kernel", "guest kernel, e.g. 6.12 (default), 7.2 or lab", "list"),
    Option("viommu", "vIOMMU: intel, intel-39, intel-scalable, virtio, amd, none, ...; default: the machine's", "list"),
    Option("cmdline", "kernel command line: default, strict, lazy or pt", "list"),
    Option("implementation", "what steps run on: usdm (default), libusdm, libusdm-24.02, kernel or both", "list"),
    Option("model", "what stands where a machine has an edu: edu (default) or qat", "list"),
    Option("hugepages", "hugepages of 2 MiB that the kernel sets aside when it boots", "list", "N"),
    Option("vcpus", "virtual CPUs, 1 to 64", "list", "N"),
    Option("accel", "accelerator: auto (default), tcg or kvm"),
    Option("fetch", "build or download what the cache lacks", "flag"),
    Option("offline", "use the cache only", "flag"),
    Option("out", "folder for the evidence of every test; default: pytest's temporary folder", metavar="DIR"),
    Option("usdm", "another usdm package to put under test", metavar="DIR"),
    Option("fresh-boot", "boot each guest instead of cloning a template", "flag"),
    Option("timeout", "seconds for a test's steps where a scenario names none (120)", metavar="SECONDS"),
    Option("shell", "open a shell in the guest of each test that fails", "flag", environment=False),
)
"""Every option, in the order of the help; the first eight are the axes."""

AXES: Final = tuple(option.name for option in OPTIONS[:8])
"""The axes among the options."""


def add_options(parser: pytest.Parser) -> None:
    """Declare the options and the setting."""
    group = parser.getgroup(GROUP, "usdm-harness: scenarios and guests with a vIOMMU (docs/pytest.md)")
    for option in OPTIONS:
        text = option.help
        if option.kind == "list":
            text += "; repeatable"
        if option.environment:
            text += f" [{option.variable}]"
        if option.kind == "flag":
            group.addoption(option.flag, dest=option.dest, action="store_true", default=None, help=text)
        else:
            action = "append" if option.kind == "list" else "store"
            group.addoption(
                option.flag, dest=option.dest, action=action, default=None, metavar=option.metavar, help=text
            )
    parser.addini(FOLDERS, "folders whose *.yaml are scenarios of usdm-harness", type="paths", default=[])


def value_of(config: pytest.Config, name: str) -> Any:
    """What an option says: a list, a word or None, or a truth value.

    Raises:
        pytest.UsageError: the environment says neither yes nor no.
    """
    option = next(one for one in OPTIONS if one.name == name)
    given = config.getoption(option.dest, None)
    if given is not None or not option.environment:
        return given if option.kind != "flag" else bool(given)
    text = os.environ.get(option.variable, "").strip()
    if option.kind == "list":
        return text.split()
    if option.kind == "word":
        return text or None
    return _truth(option.variable, text)


def _truth(variable: str, text: str) -> bool:
    if text.lower() in _YES:
        return True
    if text.lower() in _NO:
        return False
    raise pytest.UsageError(f"{variable}: expected 1 or 0, found '{text}'")


def given_words(config: pytest.Config) -> list[str]:
    """The options that this session has, for a command line that runs a test of it again."""
    words: list[str] = []
    for option in OPTIONS:
        value = value_of(config, option.name)
        if option.name in ("shell", "out") or not value:
            continue
        if option.kind == "flag":
            words.append(option.flag)
        for one in [] if option.kind == "flag" else value if isinstance(value, list) else [value]:
            words += [option.flag, str(one)]
    return words


def rerun_line(config: pytest.Config, nodeid: str) -> str:
    """The command that runs a test again, in the folder where this pytest was started."""
    path, separator, rest = nodeid.partition("::")
    place = os.path.relpath(config.rootpath / path, config.invocation_params.dir)
    return shlex.join(["pytest", f"{place}{separator}{rest}", *given_words(config)])


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options come to.

    Args:
        run: for everything but the implementations.
        implementations: what steps run on, each with the name of the C library where one is meant.
    """

    run: RunOptions
    implementations: tuple[tuple[Implementation, str], ...]


def settings(config: pytest.Config) -> Settings:
    """The options, checked.

    Raises:
        pytest.UsageError: a value is wrong; the message names the option or the variable.
    """
    from harness.run.axes import all_points
    from harness.run.options import RunOptions
    from harness.scenario.point import CMDLINES, VIOMMUS

    qemu, kernels = (tuple(dict.fromkeys(value_of(config, name))) for name in ("qemu", "kernel"))
    models = _known(config, "model", ("edu", "qat"))
    points = all_points(
        _known(config, "viommu", tuple(VIOMMUS)),
        _known(config, "cmdline", tuple(CMDLINES)),
        [_number(config, "hugepages", one, 0, 1 << 20) for one in value_of(config, "hugepages")],
        [_number(config, "vcpus", one, 1, 64) for one in value_of(config, "vcpus")],
    )
    more: dict[str, Any] = {}
    for name, variable in (("boot_timeout", "HARNESS_BOOT_TIMEOUT"), ("mirror", "HARNESS_MIRROR")):
        if os.environ.get(variable):
            more[name] = os.environ[variable]
    if "boot_timeout" in more:
        more["boot_timeout"] = _seconds("HARNESS_BOOT_TIMEOUT", more["boot_timeout"])
    timeout = value_of(config, "timeout")
    if timeout is not None:
        more["timeout"] = _seconds(_said_by(config, "timeout"), timeout)
    accel: Any = value_of(config, "accel") or "auto"
    if accel not in ("auto", "tcg", "kvm"):
        raise pytest.UsageError(f"{_said_by(config, 'accel')}: expected auto, tcg or kvm, found '{accel}'")
    usdm = value_of(config, "usdm")
    run = RunOptions(
        qemu=qemu or ("11.1",),
        kernels=kernels,
        models=models or ("edu",),  # type: ignore[arg-type]
        points=points,
        accel=accel,
        usdm=Path(usdm).absolute() if usdm else None,
        fresh_boot=value_of(config, "fresh-boot"),
        fetch=value_of(config, "fetch"),
        offline=value_of(config, "offline"),
        **more,
    )
    return Settings(run, _implementations(config))


def implementation_of(word: str) -> tuple[Implementation, str] | None:
    """An implementation and the name of its C library, where one is meant, from a word; None for no such word."""
    from harness.image.library import DEFAULT, library_names

    words: dict[str, tuple[Implementation, str]] = {
        "usdm": ("usdm", ""),
        "libusdm": ("libusdm", os.environ.get("HARNESS_LIBUSDM") or DEFAULT),
        "kernel": ("kernel", ""),
        "both": ("both", os.environ.get("HARNESS_LIBUSDM") or DEFAULT),
    }
    words |= {f"libusdm-{name}": ("libusdm", name) for name in library_names()}
    return words.get(word)


def _implementations(config: pytest.Config) -> tuple[tuple[Implementation, str], ...]:
    found = []
    for word in dict.fromkeys(value_of(config, "implementation") or ["usdm"]):
        one = implementation_of(word)
        if one is None:
            raise pytest.UsageError(
                f"{_said_by(config, 'implementation')}: expected usdm, libusdm, libusdm-VERSION, kernel or both, "
                f"found '{word}'"
            )
        found.append(one)
    return tuple(found)


def _said_by(config: pytest.Config, name: str) -> str:
    """Where a value comes from, for a message."""
    option = next(one for one in OPTIONS if one.name == name)
    return option.flag if config.getoption(option.dest, None) else option.variable


def _known(config: pytest.Config, name: str, known: Sequence[str]) -> tuple[str, ...]:
    values = tuple(dict.fromkeys(value_of(config, name)))
    for value in values:
        if value not in known:
            raise pytest.UsageError(f"{_said_by(config, name)}: expected one of {', '.join(known)}, found '{value}'")
    return values


def _number(config: pytest.Config, name: str, text: str, least: int, most: int) -> int:
    if not text.isdigit() or not least <= int(text) <= most:
        raise pytest.UsageError(f"{_said_by(config, name)}: expected a number from {least} to {most}, found '{text}'")
    return int(text)


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 1e6:
        raise pytest.UsageError(f"{name}: expected seconds from 1 on, found '{text}'")
    return seconds
