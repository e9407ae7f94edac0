"""What a test in Python holds in its hands beside the steps: the guest and its faults."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from harness.deadline import Deadline
from harness.errors import ConfigurationError, InfrastructureError
from harness.fault import describe
from harness.guest.guest import Guest as RunningGuest
from harness.guest.ssh import CommandResult
from harness.plugin.live import LiveTest
from harness.plugin.steps import Device, plain
from harness.results import FaultRecord
from harness.scenario.machine import Machine

SECONDS: Final = 60.0


class Guest:
    """The running guest of a test. The fixture ``guest``.

    Args:
        live: what the test does.
    """

    def __init__(self, live: LiveTest) -> None:
        self._live = live

    @property
    def machine(self) -> Machine:
        """Its machine, at the test's point."""
        return self._live.scenario.machine

    @property
    def folder(self) -> Path:
        """Where its evidence is: console, kernel log, QEMU's log, verdict."""
        return self._live.folder

    @property
    def running(self) -> RunningGuest:
        """It as the harness itself has it; on ``both`` that of ``usdm``."""
        return self._live.sessions[0].guest

    def run(self, command: str, *, stdin: bytes = b"", timeout: float = SECONDS, check: bool = True) -> CommandResult:
        """Run a shell command in it; on ``both`` in the guest of ``usdm`` only.

        Args:
            command: the command line.
            stdin: what it reads.
            timeout: seconds until it must have ended.
            check: whether a status other than 0 is an error.

        Raises:
            AssertionError: it failed.
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
        """
        __tracebackhide__ = True
        done = self.running.run(command, Deadline.after(timeout), stdin)
        if check and done.status:
            said = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
            raise AssertionError(f"'{command}' ended with status {done.status} in the guest: {said}")
        return done

    def text(self, command: str, **how: Any) -> str:
        """What a command prints, without the last line break; arguments as :meth:`run`."""
        return self.run(command, **how).stdout.decode(errors="replace").removesuffix("\n")

    def copy_in(self, file: Path | str, target: str) -> None:
        """Copy a file of the host into it, with its mode.

        Args:
            file: the host's.
            target: its path in the guest; folders on the way are made.
        """
        file = Path(file)
        path = shlex.quote(target)
        folder = shlex.quote(str(Path(target).parent))
        mode = file.stat().st_mode & 0o7777
        self.run(f"mkdir -p {folder} && cat >{path} && chmod {mode:o} {path}", stdin=file.read_bytes())

    def copy_out(self, source: str, file: Path | str) -> Path:
        """Copy a file of the guest to the host; gives the host's.

        Args:
            source: its path in the guest.
            file: where it goes.
        """
        file = Path(file)
        file.write_bytes(self.run(f"cat {shlex.quote(source)}").stdout)
        return file

    def kernel_log(self) -> tuple[str, ...]:
        """The lines of its kernel log until now, from before the first step on."""
        values = self.running.ask("reading the kernel log", "_end", {}, Deadline.after(SECONDS))
        return tuple(str(line) for line in values["kernel_log"])

    def expect_log(self, pattern: str) -> None:
        """Say that a regular expression must be found in a line of the kernel's log in the end."""
        self._live.expect_log(pattern)

    def shell(self) -> None:
        """Open a shell in it, for a person who looks at a test: needs a terminal, and pytest's ``-s``."""
        from harness.run.shell import attach, has_terminal

        if not has_terminal():
            raise InfrastructureError("there is no terminal for a shell in the guest", hint="start pytest with -s")
        attach(self.running, None)

    def __repr__(self) -> str:
        return f"<Guest in {self.folder}>"


class Faults:
    """The faults of a test: those that must happen, and those that did. The fixture ``faults``.

    Every one that happens must be expected, and every one that is expected must happen: the judge compares both
    witnesses when the test is over.

    Args:
        live: what the test does.
    """

    def __init__(self, live: LiveTest) -> None:
        self._live = live

    def expect(
        self,
        device: Device | str | None,
        access: Literal["read", "write"],
        *,
        reason: int | str,
        address: int | str | None = None,
        buffer: Any = None,
        range: Any = None,  # noqa: A002 - the key of scenario files
        offset: int | str = 0,
        step: str | None = None,
        requester: str | None = None,
    ) -> None:
        """Expect a fault, as an item of ``expect.faults`` in a scenario file.

        Args:
            device: whose DMA it is; None with ``requester``.
            access: what the device wanted to do with the memory.
            reason: VT-d's fault reason, or the name of another vIOMMU's.
            address: the IOVA; or ``buffer`` or ``range``, with ``offset``.
            buffer: the buffer, by its name or by the result that made it.
            range: the range, likewise.
            offset: bytes from the start of the buffer or range.
            step: the id of the step that causes it.
            requester: a PCI address instead of ``device``.

        Raises:
            ConfigurationError: it cannot be meant so.
        """
        __tracebackhide__ = True
        raw: dict[str, Any] = {"device": device, "requester": requester, "access": access, "reason": reason}
        raw |= {"address": address, "buffer": buffer, "range": range, "step": step}
        if offset:
            raw["offset"] = offset
        self._live.expect_fault({key: plain(value) for key, value in raw.items() if value is not None})

    @property
    def seen(self) -> tuple[FaultRecord, ...]:
        """Every fault until now, by QEMU's trace: what the guest's kernel prints comes later, and not of each."""
        return self._live.faults

    def __repr__(self) -> str:
        return f"<Faults: {'; '.join(map(describe, self.seen)) or 'none'}>"


class Devices(Mapping[str, Device]):
    """The devices of the machine by their names. The fixture ``devices``.

    Args:
        live: what the test does.
    """

    def __init__(self, live: LiveTest) -> None:
        addresses = live.scenario.machine.addresses
        self._devices = {name: Device(live, name, address) for name, address in addresses.items()}

    def __getitem__(self, name: str) -> Device:
        __tracebackhide__ = True
        if name not in self._devices:
            raise KeyError(f"the machine has no device '{name}'; it has {', '.join(self._devices) or 'none'}")
        return self._devices[name]

    def __iter__(self) -> Any:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    def only(self) -> Device:
        """The only device.

        Raises:
            ConfigurationError: there is another number of them.
        """
        if len(self) != 1:
            names = ", ".join(self) or "none"
            raise ConfigurationError(
                f"the fixture 'device' is for a machine with one device, this one has {names}",
                hint="take the fixture 'devices': devices['name']",
            )
        return next(iter(self._devices.values()))
