"""A guest from start to end: booted, identified, logged in to, its worker running, and every failure explained."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import GuestLost, HarnessError, InfrastructureError
from harness.guest.control import ControlPort, Identity, PortClosedError
from harness.guest.payload import GUEST_FOLDER, Payload
from harness.guest.ssh import CommandResult, SshConnection, make_key, public_line
from harness.guest.triage import Phase, diagnose
from harness.guest.worker import Worker
from harness.machine.argv import Boot
from harness.machine.builds import QemuBuild
from harness.machine.emulator import Emulator
from harness.machine.probe import Capabilities
from harness.machine.spec import MachineSpec


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """Everything that a guest is started from.

    Args:
        spec: the machine.
        boot: kernel and initramfs.
        build: the QEMU build.
        capabilities: what the build can do.
        accelerator: ``tcg`` or ``kvm``.
        payload: what is sent into it.
        folder: an existing, empty run folder.
    """

    spec: MachineSpec
    boot: Boot
    build: QemuBuild
    capabilities: Capabilities
    accelerator: str
    payload: Payload
    folder: Path


@dataclass(slots=True)
class Guest:
    """A running guest. Use :func:`running_guest`.

    Args:
        emulator: its QEMU.
        control: its control port.
        identity: nonce and host key.
        ssh: the connection.
        stages: seconds of ``start``, ``boot``, ``connect``, ``worker``.
    """

    emulator: Emulator
    control: ControlPort
    identity: Identity
    ssh: SshConnection
    stages: dict[str, float]
    _worker: Worker | None = field(default=None)

    def run(self, command: str, deadline: Deadline, stdin: bytes = b"") -> CommandResult:
        """Run a shell command in the guest.

        Raises:
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
        """
        with self._explained(f"running '{command[:60]}'"):
            return self.ssh.run(command, deadline, stdin)

    def send_payload(self, payload: Payload, deadline: Deadline) -> None:
        """Unpack the payload in the guest, without starting the worker.

        Raises:
            InfrastructureError: the payload could not be unpacked.
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
        """
        with self._explained("sending the payload"):
            done = self.ssh.run(f"mkdir -p {GUEST_FOLDER} && tar x -C {GUEST_FOLDER}", deadline, payload.data)
            if done.status:
                raise InfrastructureError(
                    f"the guest could not unpack the payload: {done.stderr.decode(errors='replace')}"
                )

    def start_worker(self, payload: Payload, stderr: Path, deadline: Deadline) -> Worker:
        """Send the payload and start the worker.

        Raises:
            InfrastructureError: the payload could not be unpacked or the worker did not start.
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
        """
        started = time.monotonic()
        self.send_payload(payload, deadline)
        with self._explained("starting the worker"):
            self._worker = Worker(self.ssh, self.identity.nonce, stderr, deadline)
        self.stages["worker"] = time.monotonic() - started
        return self._worker

    def request(self, doing: str, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        """Have the worker do something.

        Args:
            doing: what it is, for messages, e.g. ``step 3 (map)``.
            kind: the request's kind.
            args: its arguments.
            deadline: until when the answer must be there.

        Raises:
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
        """
        if self._worker is None:
            raise InfrastructureError("no worker was started in this guest")
        with self._explained(doing):
            return self._worker.request(kind, args, deadline)

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, PortClosedError, GuestLost) as error:
            found = diagnose(self.emulator, self.control, Phase.READY, doing, error)
            if isinstance(error, HarnessError):
                found.context = {**error.context, **found.context}
            raise found from error


@contextlib.contextmanager
def running_guest(plan: GuestPlan, boot_seconds: float, stage: Callable[[str], None]) -> Iterator[Guest]:
    """Start a guest, and end it with the block whatever happens.

    Args:
        plan: what it is started from.
        boot_seconds: how long it may take until it is logged in to.
        stage: told the name of each stage as it begins.

    Raises:
        InfrastructureError: QEMU did not start, or the guest is not the one that was started.
        BootError, GuestPanic, EmulatorCrash: it did not come up.
    """
    deadline = Deadline.after(boot_seconds)
    stages: dict[str, float] = {}
    started = time.monotonic()
    stage("start")
    emulator = Emulator.start(
        plan.spec,
        plan.boot,
        plan.build,
        plan.capabilities,
        plan.accelerator,
        plan.folder,
        deadline,
    )
    ssh: SshConnection | None = None
    try:
        control = ControlPort(emulator.control)
        stages["start"] = time.monotonic() - started
        doing = "booting the kernel and its user land"
        try:
            stage("boot")
            hello = control.wait_hello(deadline)
            doing = "making its SSH key and server ready"
            key = make_key()
            identity = control.identify(hello, public_line(key), deadline)
            stages["boot"] = time.monotonic() - started
            stage("connect")
            doing = "logging in over SSH"
            ssh = SshConnection(emulator.ssh, key, identity.host_key, deadline)
        except (TimeoutError, PortClosedError, GuestLost) as error:
            raise diagnose(emulator, control, Phase.BOOTING, doing, error) from error
        stages["connect"] = time.monotonic() - started - stages["boot"]
        yield Guest(emulator, control, identity, ssh, stages)
    finally:
        if ssh is not None:
            ssh.close()
        emulator.stop()
