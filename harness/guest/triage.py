"""Why a wait on a guest ended badly: panic, hang, lost guest, emulator crash and boot time-out are told apart.

The order of the questions matters. A panic ends QEMU (pvpanic, or ``panic=-1`` with ``-no-reboot``), so a dead QEMU is
first asked whether its guest panicked; only then is it a crash of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import Enum, auto

from harness.deadline import Deadline
from harness.errors import (
    BootError,
    EmulatorCrash,
    GuestHang,
    GuestLost,
    GuestPanic,
    HarnessError,
)
from harness.guest.control import ControlPort, PortClosedError
from harness.machine.emulator import Emulator, tail

_DEATH_SECONDS = 3.0
_PING_SECONDS = 3.0
_PANIC_LINES = 40
_PANIC_TEXT = ("Kernel panic - not syncing",)


@contextlib.contextmanager
def explained_boot(emulator: Emulator, control: ControlPort) -> Iterator[Callable[[str], None]]:
    """Give the errors of a guest that comes up their explanation.

    Gives a function that is told what is being waited for, e.g. ``booting the kernel``.
    """
    doing = ["starting"]
    try:
        yield lambda what: doing.__setitem__(0, what)
    except (TimeoutError, PortClosedError, GuestLost) as error:
        raise diagnose(emulator, control, Phase.BOOTING, doing[0], error) from error


class Phase(Enum):
    """How far the guest had come."""

    BOOTING = auto()
    READY = auto()


def diagnose(emulator: Emulator, control: ControlPort, phase: Phase, doing: str, cause: Exception) -> HarnessError:
    """The error that says what really happened.

    Args:
        emulator: the guest's QEMU.
        control: its control port, for a sign of life.
        phase: how far the guest had come.
        doing: what the harness was waiting for, e.g. ``step 3 (map)``.
        cause: what ended the wait: a time-out, or the end of a stream.
    """
    context = {"console": tail(emulator.files.console)}
    if not isinstance(cause, TimeoutError):
        # A stream ended. Usually QEMU is dying; its exit status is there in a moment.
        with contextlib.suppress(TimeoutError):
            emulator.wait(Deadline.after(_DEATH_SECONDS))
        context["console"] = tail(emulator.files.console)
    if not emulator.running:
        return _dead(emulator, phase, doing, context)
    if phase is Phase.BOOTING:
        return BootError(f"the guest was not ready in time while {doing}", context=context, hint=_BOOT_HINT)
    if isinstance(cause, TimeoutError):
        return _silent(control, doing, context)
    return GuestLost(f"the connection to the guest ended while {doing}: {cause}", context=context)


_BOOT_HINT = "the last console lines say how far it came; a slow host needs a larger --boot-timeout"


def panicked(emulator: Emulator) -> str | None:
    """The panic's own line (or a word for it) when the guest's kernel has panicked, else None."""
    console = emulator.files.console.read_text(encoding="utf-8", errors="replace")
    for line in console.splitlines():
        if any(text in line for text in _PANIC_TEXT):
            return line.strip()
    return "pvpanic event" if any(event["event"] == "GUEST_PANICKED" for event in emulator.events) else None


def _from_line(emulator: Emulator, wanted: str) -> str:
    """The console from a line on: what a panic says comes after its first line."""
    lines = emulator.files.console.read_text(encoding="utf-8", errors="replace").splitlines()
    start = next(
        (index for index, line in enumerate(lines) if line.strip() == wanted), max(0, len(lines) - _PANIC_LINES)
    )
    return "\n".join(lines[start : start + _PANIC_LINES])


def _dead(emulator: Emulator, phase: Phase, doing: str, context: dict[str, str]) -> HarnessError:
    how = emulator.stop()
    panic = panicked(emulator)
    if panic:
        context["console"] = _from_line(emulator, panic)
        return GuestPanic(f"the guest's kernel panicked while {doing}: {panic}", context=context)
    if how.status != 0:
        what = f"signal {-how.status}" if how.status < 0 else f"status {how.status}"
        context["stderr"] = how.stderr
        said = f": {how.stderr.splitlines()[-1]}" if how.stderr else ""
        return EmulatorCrash(f"QEMU ended with {what} while {doing}{said}", context=context)
    reason = f"QEMU's reason: {how.reason}" if how.reason else "no reason given"
    if phase is Phase.BOOTING:
        return BootError(f"the guest switched itself off while {doing} ({reason})", context=context)
    return GuestLost(f"the guest switched itself off while {doing} ({reason})", context=context)


def _silent(control: ControlPort, doing: str, context: dict[str, str]) -> HarnessError:
    try:
        answers = control.ping(Deadline.after(_PING_SECONDS))
    except PortClosedError:
        answers = False
    if answers:
        return GuestHang(
            f"{doing} did not end in time; the guest itself still answers",
            context=context,
            hint="the step waits for something that does not come; the scenario's 'timeout' may be too short",
        )
    return GuestHang(f"the guest does not answer any more while {doing}", context=context)
