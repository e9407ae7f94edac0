"""Boot a guest up to the moment before it becomes anybody's, and freeze it as a template."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest import control
from harness.guest.control import ControlPort
from harness.guest.guest import GuestPlan, boot
from harness.guest.triage import explained_boot
from harness.image.cache import Say
from harness.machine import snapshot
from harness.machine.argv import Ram
from harness.machine.emulator import Emulator
from harness.machine.snapshot import Method, best_method, freeze
from harness.machine.template import STATE_FILE, Ingredients, Template, find_template, store_template

BOOT_FOLDER = "boot"


def ingredients(plan: GuestPlan, method: Method | None = None) -> Ingredients:
    """What the template of a guest is made of.

    Args:
        plan: the guest; its devices under test do not count.
        method: how RAM is kept; None for the build's best.
    """
    return Ingredients(
        spec=plan.spec.bare,
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
        boot_seconds: how long the boot may take.
        say: told what takes time.
        method: how RAM is kept; None for the build's best.

    Raises:
        InfrastructureError: the disk is full, QEMU cannot freeze this machine, or the worker could not load its modules.
        BootError, GuestPanic, GuestLost, EmulatorCrash: the guest did not come up.
    """
    wanted = ingredients(plan, method)
    found = find_template(wanted.key, say)
    if found is not None:
        return found
    facts = wanted.facts
    say(f"making a template: {facts['name']}, {facts['machine']}")

    def make(folder: Path, ram: Path | None) -> str:
        logs = folder / BOOT_FOLDER
        logs.mkdir()
        return _make(replace(plan, spec=wanted.spec, folder=logs), wanted.method, folder / STATE_FILE, ram, boot_seconds)

    template, seconds = store_template(wanted, make, say)
    say(f"template {template.key[:12]} made in {seconds:.1f} s, {template.disk_bytes >> 20} MB")
    return template


def _make(plan: GuestPlan, method: Method, state: Path, ram: Path | None, boot_seconds: float) -> str:
    deadline = Deadline.after(boot_seconds)
    backing = None
    if ram is not None:
        _allocate(ram, plan.spec.memory)
        backing = Ram(ram, private=False)
    emulator = Emulator.start(
        plan.spec, plan.boot, plan.build, plan.capabilities, plan.accelerator, plan.folder, deadline, ram=backing
    )
    try:
        port = ControlPort(emulator.control)
        with explained_boot(emulator, port) as doing:
            hello = boot(port, plan.payload, deadline, doing)
            doing("loading the worker's modules")
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
        _dig_holes(ram)
        ram.chmod(0o444)
    state.chmod(0o444)
    return hello


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


def _dig_holes(ram: Path) -> None:
    """Give back the space of pages that the guest never touched; without the program they just stay."""
    if program := shutil.which("fallocate"):
        subprocess.run([program, "--dig-holes", str(ram)], check=False, capture_output=True)


@cache
def _code() -> str:
    """Hash of the code that says how a template is made; QEMU's command line is in its key anyway."""
    files = (__file__, control.__file__, snapshot.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
