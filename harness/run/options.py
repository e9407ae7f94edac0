"""What a run was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.image.library import DEFAULT as DEFAULT_LIBRARY
from harness.results import Implementation
from harness.run.jobs import StartKind
from harness.scenario.point import AS_WRITTEN, Point

DEFAULT_KERNEL = "6.12"
DmaModel = Literal["edu", "qat"]
Accelerator = Literal["auto", "tcg", "kvm"]
BOOT_TIMEOUT = 120.0
TIMEOUT = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The choices behind ``harness run`` and ``harness shell``.

    Args:
        paths: scenario files and folders; empty means the scenarios that come with the project.
        qemu: names of QEMU builds; every scenario runs on each.
        kernels: guest kernels by what their recipe calls them; every scenario runs on each. Without any it is the
            default, and for a scenario that needs options which that lacks, the first kernel with them.
        models: what stands where a scenario has an edu; a scenario with one runs on each.
        points: vIOMMU, command line, hugepages and CPUs; every scenario runs at each.
        accel: the accelerator; ``auto`` measures.
        jobs: how many guests at once, >= 1; None chooses from cores and available memory (``harness.run.jobs``).
        out: the run folder; None makes one below the user's state folder.
        usdm: another ``usdm`` package to put under test.
        implementation: what the steps run on: ``usdm``, the C library, the kernel's own functions, or ``usdm`` and the
            one of these two that is a scenario's oracle, each in a guest of its own, compared.
        libusdm: which C library, by the name of its recipe.
        boot_timeout: seconds for a guest to become ready.
        timeout: seconds for a scenario's steps where the scenario itself names none.
        fresh_boot: boot every guest instead of cloning it from a template.
        fetch: build or fetch what the cache lacks.
        offline: use the cache only.
        mirror: the Debian mirror to use instead of the host's.
        argv: the command line, for the record.
        elsewhere: guests run on other machines, so this one need not have the KVM that was asked for.
        auto_kernel: ``kernels`` was nobody's choice; None finds out by whether it is empty.
    """

    paths: tuple[Path, ...] = ()
    qemu: tuple[str, ...] = ("11.1",)
    kernels: tuple[str, ...] = ()
    models: tuple[DmaModel, ...] = ("edu",)
    points: tuple[Point, ...] = (AS_WRITTEN,)
    accel: Accelerator = "auto"
    jobs: int | None = None
    out: Path | None = None
    usdm: Path | None = None
    implementation: Implementation = "usdm"
    libusdm: str = DEFAULT_LIBRARY
    boot_timeout: float = BOOT_TIMEOUT
    timeout: float = TIMEOUT
    fresh_boot: bool = False
    fetch: bool = False
    offline: bool = False
    mirror: str | None = None
    argv: tuple[str, ...] = ()
    elsewhere: bool = False
    auto_kernel: bool | None = None

    def __post_init__(self) -> None:
        if self.auto_kernel is None:
            object.__setattr__(self, "auto_kernel", not self.kernels)
        if not self.kernels:
            object.__setattr__(self, "kernels", (DEFAULT_KERNEL,))

    @property
    def start(self) -> StartKind:
        """How guests are started."""
        return "boot" if self.fresh_boot else "clone"

    @property
    def rerun_words(self) -> tuple[str, ...]:
        """The options that change how a cell runs, of those that belong to no point, where they are not the default."""
        words = [] if self.accel == "auto" else ["--accel", self.accel]
        words += [] if self.timeout == TIMEOUT else ["--timeout", f"{self.timeout:g}"]
        words += [] if self.boot_timeout == BOOT_TIMEOUT else ["--boot-timeout", f"{self.boot_timeout:g}"]
        return tuple(words)
