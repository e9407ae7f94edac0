"""Which accelerator to use: KVM is believed only after a boot sector has run under it in time.

``/dev/kvm`` may exist, open, and still hang or die in the first instructions (nested and software hypervisors). So a
512-byte boot sector is run that writes one value to QEMU's ``isa-debug-exit`` port; only the exit status that this
value gives, before the deadline, counts. Status 0 does not: a QEMU has been seen to end so and to have run nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from harness.errors import InfrastructureError
from harness.machine.builds import QemuBuild
from harness.machine.launcher import guarded
from harness.paths import cache_dir

Accelerator = Literal["tcg", "kvm"]
Choice = Literal["auto", "tcg", "kvm"]

_VALUE = 0x2A
_EXPECTED_STATUS = (_VALUE << 1) | 1
_PROBE_SECONDS = 2.0
_KVM = Path("/dev/kvm")
# mov al, VALUE; mov dx, 0xf4; out dx, al; cli; hlt; jmp $-1  (16-bit real mode), then the boot signature.
_BOOT_SECTOR = bytes([0xB0, _VALUE, 0xBA, 0xF4, 0x00, 0xEE, 0xFA, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0") + b"\x55\xaa"
# The firmware does not boot from a disk that is smaller than one cylinder.
_DISK_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Decision:
    """The accelerator and why.

    Args:
        accelerator: what will be used.
        reason: one sentence for the report.
    """

    accelerator: Accelerator
    reason: str


def probe(build: QemuBuild, accelerator: Accelerator, *, cpu: str, seconds: float = _PROBE_SECONDS) -> str | None:
    """Run the boot sector; None when it worked, else why it did not.

    Args:
        build: the QEMU build.
        accelerator: what to try.
        cpu: the CPU model, as for ``-cpu``.
        seconds: how long the sector may take, QEMU's start included.
    """
    with _memory_file(_BOOT_SECTOR.ljust(_DISK_SIZE, b"\0")) as sector:
        argv = [
            *build.argv_prefix,
            *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", accelerator),
            *("-cpu", cpu, "-m", "16M", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-no-reboot"),
            *("-drive", f"file=/proc/self/fd/{sector.fileno()},format=raw,if=none,id=boot"),
            *("-device", "ide-hd,drive=boot,bootindex=0"),
        ]
        try:
            done = subprocess.run(
                guarded(argv),
                env={**os.environ, **build.env},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                pass_fds=[sector.fileno()],
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"a boot sector did not finish within {seconds:g} s under it"
    if done.returncode == _EXPECTED_STATUS:
        return None
    lines = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return f"a boot sector ended with status {done.returncode} instead of {_EXPECTED_STATUS}{said}"


def _memory_file(data: bytes) -> BinaryIO:
    file = os.fdopen(os.memfd_create("boot-sector"), "w+b")
    file.write(data)
    file.flush()
    return file


def decide(build: QemuBuild, choice: Choice = "auto") -> Decision:
    """Choose the accelerator for a build on this host.

    Args:
        build: the QEMU build.
        choice: ``auto`` measures; ``tcg`` and ``kvm`` are taken at the user's word.

    Raises:
        InfrastructureError: ``kvm`` is forced and ``/dev/kvm`` is not there or not ours to open.
    """
    if choice == "tcg":
        return Decision("tcg", "chosen by --accel tcg")
    blocked = _device_problem()
    if choice == "kvm":
        if blocked:
            raise InfrastructureError(f"--accel kvm: {blocked}", hint="use --accel auto or --accel tcg")
        return Decision("kvm", "chosen by --accel kvm, not measured")
    if blocked:
        return Decision("tcg", f"KVM is not usable: {blocked}")
    cached = _recall(build)
    if cached is not None:
        return cached
    failure = probe(build, "kvm", cpu="host")
    decision = (
        Decision("tcg", f"KVM is not usable: {failure}")
        if failure
        else Decision("kvm", f"KVM ran a boot sector within {_PROBE_SECONDS:g} s")
    )
    _remember(build, decision)
    return decision


def _device_problem() -> str | None:
    if not _KVM.exists():
        return f"{_KVM} does not exist"
    try:
        os.close(os.open(_KVM, os.O_RDWR))
    except OSError as error:
        return f"{_KVM} cannot be opened: {error.strerror}"
    return None


def _memory_key(build: QemuBuild) -> str:
    """What the answer depends on: the build, the host's kernel and its boot (a module may be reloaded at any boot)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{build.key}-{platform.release()}-{boot}"


def _memory() -> Path:
    return cache_dir() / "accelerator.json"


def _recall(build: QemuBuild) -> Decision | None:
    try:
        data = json.loads(_memory().read_text(encoding="utf-8"))
        return Decision(**data[_memory_key(build)])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(build: QemuBuild, decision: Decision) -> None:
    """Keep the newest answer of each build; a failure to write costs only a second probe."""
    path = _memory()
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({_memory_key(build): asdict(decision)}), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
