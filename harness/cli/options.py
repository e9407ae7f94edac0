"""The options that several commands share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import ConfigurationError

if TYPE_CHECKING:
    from harness.scenario.point import Point


class Accel(StrEnum):
    """What ``--accel`` takes."""

    AUTO = "auto"
    TCG = "tcg"
    KVM = "kvm"


class Implementations(StrEnum):
    """What ``--implementation`` takes."""

    USDM = "usdm"
    LIBUSDM = "libusdm"
    KERNEL = "kernel"
    BOTH = "both"


class Models(StrEnum):
    """What ``--model`` takes."""

    EDU = "edu"
    QAT = "qat"


class Viommus(StrEnum):
    """What ``--viommu`` takes."""

    INTEL = "intel"
    INTEL_39 = "intel-39"
    INTEL_SCALABLE = "intel-scalable"
    INTEL_SCALABLE_39 = "intel-scalable-39"
    VIRTIO = "virtio"
    VIRTIO_39 = "virtio-39"
    AMD = "amd"
    NONE = "none"


class Cmdlines(StrEnum):
    """What ``--cmdline`` takes."""

    DEFAULT = "default"
    STRICT = "strict"
    LAZY = "lazy"
    PT = "pt"


Paths = Annotated[
    list[Path] | None, typer.Argument(help="Scenario files and folders; without any, the scenarios that come along.")
]
Filter = Annotated[
    str | None,
    typer.Option("-k", "--filter", envvar="HARNESS_FILTER", help="Only scenarios whose id has this text in it."),
]
Jobs = Annotated[
    str,
    typer.Option(
        "-j", "--jobs", metavar="auto|N", envvar="HARNESS_JOBS", help="Guests at once; auto: by cores and memory."
    ),
]
Qemu = Annotated[
    list[str],
    typer.Option("--qemu", envvar="HARNESS_QEMU", help="QEMU build: 11.1, 10.0, 7.2 or system. Repeatable."),
]
Kernel = Annotated[
    list[str],
    typer.Option(
        "--kernel",
        envvar="HARNESS_KERNEL",
        help="Guest kernel: 6.1, 6.12, 7.2 or lab. Repeatable. Without it 6.12; what needs a later release, or options "
        "that 6.12 lacks, runs on 7.2 or lab then.",
    ),
]
Model = Annotated[
    list[Models],
    typer.Option(
        "--model",
        envvar="HARNESS_MODEL",
        help="What stands where a scenario has an edu: qat copies more and faster, and needs QEMU 10.1. Repeatable.",
    ),
]
Viommu = Annotated[
    list[Viommus] | None,
    typer.Option(
        "--viommu",
        envvar="HARNESS_VIOMMU",
        help="Another vIOMMU for scenarios that leave it open; intel is legacy mode with 48 bits. Repeatable. Without "
        "it, as the scenario has it.",
    ),
]
Cmdline = Annotated[
    list[Cmdlines] | None,
    typer.Option(
        "--cmdline",
        envvar="HARNESS_CMDLINE",
        help="What the guest kernel is told of its IOMMU: nothing, iommu.strict=1, iommu.strict=0 or "
        "iommu.passthrough=1. Repeatable.",
    ),
]
Hugepages = Annotated[
    list[int] | None,
    typer.Option(
        "--hugepages",
        envvar="HARNESS_HUGEPAGES",
        min=0,
        help="Pages of 2 MiB that the guest kernel sets aside. Repeatable.",
    ),
]
Vcpus = Annotated[
    list[int] | None,
    typer.Option("--vcpus", envvar="HARNESS_VCPUS", min=1, max=64, help="Virtual CPUs of the guest. Repeatable."),
]
AccelOption = Annotated[
    Accel, typer.Option("--accel", envvar="HARNESS_ACCEL", help="auto takes KVM only after it has run a boot sector.")
]
Out = Annotated[
    Path | None, typer.Option("--out", envvar="HARNESS_OUT", help="Run folder; else below the state folder.")
]
Junit = Annotated[Path | None, typer.Option("--junit", envvar="HARNESS_JUNIT", help="Write JUnit XML there.")]
Usdm = Annotated[
    Path | None, typer.Option("--usdm", envvar="HARNESS_USDM", help="Another usdm package to put under test.")
]
Implementation = Annotated[
    Implementations,
    typer.Option(
        "--implementation",
        envvar="HARNESS_IMPLEMENTATION",
        help="What the steps run on: usdm; Intel's C library; the kernel's own dma_iova functions; or both, usdm and "
        "the one of these two that the scenario can be compared with, in a guest each, every result compared.",
    ),
]
Libusdm = Annotated[str, typer.Option("--libusdm", envvar="HARNESS_LIBUSDM", help="Which C library: 26.08 or 24.02.")]
Timeout = Annotated[
    float, typer.Option("--timeout", envvar="HARNESS_TIMEOUT", min=1, help="Seconds for a scenario that names none.")
]
BootTimeout = Annotated[
    float, typer.Option("--boot-timeout", envvar="HARNESS_BOOT_TIMEOUT", min=1, help="Seconds until a guest is ready.")
]
FreshBoot = Annotated[
    bool,
    typer.Option(
        "--fresh-boot",
        envvar="HARNESS_FRESH_BOOT",
        help="Boot each guest from its kernel instead of cloning a template: slower, but nothing is shared.",
    ),
]
Fetch = Annotated[
    bool,
    typer.Option(
        "--fetch",
        envvar="HARNESS_FETCH",
        help="Build or download what the cache lacks: 560 MB for the default run, 740 MB for every build and kernel.",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", envvar="HARNESS_OFFLINE", help="Use the cache only.")]
Mirror = Annotated[
    str | None, typer.Option("--mirror", envvar="HARNESS_MIRROR", help="Debian mirror; else the host's own.")
]
AsJson = Annotated[bool, typer.Option("--json", envvar="HARNESS_JSON", help="JSON on standard output, for programs.")]


OneQemu = Annotated[list[str], typer.Option("--qemu", envvar="HARNESS_QEMU", help="QEMU build.")]
OneModel = Annotated[
    list[Models], typer.Option("--model", envvar="HARNESS_MODEL", help="What stands where the scenario has an edu.")
]
OneKernel = Annotated[list[str], typer.Option("--kernel", envvar="HARNESS_KERNEL", help="Guest kernel.")]


OneViommu = Annotated[
    list[Viommus] | None, typer.Option("--viommu", envvar="HARNESS_VIOMMU", help="Another vIOMMU for the machine.")
]
OneCmdline = Annotated[
    list[Cmdlines] | None,
    typer.Option("--cmdline", envvar="HARNESS_CMDLINE", help="What the guest kernel is told of its IOMMU."),
]
OneHugepages = Annotated[
    list[int] | None,
    typer.Option("--hugepages", envvar="HARNESS_HUGEPAGES", min=0, help="Pages of 2 MiB that the kernel sets aside."),
]
OneVcpus = Annotated[
    list[int] | None, typer.Option("--vcpus", envvar="HARNESS_VCPUS", min=1, max=64, help="Virtual CPUs.")
]


def points(
    viommu: list[Viommus] | None,
    cmdline: list[Cmdlines] | None,
    hugepages: list[int] | None,
    vcpus: list[int] | None,
    *,
    one: str | None = None,
) -> tuple[Point, ...]:
    """The points that the options of the axes give.

    Args:
        viommu: of ``--viommu``.
        cmdline: of ``--cmdline``.
        hugepages: of ``--hugepages``.
        vcpus: of ``--vcpus``.
        one: what there is one of, as of :func:`only`; None where several points make sense.

    Raises:
        ConfigurationError: there are several where only one makes sense.
    """
    from harness.run.axes import all_points

    found = all_points(
        [value.value for value in viommu or ()],
        [value.value for value in cmdline or ()],
        hugepages or (),
        vcpus or (),
    )
    for axis in found[0].values if one is not None else ():
        only(f"--{axis}", list(dict.fromkeys(point.values[axis] for point in found)), str(one))
    return found


def only(option: str, names: list[str], what: str) -> tuple[str]:
    """The one name where a matrix makes no sense (the environment may hold one).

    Args:
        option: the option that gave the names.
        names: the names.
        what: what there is one of, e.g. ``a shell``.

    Raises:
        ConfigurationError: there is another number of names.
    """
    if len(names) != 1:
        raise ConfigurationError(f"{option}: {what} is one guest, so name one, not {', '.join(names) or 'none'}")
    return (names[0],)


def kernel_is_default(context: typer.Context) -> bool:
    """Whether ``--kernel`` was given neither on the command line nor in the environment."""
    return is_default(context, "kernel")


def is_default(context: typer.Context, name: str) -> bool:
    """Whether an option, by its name in the function, was given neither on the command line nor in the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def examples(*lines: str) -> str:
    """The end of a command's help: lines that can be pasted. The first character keeps them from being wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def check_writable(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written, before the work whose results go there.

    Args:
        option: the option that names it.
        path: the file, whose folders need not be there; None is fine.

    Raises:
        ConfigurationError: it is ``-``, a folder, below a file, or in a folder where nothing can be made.
    """
    if path is None:
        return
    if path == Path("-"):
        raise ConfigurationError(f"{option} takes a file, not standard output", hint="name a file")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if there == path:
        reason = "it is a folder" if path.is_dir() else "" if os.access(path, os.W_OK) else "permission denied"
    elif not there.is_dir():
        reason = f"{there} is no folder"
    else:
        reason = "" if os.access(there, os.W_OK | os.X_OK) else f"permission denied in {there}"
    if reason:
        raise ConfigurationError(f"{option} {path} cannot be written: {reason}", hint="name another file")


def jobs_of(text: str) -> int | None:
    """What ``--jobs`` says: a number, or None for ``auto``.

    Raises:
        ConfigurationError: it is neither.
    """
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ConfigurationError(f"--jobs takes a number from 1 or 'auto', not '{text}'")
    return int(text)
