"""Real guests. What they need is got once (``harness fetch`` does the same); nothing is skipped when it is missing."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.machine.template import KIND, Template
from harness.paths import cache_dir
from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare

BOOT_SECONDS = 120.0
EDU = DeviceSpec("edu0", "edu", "02:00.0")
# May mount a small file system, which a test of a full disk does.
_CAP_SYS_ADMIN = 21
_CAPABILITY_VERSION_3 = 0x20080522
# What a cache of its own takes from the user's.
SHARED = ("qemu", "image", "capabilities", "accelerator.json")


@pytest.fixture(scope="session", autouse=True)
def as_an_ordinary_user() -> None:
    """Root keeps nothing that lets it read or write what the mode of a file forbids, and its QEMUs do not either.

    Nothing here needs root; but as root, as CI is, nobody would notice that something does.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if capability != _CAP_SYS_ADMIN:
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: what a program may not gain when it is started
    kept = 1 << _CAP_SYS_ADMIN
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    if libc.capset(header, struct.pack("<6I", kept, kept, 0, 0, 0, 0)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C works here and in what is started: a CI's shell that starts its jobs with ``&`` has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def resources() -> Resources:
    return prepare(RunOptions(fetch=True), print)


@pytest.fixture
def start(resources: Resources, tmp_path: Path) -> Callable[..., AbstractContextManager[Guest]]:
    """Starts a guest; its run folder is ``tmp_path/run``."""

    def starter(boot_seconds: float = BOOT_SECONDS, **changes: object) -> AbstractContextManager[Guest]:
        folder = tmp_path / "run"
        folder.mkdir()
        plan = resources.plan(MachineSpec(devices=(EDU,), **changes), "11.1", "6.12", folder)  # type: ignore[arg-type]
        return running_guest(plan, boot_seconds, lambda stage: None)

    return starter


@pytest.fixture
def clone(resources: Resources, tmp_path: Path) -> Callable[..., AbstractContextManager[Guest]]:
    """Clones a guest, made by any resources; its run folder is ``tmp_path/runN``. Any thread may call it."""
    numbers = itertools.count()

    def starter(made_by: Resources = resources, device: DeviceSpec = EDU) -> AbstractContextManager[Guest]:
        folder = tmp_path / f"run{next(numbers)}"
        folder.mkdir()
        plan = made_by.plan(MachineSpec(devices=(device,)), "11.1", "6.12", folder)
        template = get_template(plan, BOOT_SECONDS, print)
        return running_guest(replace(plan, template=template), BOOT_SECONDS, lambda stage: None)

    return starter


def said(guest: Guest, command: str) -> str:
    """The output of a command that must succeed."""
    done = guest.run(command, Deadline.after(60))
    assert done.status == 0, done.stderr
    return done.stdout.decode().strip()


def _template(resources: Resources, qemu: str) -> Template:
    return get_template(resources.plan(MachineSpec(), qemu, "6.12", Path("-")), BOOT_SECONDS, print)


@pytest.fixture(scope="session")
def template(resources: Resources) -> Template:
    """The template of most scenarios, in the user's cache."""
    return _template(resources, "11.1")


@pytest.fixture(scope="session")
def older_template() -> Template:
    """The same machine on an older QEMU."""
    return _template(prepare(RunOptions(qemu=("10.0",), fetch=True), print), "10.0")


@pytest.fixture
def own_cache(resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache to damage: the QEMU builds and images are the user's, so nothing is fetched; it has no templates."""
    users = cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = cache_dir()
    own.mkdir(parents=True)
    for name in SHARED:
        (own / name).symlink_to(users / name)
    return own


def copy_template(template: Template, cache: Path) -> Path:
    """Put a copy of a template into another cache; gives its folder."""
    folder = cache / KIND / template.key
    folder.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=always", template.folder, folder], check=True)
    return folder


def processes_with(text: str) -> list[int]:
    """Ids of the processes that have ``text`` in their command line, this one excepted."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in line:
            found.append(int(folder.name))
    return found


def adopt_orphans() -> None:
    """From now on a process whose parent died becomes a child of this one (``PR_SET_CHILD_SUBREAPER``)."""
    if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def adopted() -> list[int]:
    """Ids of this process's children that run; those that have ended are reaped. For tests that start nothing else."""
    running = []
    for thread in Path("/proc/self/task").iterdir():
        for pid in map(int, (thread / "children").read_text().split()):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                running.append(pid)
    return running


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    """Every test ends without a QEMU of its own."""
    yield
    left = processes_with(str(tmp_path))
    assert not left, f"processes are left: {left}"
