"""``harness shell``: a person, or a script on standard input, in a new guest."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko

from harness.deadline import Deadline
from harness.errors import ConfigurationError
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.guest.payload import GUEST_FOLDER
from harness.machine.spec import DeviceSpec
from harness.run.cells import Cell, choose_kernels, machine_spec, spec_of
from harness.run.models import unmet_model, with_model
from harness.run.options import RunOptions
from harness.run.resources import prepare
from harness.run.schedule import make_run_folder
from harness.run.session import SETUP_SECONDS
from harness.scenario import BareScenario, Device, Machine, load_scenario
from harness.scenario.point import NotApplicable, at_point, machine_at

_CHUNK = 32 * 1024
_OPEN_SECONDS = 30.0
# A shell has no deadline of its own: it ends when the person or the guest ends it.
_FOR_EVER = 10.0**7


def open_shell(options: RunOptions, scenario: Path | None, command: str | None, say: Callable[[str], None]) -> int:
    """Clone or boot a guest and connect standard input and output with a shell, or run one command.

    Args:
        options: build, kernel, accelerator, whether to boot.
        scenario: a scenario whose machine is taken; None for one with a device of the chosen model at 02:00.0.
        command: a command line instead of a shell.
        say: told what goes on.

    Returns:
        The exit status of the shell or command.

    Raises:
        HarnessError: whatever can go wrong with a guest.
    """
    model = options.models[0]
    loaded = load_scenario(scenario) if scenario else None
    if isinstance(loaded, BareScenario):
        raise ConfigurationError(f"{scenario} is a bare scenario: it has no guest that a shell could be opened in")
    (point,) = options.points
    try:
        loaded = loaded and with_model(at_point(loaded, point), model)
        plain = Machine(devices={f"{model}0": Device(model=model, at="02:00.0")})
        spec = machine_spec(loaded) if loaded else spec_of(machine_at(plain, point))
    except NotApplicable as error:
        raise ConfigurationError(f"the machine cannot be so: {error.reason}") from None
    qemu, kernel = options.qemu[0], options.kernels[0]
    resources = prepare(options, say)
    if loaded:
        (cell,), resources = choose_kernels([Cell(loaded, qemu, kernel, loaded.id)], options, resources, say)
        kernel = cell.kernel
    emulation, image = resources.emulations[qemu], resources.images[kernel]
    lacks = unmet_model(spec, emulation)
    if lacks is not None:
        raise ConfigurationError(f"this machine {lacks}", hint="choose another build with --qemu, or --model edu")
    folder = make_run_folder(options.out)
    plan = resources.plan(spec, qemu, kernel, folder)
    clone = options.start == "clone" and plan.can_be_cloned
    if clone:
        plan = replace(plan, template=get_template(plan, options.boot_timeout, say))
    doing = "cloning" if clone else "booting"
    on = f"{image.kernel_release} on QEMU {emulation.build.version} ({emulation.accelerator.accelerator})"
    say(f"{doing} {on}")
    with running_guest(plan, options.boot_timeout, lambda stage: None) as guest:
        deadline = Deadline.after(SETUP_SECONDS)
        guest.start_worker(deadline)
        guest.find_devices(deadline)
        devices = ", ".join(_words(device) for device in spec.devices) or "no device"
        say(f"ready: {devices}; usdm is in {GUEST_FOLDER}, the console's log in {folder}; Ctrl-D ends the guest")
        return attach(guest, command)


def _words(device: DeviceSpec) -> str:
    later = f" once the VFs of {device.of} are enabled" if device.model == "vf" else ""
    return f"{device.name} at {device.at}{later}"


def has_terminal() -> bool:
    """Whether a person sits at standard input and output."""
    return os.isatty(0) and os.isatty(1)


def attach(guest: Guest, command: str | None) -> int:
    """Connect standard input and output with a shell in a guest, or with one command.

    Args:
        guest: the guest.
        command: a command line instead of a shell.

    Returns:
        The exit status.

    Raises:
        TimeoutError, GuestLost: the guest did not open a session.
    """
    interactive = command is None and sys.stdin.isatty()
    with guest.ssh.channel(Deadline.after(_OPEN_SECONDS)) as channel:
        if interactive:
            size = os.get_terminal_size()
            channel.get_pty(os.environ.get("TERM", "vt100"), size.columns, size.lines)
        if command is None:
            channel.invoke_shell() if interactive else channel.exec_command("sh")
        else:
            channel.exec_command(command)
        saved = termios.tcgetattr(sys.stdin) if interactive else None
        try:
            if saved is not None:
                tty.setraw(sys.stdin)
            _pump(channel, forward_input=command is None)
        finally:
            if saved is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
        # A guest that was switched off from inside sends no status.
        return max(0, channel.recv_exit_status())


def _pump(channel: paramiko.Channel, *, forward_input: bool) -> None:
    """Copy in both directions until the guest's side ends."""
    source = sys.stdin.fileno()
    watched: list[Any] = [channel, source] if forward_input else [channel]
    channel.settimeout(_FOR_EVER)
    while True:
        ready, _, _ = select.select(watched, [], [])
        if channel in ready:
            moved = False
            if channel.recv_ready():
                os.write(sys.stdout.fileno(), channel.recv(_CHUNK))
                moved = True
            if channel.recv_stderr_ready():
                os.write(sys.stderr.fileno(), channel.recv_stderr(_CHUNK))
                moved = True
            if not moved and (channel.closed or channel.eof_received):
                return
        if source in ready:
            data = os.read(source, _CHUNK)
            if data:
                channel.sendall(data)
            else:
                channel.shutdown_write()
                watched.remove(source)
