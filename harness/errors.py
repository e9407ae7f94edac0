"""One tree of errors: each class has a failure class, an exit code and room for context and a hint.

The exit code of a run is the largest one met ("worst wins"): a failed expectation is the least, because then the
machinery did its work; an infrastructure error is the worst, because then nothing at all was learned.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class FailureClass(StrEnum):
    """Why a cell did not pass. The names stand in verdict.json, in JUnit XML and in the exit code table."""

    EXPECTATION = "expectation"
    CONFIGURATION = "configuration"
    BOOT = "boot"
    PANIC = "panic"
    HANG = "hang"
    LOST_GUEST = "lost-guest"
    EMULATOR_CRASH = "emulator-crash"
    INFRASTRUCTURE = "infrastructure"

    @property
    def exit_code(self) -> int:
        """The process exit code of this class, 1 to 8; the larger is the worse."""
        return EXIT_CODES[self]


# What a shell says of a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130

EXIT_CODES: dict[FailureClass, int] = {
    FailureClass.EXPECTATION: 1,
    FailureClass.CONFIGURATION: 2,
    FailureClass.BOOT: 3,
    FailureClass.PANIC: 4,
    FailureClass.HANG: 5,
    FailureClass.LOST_GUEST: 6,
    FailureClass.EMULATOR_CRASH: 7,
    FailureClass.INFRASTRUCTURE: 8,
}


class HarnessError(Exception):
    """Base of every error that the harness raises on purpose.

    Args:
        message: what went wrong, with the values that matter; one sentence or more, no trailing newline.
        hint: what the reader can do about it, or None.
        context: further facts by name (paths, commands, the last console lines), kept for reports.
    """

    failure_class: ClassVar[FailureClass] = FailureClass.INFRASTRUCTURE

    def __init__(self, message: str, *, hint: str | None = None, context: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context: dict[str, str] = dict(context or {})

    @property
    def exit_code(self) -> int:
        """The exit code of this error's class."""
        return self.failure_class.exit_code

    def __str__(self) -> str:
        return self.message


class ConfigurationError(HarnessError):
    """What the user wrote (a file, an option) cannot be meant so. The message names the place."""

    failure_class = FailureClass.CONFIGURATION


class InfrastructureError(HarnessError):
    """The host could not do its part: a download, the disk, a missing program."""

    failure_class = FailureClass.INFRASTRUCTURE


class BootError(HarnessError):
    """The guest did not become ready before its deadline; the context has the last console lines."""

    failure_class = FailureClass.BOOT


class GuestPanic(HarnessError):
    """The guest's kernel panicked (pvpanic event or console text)."""

    failure_class = FailureClass.PANIC


class GuestHang(HarnessError):
    """The guest was ready, is still running, and does not answer before the deadline."""

    failure_class = FailureClass.HANG


class GuestLost(HarnessError):
    """The connection to a ready guest ended although it neither panicked nor was told to stop."""

    failure_class = FailureClass.LOST_GUEST


class EmulatorCrash(HarnessError):
    """QEMU itself ended by a signal or with an error status."""

    failure_class = FailureClass.EMULATOR_CRASH


def worst_exit_code(classes: list[FailureClass]) -> int:
    """The exit code of a run: 0 when nothing failed, else the largest code among ``classes``."""
    return max((c.exit_code for c in classes), default=0)
