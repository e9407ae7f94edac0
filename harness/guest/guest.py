"""A guest from start to end: booted or cloned, identified, logged in to, used, and every failure explained."""

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
from harness.guest.payload import Payload
from harness.guest.rehearsal import VM_SECONDS, VM_START
from harness.guest.ssh import CommandResult, SshConnection, make_host_key, make_key, public_line
from harness.guest.triage import Phase, diagnose, explained_boot
from harness.guest.worker import Worker, WorkerLostError
from harness.image.cache import Say
from harness.machine.argv import Boot
from harness.machine.builds import QemuBuild
from harness.machine.emulator import Emulator
from harness.machine.probe import Capabilities
from harness.machine.slots import port_address
from harness.machine.snapshot import can_load, restore
from harness.machine.spec import MachineSpec
from harness.machine.template import Template
from harness.machine.vm_image import vm_boot

_WORKER_SECONDS = 3.0


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
        template: the frozen guest that it is cloned from; None to boot it.
    """

    spec: MachineSpec
    boot: Boot
    build: QemuBuild
    capabilities: Capabilities
    accelerator: str
    payload: Payload
    folder: Path
    template: Template | None = None

    def whole_boot(self, say: Say) -> Boot:
        """What it boots, with a virtual machine inside where it has one; that is made when the cache lacks it.

        Raises:
            ConfigurationError, InfrastructureError: see :func:`harness.machine.vm_image.vm_boot`.
        """
        return vm_boot(self.build, self.boot, say) if self.spec.vm else self.boot

    @property
    def can_be_cloned(self) -> bool:
        """Whether the build can start this machine from a template; if not, it is booted."""
        return can_load(self.capabilities, self.spec)


@dataclass(slots=True)
class Guest:
    """A running guest. Use :func:`running_guest`.

    Args:
        spec: its machine.
        cloned: whether it is a clone of a template.
        emulator: its QEMU.
        control: its control port.
        identity: nonce and host key.
        ssh: the connection.
        stages: seconds of ``start``, ``boot`` or ``restore``, ``identity``, ``connect``, ``worker``.
    """

    spec: MachineSpec
    cloned: bool
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

    def start_worker(self, deadline: Deadline) -> Worker:
        """Connect to the worker.

        Raises:
            InfrastructureError: another guest's worker answered.
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
        """
        started = time.monotonic()
        with self._explained("connecting to the worker"):
            self._worker = Worker(self.ssh, self.identity.nonce, deadline)
        self.stages["worker"] = time.monotonic() - started
        return self._worker

    def find_devices(self, deadline: Deadline, implementation: str = "usdm") -> None:
        """Have the worker see that the devices under test are there, and mark the kernel's log.

        A clone was frozen without them, and its kernel looks at a bus when it is told to.

        Args:
            deadline: until when it must be done.
            implementation: what the steps are to run on: ``usdm``, or ``libusdm`` or ``kernel`` where it has that.

        Raises:
            InfrastructureError: a device is missing.
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
        """
        devices = {device.name: device.at for device in self.spec.devices}
        replaced = [device.at for device in self.spec.fixed_devices] if self.cloned else []
        vfs = {device.name: device.of for device in self.spec.devices if device.model == "vf"}
        begin = {"devices": devices, "vfs": vfs, "replaced": replaced, "implementation": implementation}
        begin["ports"] = {port_address(self.spec, port): bus for port, bus in self.spec.renumbered.items()}
        self.ask("finding the devices", "_begin", begin, deadline)
        if self.spec.vm and not self.cloned:
            self.ask("starting the virtual machine inside", *VM_START, Deadline.after(VM_SECONDS))

    def ask(self, doing: str, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        """One of the harness's own requests; gives its values. Unlike a step's, its error is the infrastructure's.

        Raises:
            InfrastructureError: the worker answered with an error.
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
        """
        answer = self.request(doing, kind, args, deadline)
        if answer.get("error"):
            raise InfrastructureError(f"{doing} failed in the guest: {answer['error']['message']}")
        values: dict[str, Any] = answer.get("values", {})
        return values

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
        except (TimeoutError, PortClosedError, GuestLost) as caught:
            error = self._worker_end(caught) if isinstance(caught, WorkerLostError) else caught
            found = diagnose(self.emulator, self.control, Phase.READY, doing, error)
            if isinstance(error, HarnessError):
                found.context = {**error.context, **found.context}
            raise found from error

    def _worker_end(self, error: WorkerLostError) -> Exception:
        """The same with the worker's own end, as far as the guest still tells it."""
        try:
            end = self.control.worker_end(Deadline.after(_WORKER_SECONDS))
        except (TimeoutError, PortClosedError):
            return error
        return error if end is None else GuestLost(end.message, context={"worker": end.stderr})


def boot(control: ControlPort, payload: Payload, deadline: Deadline, doing: Callable[[str], None]) -> str:
    """Take a guest from its first instruction to where it waits to be anybody's; gives the rest of its ``hello``.

    Raises:
        InfrastructureError: the payload does not run.
        TimeoutError, PortClosedError: see :class:`ControlPort`.
    """
    doing("booting the kernel and its user land")
    hello = control.wait_hello(deadline)
    doing("starting the guest's side of the harness")
    control.send_payload(payload.data, deadline)
    return hello


@contextlib.contextmanager
def running_guest(plan: GuestPlan, boot_seconds: float, stage: Callable[[str], None]) -> Iterator[Guest]:
    """Clone or boot a guest, and end it with the block whatever happens.

    Args:
        plan: what it is started from.
        boot_seconds: how long it may take until it is logged in to.
        stage: told the name of each stage as it begins.

    Raises:
        InfrastructureError: QEMU did not start, or the guest is not the one that was started.
        BootError, GuestPanic, EmulatorCrash: it did not come up.
    """
    deadline = Deadline.after(boot_seconds)
    watch = _Watch(stage)
    template = plan.template
    watch.enter("start")
    emulator = Emulator.start(
        plan.spec,
        plan.whole_boot(stage),
        plan.build,
        plan.capabilities,
        plan.accelerator,
        plan.folder,
        deadline,
        ram=template.ram if template else None,
        incoming=template is not None,
    )
    ssh: SshConnection | None = None
    try:
        control = ControlPort(emulator.control)
        with explained_boot(emulator, control) as doing:
            if template:
                watch.enter("restore")
                doing("loading its template")
                restore(emulator, plan.capabilities, template.method, template.state, deadline)
                hello = template.hello
            else:
                watch.enter("boot")
                hello = boot(control, plan.payload, deadline, doing)
            watch.enter("identity")
            doing("taking on its identity")
            key = make_key()
            identity = control.identify(hello, make_host_key(), public_line(key), deadline)
            watch.enter("connect")
            doing("logging in over SSH")
            ssh = SshConnection(emulator.ssh, key, identity.host_key, deadline)
        watch.leave()
        yield Guest(plan.spec, template is not None, emulator, control, identity, ssh, watch.seconds)
    finally:
        if ssh is not None:
            ssh.close()
        emulator.stop()


class _Watch:
    """Takes the time of each stage, and tells its name when it begins."""

    def __init__(self, stage: Callable[[str], None]) -> None:
        self._stage = stage
        self._name = ""
        self._began = 0.0
        self.seconds: dict[str, float] = {}

    def enter(self, name: str) -> None:
        self.leave()
        self._stage(name)
        self._name, self._began = name, time.monotonic()

    def leave(self) -> None:
        if self._name:
            self.seconds[self._name] = time.monotonic() - self._began
        self._name = ""
