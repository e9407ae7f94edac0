"""Boot a guest up to the moment before it becomes anybody's, and freeze it as a template."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest import control, rehearsal
from harness.guest.control import ControlPort
from harness.guest.guest import GuestPlan, boot
from harness.guest.rehearsal import REHEARSAL, VM_SECONDS, VM_START
from harness.guest.ssh import SshConnection, make_host_key, make_key, public_line
from harness.guest.triage import explained_boot
from harness.guest.worker import Worker
from harness.image.cache import Say
from harness.machine import snapshot
from harness.machine.argv import Ram
from harness.machine.emulator import Emulator
from harness.machine.snapshot import Method, best_method, freeze
from harness.machine.template import STATE_FILE, Ingredients, Template, find_template, store_template

BOOT_FOLDER = "boot"
# A template is as much work as two boots: the worker's modules are loaded, and what clones do first is rehearsed. On a
# host with ten times as much to do as it has cores, one boot's time was not enough.
_BOOTS = 2
_PUNCH_HOLE_KEEP_SIZE = 3


def ingredients(plan: GuestPlan, method: Method | None = None) -> Ingredients:
    """What the template of a guest is made of.

    Args:
        plan: the guest; its devices under test do not count.
        method: how RAM is kept; None for the build's best.
    """
    return Ingredients(
        spec=plan.spec.frozen,
        boot=plan.boot,
        build=plan.build,
        capabilities=plan.capabilities,
        accelerator=plan.accelerator,
        payload=plan.payload.key,
        method=method or best_method(plan.capabilities),
        code=_code(),
    )


def get_template(plan: GuestPlan, boot_seconds: float, say: Say, method: Method | None = None) -> Template:
    """The template for a guest, made when there is none or the one that was there is damaged.

    Args:
        plan: the guest.
        boot_seconds: how long a boot may take; making a template may take twice as long.
        say: told what takes time.
        method: how RAM is kept; None for the build's best.

    Raises:
        InfrastructureError: the disk is full, QEMU cannot freeze this machine, or the worker cannot load its modules.
        BootError, GuestPanic, GuestLost, EmulatorCrash: the guest did not come up.
    """
    wanted = ingredients(plan, method)
    found = find_template(wanted.key, say)
    if found is not None:
        return found
    facts = wanted.facts

    def make(folder: Path, ram: Path | None) -> str:
        say(f"making a template: {facts['name']}, {facts['machine']}")
        logs = folder / BOOT_FOLDER
        logs.mkdir()
        return _make(
            replace(plan, spec=wanted.spec, folder=logs), wanted.method, folder / STATE_FILE, ram, boot_seconds, say
        )

    template, seconds = store_template(wanted, make, say)
    if seconds is not None:
        say(f"template {template.key[:12]} made in {seconds:.1f} s, {template.disk_bytes // 10**6} MB")
    return template


def _make(plan: GuestPlan, method: Method, state: Path, ram: Path | None, boot_seconds: float, say: Say) -> str:
    deadline = Deadline.after(_BOOTS * boot_seconds + (VM_SECONDS if plan.spec.vm else 0))
    backing = None
    if ram is not None:
        _allocate(ram, plan.spec.memory)
        backing = Ram(ram, private=False)
    emulator = Emulator.start(
        plan.spec,
        plan.whole_boot(say),
        plan.build,
        plan.capabilities,
        plan.accelerator,
        plan.folder,
        deadline,
        ram=backing,
    )
    try:
        port = ControlPort(emulator.control)
        with explained_boot(emulator, port) as doing:
            hello = boot(port, plan.payload, deadline, doing)
            doing("loading the worker's modules")
            port.prepare(deadline)
            doing("rehearsing what every clone does first")
            _rehearse(emulator, port, hello, deadline, vm=plan.spec.vm)
            port.prepare(deadline)
        try:
            freeze(emulator, plan.capabilities, method, state, deadline)
        except InfrastructureError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            raise
    finally:
        emulator.stop()
    if ram is not None:
        # Its mode stays: QEMU opens it for writing, although a clone maps it privately.
        _give_back(ram)
    state.chmod(0o444)
    return hello


def _rehearse(emulator: Emulator, port: ControlPort, hello: str, deadline: Deadline, *, vm: bool) -> None:
    """Take on a throw-away identity, log in, run a command, use the worker, and leave.

    What happens for the first time is slow, the more so under TCG: pages are copied, code is bound and specialized.
    A clone would pay for it each time; so it is done here once. No device is touched, and everything that is secret is
    replaced in each clone.
    """
    key = make_key()
    identity = port.identify(hello, make_host_key(), public_line(key), deadline)
    ssh = SshConnection(emulator.ssh, key, identity.host_key, deadline)
    try:
        ssh.run("true", deadline)
        worker = Worker(ssh, identity.nonce, deadline)
        for kind, args in (*REHEARSAL, VM_START) if vm else REHEARSAL:
            answer = worker.request(kind, args, deadline)
            if answer["error"]:
                raise InfrastructureError(f"the worker could not do '{kind}': {answer['error']['message']}")
    finally:
        ssh.close()


def _allocate(ram: Path, size: int) -> None:
    """Take the space for the whole of RAM: a disk that is full would kill QEMU (SIGBUS) at some later write.

    Raises:
        OSError: ENOSPC, the disk has no room for it.
    """
    free = shutil.disk_usage(ram.parent).free
    if free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with ram.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _give_back(ram: Path) -> None:
    """Give back the space of what the guest never touched; where the file system cannot, it just stays."""
    punch = ctypes.CDLL(None, use_errno=True).fallocate
    punch.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
    with ram.open("r+b") as file:
        fd, size = file.fileno(), ram.stat().st_size
        hole = 0
        while hole < size:
            try:
                data = os.lseek(fd, hole, os.SEEK_DATA)
            except OSError:  # ENXIO: none behind it
                data = size
            if data > hole and punch(fd, _PUNCH_HOLE_KEEP_SIZE, hole, data - hole) != 0:
                return
            hole = os.lseek(fd, data, os.SEEK_HOLE) if data < size else size


@cache
def _code() -> str:
    """Hash of the code that says how a template is made; QEMU's command line is in its key anyway."""
    files = (__file__, control.__file__, rehearsal.__file__, snapshot.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
