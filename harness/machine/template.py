"""Templates: frozen guests in the cache, found by a hash over everything that went into them."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.image import cache
from harness.image.cache import DamagedEntryError, Entry, Say
from harness.machine import vm_image
from harness.machine.argv import Boot, Ram, Wiring, build_argv
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.machine.snapshot import Method
from harness.machine.spec import MachineSpec

KIND = "template"
RAM_FILE = "ram"
STATE_FILE = "state"

_FORMAT = 2
# Templates that have not been used last give way to new ones: each edit of usdm makes one.
_KEPT = 16
_UNUSED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Template:
    """A frozen guest.

    Args:
        key: hash over everything that went into it, 64 hex digits.
        folder: where it is.
        method: how its RAM was kept.
        hello: what its guest said when it was up: kernel release and uptime in seconds.
        created: ISO 8601 time in UTC.
        facts: what it was made of, by name, for people.
    """

    key: str
    folder: Path
    method: Method
    hello: str
    created: str
    facts: dict[str, object]

    @property
    def ram(self) -> Ram | None:
        """Its RAM as a clone maps it; None when RAM is in the state."""
        return Ram(self.folder / RAM_FILE, private=True) if self.method is Method.FILE else None

    @property
    def state(self) -> Path:
        """The file with the rest of its state."""
        return self.folder / STATE_FILE

    @property
    def disk_bytes(self) -> int:
        """What it takes on the disk; the RAM file has holes."""
        return sum(path.lstat().st_blocks * 512 for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a template is made of.

    Args:
        spec: the machine as it is frozen (``MachineSpec.frozen``).
        boot: kernel and initramfs.
        build: the QEMU build.
        capabilities: what the build can do.
        accelerator: ``tcg`` or ``kvm``.
        payload: hash of what was sent into it.
        method: how RAM is kept.
        code: hash of the harness's code that makes it.
    """

    spec: MachineSpec
    boot: Boot
    build: QemuBuild
    capabilities: Capabilities
    accelerator: str
    payload: str
    method: Method
    code: str

    @property
    def key(self) -> str:
        """Hash over everything, the whole QEMU command line included; its paths are not part of it."""
        nowhere = Path("-")
        argv = build_argv(
            self.spec,
            Boot(nowhere, nowhere, self.boot.key),
            Wiring(qmp=0, control=0, ssh=0, console=nowhere, log=nowhere),
            machine_type=self.capabilities.machine_type,
            accelerator=self.accelerator,
            sandbox=self.capabilities.sandbox,
            properties=self.capabilities.properties,
        )
        # Under TCG the guest's CPU is emulated; under KVM it is the host's.
        cpu = _host_cpu() if self.accelerator == "kvm" else ""
        # What a virtual machine inside is made of is in the keys of the build and the image, but for how.
        inside = vm_image.FORMAT if self.spec.vm else ""
        parts = [_FORMAT, argv, inside, self.build.key, self.boot.key, self.payload, self.method, self.code, cpu]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def facts(self) -> dict[str, object]:
        """What ``harness template list`` shows."""
        words = [self.spec.iommu, f"{self.spec.memory >> 20} MiB", f"{self.spec.cpus} CPU"]
        if self.spec.iommu != "none":
            words.insert(1, f"{self.spec.aw_bits} bits")
        if self.spec.scalable:
            words.insert(1, "scalable mode")
        if self.spec.buses != MachineSpec().buses:
            words.append(f"{self.spec.buses} buses")
        if self.spec.any_function:
            words.append("functions anywhere")
        if self.spec.vm:
            words.append("a VM inside")
        devices = [f"{device.model} at {device.at}" for device in self.spec.devices]
        return {
            "name": f"QEMU {self.build.name}",
            "qemu": f"{self.build.version} ({self.build.name})",
            "qemu_key": self.build.key,
            "image": self.boot.key,
            "machine": ", ".join([*words, *devices, *self.spec.kernel_args]),
            "accelerator": self.accelerator,
            "payload": self.payload,
            "method": str(self.method),
        }


def find_template(key: str, say: Say) -> Template | None:
    """A template that is whole, or None.

    Args:
        key: its key.
        say: told when one was there but damaged; it is removed then.

    Raises:
        InfrastructureError: the cache cannot be used.
    """
    try:
        entry = cache.find(KIND, key, trust_stamps=True)
    except DamagedEntryError as error:
        say(f"{error.message}, and is being made anew")
        return None
    if entry is None:
        return None
    cache.mark_used(entry)
    return _template(entry)


def store_template(
    ingredients: Ingredients, make: Callable[[Path, Path | None], str], say: Say
) -> tuple[Template, float | None]:
    """Make a template, unless another process has made it meanwhile; older ones that nobody uses give way.

    Args:
        ingredients: what it is made of.
        make: boots and freezes a guest: given a folder of its own and the RAM file to use (None for a stream), it
            leaves ``state`` in the folder and returns what the guest said when it was up.
        say: told when another process is waited for.

    Returns:
        The template, and the seconds that it took; None when somebody else has made it.

    Raises:
        InfrastructureError: the disk is full, or the cache cannot be written.
        HarnessError: whatever ``make`` raises; nothing is left then.
    """
    began: list[float] = []

    def fill(folder: Path) -> dict[str, object]:
        began.append(time.monotonic())
        ram = folder / RAM_FILE if ingredients.method is Method.FILE else None
        return {**ingredients.facts, "hello": make(folder, ram)}

    entry = cache.store(KIND, ingredients.key, fill, say)
    seconds = time.monotonic() - began[0] if began else None
    _make_room()
    # Read as every later run reads it, so that the files have been hashed when the first clone starts.
    found = find_template(ingredients.key, say)
    return found or _template(entry), seconds


def list_templates() -> list[Template]:
    """All templates, newest first; they are not verified."""
    return [_template(entry) for entry in cache.entries(KIND)]


def prune_templates(keep: set[str], say: Say) -> list[str]:
    """Remove all templates but those with a key in ``keep``; gives the removed keys.

    A guest that runs from a removed one goes on.

    Raises:
        InfrastructureError: the cache cannot be written.
    """
    return cache.prune(KIND, lambda entry: entry.key if entry.key in keep else None, 1, say)


def _make_room() -> None:
    unused = time.time() - _UNUSED_SECONDS
    by_use = sorted(cache.entries(KIND), key=cache.last_used, reverse=True)
    for entry in by_use[_KEPT:]:
        if cache.last_used(entry) < unused:
            cache.remove(entry)


def _template(entry: Entry) -> Template:
    facts = entry.facts
    return Template(entry.key, entry.folder, Method(str(facts["method"])), str(facts["hello"]), entry.created, facts)


def _host_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = ("model name", "flags", "microcode")
    return "\n".join([platform.release(), *dict.fromkeys(line for line in lines if line.startswith(wanted))])
