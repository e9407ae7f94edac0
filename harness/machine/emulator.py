"""One QEMU process: started, watched, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harness import stopping
from harness.deadline import Deadline
from harness.errors import EmulatorCrash, InfrastructureError
from harness.machine import loop
from harness.machine.argv import CONTROL_DEVICE, SSH_DEVICE, Boot, Ram, Wiring, build_argv, pasteable
from harness.machine.builds import QemuBuild
from harness.machine.device_server import DeviceServer, Served, served
from harness.machine.devices import make_disks
from harness.machine.launcher import guarded
from harness.machine.probe import Capabilities
from harness.machine.qmp import Qmp, QmpLog
from harness.machine.spec import MachineSpec

_T = TypeVar("_T")


class Killable(Protocol):
    """A process that Ctrl-C ends."""

    def kill(self) -> None:
        """End it at once; any thread may call it."""


_QUIT_SECONDS = 3.0
_START_SECONDS = 20.0
_TAIL_LINES = 20
_running: dict[Killable, threading.Event | None] = {}
_running_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Exit:
    """How a QEMU process ended.

    Args:
        status: exit status; negative for a signal.
        reason: the reason of QMP's SHUTDOWN event (``guest-reset``, ``guest-shutdown`` ...), or None.
        panicked: a GUEST_PANICKED event was seen.
        asked: the harness ended it.
        stderr: the last lines that QEMU itself printed.
    """

    status: int
    reason: str | None
    panicked: bool
    asked: bool
    stderr: str


@dataclass(slots=True)
class Files:
    """The files of a run folder that QEMU writes or that describe it."""

    folder: Path
    console: Path = field(init=False)
    log: Path = field(init=False)
    qmp: Path = field(init=False)
    stderr: Path = field(init=False)
    script: Path = field(init=False)

    def __post_init__(self) -> None:
        self.console = self.folder / "console.log"
        self.log = self.folder / "qemu.log"
        self.qmp = self.folder / "qmp.log"
        self.stderr = self.folder / "qemu.stderr"
        self.script = self.folder / "qemu.sh"


class Emulator:
    """A QEMU process with its monitor and the host ends of its ports.

    Made by :meth:`start`. ``control`` and ``ssh`` are connected sockets; both end (EOF) at once when QEMU dies, so no
    wait on them outlives it.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        qmp: Qmp,
        files: Files,
        control: socket.socket,
        ssh: socket.socket,
        devices: DeviceServer | None = None,
    ) -> None:
        self._process = process
        self._asked = False
        self._told: set[str] = set()
        self.qmp = qmp
        self.files = files
        self.control = control
        self.ssh = ssh
        self.devices = devices
        qmp.log.on_event = self._on_event
        watch(self)

    @classmethod
    def start(
        cls,
        spec: MachineSpec,
        boot: Boot,
        build: QemuBuild,
        capabilities: Capabilities,
        accelerator: str,
        folder: Path,
        deadline: Deadline,
        *,
        ram: Ram | None = None,
        incoming: bool = False,
    ) -> Emulator:
        """Start QEMU on a machine and connect to its monitor.

        Args:
            spec: the machine.
            boot: what it boots.
            build: the QEMU build.
            capabilities: what that build can do, as probed.
            accelerator: ``tcg`` or ``kvm``.
            folder: an existing folder for console, trace, QMP log and command line.
            deadline: until when the monitor must answer.
            ram: guest memory in a file; None for anonymous memory.
            incoming: start stopped, to load a frozen state (``harness.machine.snapshot``).

        Raises:
            InfrastructureError: QEMU did not start; the message has what it printed.
            EmulatorCrash: QEMU was ended by a signal while starting.
        """
        files = Files(folder.absolute())
        with served(folder, spec.devices, deadline) as devices:
            return cls._start(spec, boot, build, capabilities, accelerator, files, deadline, ram, incoming, devices)

    @classmethod
    def _start(
        cls,
        spec: MachineSpec,
        boot: Boot,
        build: QemuBuild,
        capabilities: Capabilities,
        accelerator: str,
        files: Files,
        deadline: Deadline,
        ram: Ram | None,
        incoming: bool,
        devices: Served,
    ) -> Emulator:
        pairs = [socket.socketpair() for _ in range(3)]
        disks = make_disks(spec.devices)
        ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
        try:
            wiring = Wiring(
                qmp=theirs[0].fileno(),
                control=theirs[1].fileno(),
                ssh=theirs[2].fileno(),
                console=files.console,
                log=files.log,
                disks=disks,
                sockets=devices.paths,
            )
            arguments = partial(
                build_argv,
                spec,
                boot,
                wiring,
                machine_type=capabilities.machine_type,
                accelerator=accelerator,
                sandbox=capabilities.sandbox,
                properties=capabilities.properties,
            )
            argv = [*build.argv_prefix, *arguments(ram=ram, incoming=incoming)]
            # By hand the machine boots: nobody would load a template into it there.
            files.script.write_text(pasteable([*build.argv_prefix, *arguments()], build.env), encoding="utf-8")
            files.console.touch()
            files.log.touch()
            stage = deadline.sooner(_START_SECONDS)
            pass_fds = [*(sock.fileno() for sock in theirs), *disks.values(), *devices.descriptors]
            process = loop.call(spawn(argv, build.env, pass_fds, files.stderr), stage)
        except BaseException:
            for sock in ours:
                sock.close()
            raise
        finally:
            for sock in theirs:
                sock.close()
            for fd in disks.values():
                os.close(fd)
        emulator = cls(
            process,
            Qmp(files.folder.name, QmpLog(files.qmp)),
            files,
            control=ours[1],
            ssh=ours[2],
            devices=devices.server,
        )
        try:
            loop.call(emulator.qmp.connect(ours[0]), stage)
        except (InfrastructureError, TimeoutError) as error:
            raise emulator._start_failure(error) from error
        except BaseException:
            emulator.stop()
            raise
        return emulator

    def _start_failure(self, error: Exception) -> Exception:
        """What to say when the monitor did not come up; ends the process."""
        ended = self._process.returncode
        if ended is None:
            with contextlib.suppress(TimeoutError):
                ended = loop.call(self._process.wait(), Deadline.after(1.0))
        how = self.stop()
        if ended is not None and ended < 0:
            return EmulatorCrash(f"QEMU was ended by signal {-ended} while it started", context={"stderr": how.stderr})
        return InfrastructureError(
            f"QEMU did not start: {how.stderr.strip() or error}",
            hint=f"the whole command line is in {self.files.script}",
        )

    def _on_event(self, event: dict[str, Any]) -> None:
        """End a stream when the guest closes its port: a serial port has no end of file of its own.

        A clone begins with ``open: false`` for a port that was not open when its template was frozen; every later one
        is a close. The open before it need not have been told: QEMU tells one change of a port a second, the last.
        """
        if event["event"] != "VSERPORT_CHANGE":
            return
        data = event.get("data", {})
        port, is_open = str(data.get("id")), bool(data.get("open"))
        sock = {CONTROL_DEVICE: self.control, SSH_DEVICE: self.ssh}.get(port)
        first = port not in self._told
        self._told.add(port)
        if sock is not None and not is_open and not first:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process.returncode is None

    @property
    def events(self) -> list[dict[str, Any]]:
        """All QMP events so far, oldest first."""
        return self.qmp.log.events

    def execute(self, command: str, arguments: dict[str, object] | None = None, *, deadline: Deadline) -> object:
        """Run one QMP command.

        Raises:
            InfrastructureError: QEMU refused it or went away.
            TimeoutError: no answer before the deadline.
        """
        return loop.call(self.qmp.execute(command, arguments), deadline)

    def run(self, coroutine: Coroutine[Any, Any, _T], deadline: Deadline) -> _T:
        """Run a coroutine that talks to QEMU (``self.qmp``) on the loop thread; it ends when QEMU does.

        Raises:
            InfrastructureError: QEMU refused something, or ended meanwhile.
            EmulatorCrash: QEMU was ended by a signal.
            TimeoutError: it was not done before the deadline.
        """
        return loop.call(self._unless_ended(coroutine), deadline)

    async def _unless_ended(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        task = asyncio.ensure_future(coroutine)
        end = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                how = f"QEMU ended: {tail(self.files.stderr).strip() or 'it said nothing'}"
                raise EmulatorCrash(how) if end.result() < 0 else InfrastructureError(how)
            return task.result()
        finally:
            task.cancel()
            end.cancel()

    def wait(self, deadline: Deadline) -> Exit:
        """Wait for the process to end by itself.

        Raises:
            TimeoutError: it still runs at the deadline.
        """
        loop.call(self._process.wait(), deadline)
        with contextlib.suppress(TimeoutError):
            loop.call(self.qmp.drain(), Deadline.after(1.0))
        return self._exit()

    def stop(self) -> Exit:
        """End the process (QMP ``quit``, then SIGKILL) and close everything. May be called twice."""
        if self.running:
            self._asked = True
            with contextlib.suppress(InfrastructureError, TimeoutError):
                loop.call(self._quit(), Deadline.after(_QUIT_SECONDS))
            if self.running:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                loop.call(self._process.wait(), Deadline.after(10.0))
        with contextlib.suppress(TimeoutError):
            loop.call(self.qmp.close(), Deadline.after(3.0))
        self.control.close()
        self.ssh.close()
        if self.devices is not None:
            self.devices.stop()
        unwatch(self)
        return self._exit()

    def kill(self) -> None:
        """End the process at once; every wait on its streams and its devices ends with it. Any thread may call it."""
        self._asked = True
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self.devices is not None:
            self.devices.hang_up()

    async def _quit(self) -> None:
        await self.qmp.execute("quit")
        await self._process.wait()

    def _exit(self) -> Exit:
        shutdown = [event for event in self.events if event["event"] == "SHUTDOWN"]
        return Exit(
            status=self._process.returncode if self._process.returncode is not None else 0,
            reason=str(shutdown[-1].get("data", {}).get("reason")) if shutdown else None,
            panicked=any(event["event"] == "GUEST_PANICKED" for event in self.events),
            asked=self._asked,
            stderr=tail(self.files.stderr),
        )


async def spawn(argv: list[str], env: dict[str, str], pass_fds: list[int], output: Path) -> asyncio.subprocess.Process:
    """Start a program that ends with the harness; on the loop thread.

    Args:
        argv: the program and its arguments.
        env: environment variables that it gets beside those of the harness.
        pass_fds: descriptors that it inherits.
        output: the file for what it prints.
    """
    with output.open("wb") as stderr:
        return await asyncio.create_subprocess_exec(
            *guarded(argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env={**os.environ, **env},
            pass_fds=pass_fds,
            # A Ctrl-C at the terminal is for the harness; it ends its guests itself.
            start_new_session=True,
        )


def watch(process: Killable) -> None:
    """Have :func:`stop_all` end a process; called in the thread that it is started for."""
    with _running_lock:
        _running[process] = stopping.current()


def unwatch(process: Killable) -> None:
    """The process has ended."""
    with _running_lock:
        _running.pop(process, None)


def stop_all(told_by: threading.Event | None = None) -> None:
    """End every QEMU of this process at once (Ctrl-C).

    Args:
        told_by: only those that were started in threads which this event stops (``harness.stopping``).
    """
    with _running_lock:
        emulators = [process for process, event in _running.items() if told_by in (None, event)]
    for emulator in emulators:
        emulator.kill()


def tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a text file, whatever bytes it holds; empty when there is none."""
    try:
        data = path.read_bytes()[-64 * 1024 :]
    except OSError:
        return ""
    text = data.decode("utf-8", errors="replace").replace("\r", "")
    return "\n".join(text.splitlines()[-lines:])
