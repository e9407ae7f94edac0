"""Topology to command line: the QEMU arguments for a machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.errors import ConfigurationError
from harness.machine.devices import device_arguments, filler_arguments, served_names, without_descriptors
from harness.machine.slots import IOMMU, MAX_PORTS, PANIC, SERIAL, own_slots, port_address
from harness.machine.spec import TABLE_OF_BUSES, Iommu, MachineSpec

CONTROL_PORT = "org.usdm-harness.control"
SSH_PORT = "org.usdm-harness.ssh"
# QEMU names the ports so in its events.
CONTROL_DEVICE = "controlport"
SSH_DEVICE = "sshport"

# Self-tests of cryptography that nothing here uses: 0.3 to 0.5 s of a boot under TCG (docs/performance.md).
_NO_SELF_TESTS = ("cryptomgr.notests", "initcall_blacklist=jent_mod_init,crypto_kdf108_init")
RAM_OBJECT = "ram0"
# QEMU's trace events by which a vIOMMU tells of each refused access (harness/fault/trace.py reads them).
_FAULT_EVENTS: Final[dict[Iommu, tuple[str, ...]]] = {
    "intel": ("vtd_dmar_fault",),
    # Only the translation says whether the device read or wrote.
    "virtio": ("virtio_iommu_report_fault", "virtio_iommu_translate"),
    "amd": ("amdvi_page_fault", "amdvi_translation_result"),
    "none": ("vtd_dmar_fault",),
}
# What intel-iommu's scalable mode is called: from QEMU 11 on, and before.
_SCALABLE: Final = ("scalable-mode", "x-scalable-mode")
_LAST_BUS: Final = 0xFE
# The ports' own registers tell the kernel of cards that come and go, and not the firmware's ACPI methods.
_NATIVE_HOT_PLUG: Final = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"
_AMD_FUNCTION: Final = "amdfunction"


@dataclass(frozen=True, slots=True)
class Boot:
    """What is booted.

    Args:
        kernel: an ELF vmlinux (PVH) or a bzImage.
        initrd: the initramfs.
        key: hash of the image that both belong to.
    """

    kernel: Path
    initrd: Path
    key: str


@dataclass(frozen=True, slots=True)
class Ram:
    """Guest memory that lies in a file.

    Args:
        file: the file, as large as the guest's memory.
        private: copy-on-write: the file is read, and what the guest writes stays in the process.
    """

    file: Path
    private: bool


@dataclass(frozen=True, slots=True)
class Wiring:
    """File descriptors (QEMU's ends of socket pairs) and files of one process.

    Args:
        qmp: descriptor of the QMP monitor.
        control: descriptor of the control port.
        ssh: descriptor of the SSH port.
        console: file for the serial console's output.
        log: file for QEMU's own log and trace.
        disks: name of each nvme to the descriptor of its namespace's memory.
        sockets: name of each device whose model is a process beside QEMU to the path of its socket.
    """

    qmp: int
    control: int
    ssh: int
    console: Path
    log: Path
    disks: Mapping[str, int] = field(default_factory=dict)
    sockets: Mapping[str, str] = field(default_factory=dict)


def kernel_command_line(spec: MachineSpec) -> str:
    """The kernel's command line for a machine."""
    # no_timer_check: on a busy host QEMU may come too late for the kernel's test of the timer, which then panics.
    words = ["console=ttyS0", "quiet", "panic=-1", "oops=panic", "no_timer_check", *_NO_SELF_TESTS]
    if spec.iommu == "intel":
        words.append("intel_iommu=on,sm_on" if spec.scalable else "intel_iommu=on")
    if spec.iommu == "virtio":
        # It remaps no interrupts, without which VFIO refuses a group, and IOMMUFD a device, unless they are told that
        # this is all right.
        words += ["vfio_iommu_type1.allow_unsafe_interrupts=1", "iommufd.allow_unsafe_interrupts=1"]
    if spec.any_function:
        words.append("pci=pcie_scan_all")
    return " ".join([*words, *spec.kernel_args])


def _topology(spec: MachineSpec, wiring: Wiring, properties: Mapping[str, frozenset[str]]) -> list[str]:
    """The root ports, and the devices under test."""
    buses = sorted({device.bdf[0] for device in spec.devices} - {0})
    if spec.buses > MAX_PORTS or len(buses) > spec.buses:
        raise ConfigurationError(
            f"devices on {len(buses)} buses and a machine with {spec.buses} root ports, of which there are at most "
            f"{MAX_PORTS}: each port has one bus"
        )
    arguments: list[str] = []
    for bus in range(1, spec.buses + 1):
        port = {
            "driver": "pcie-root-port",
            "id": f"port{bus}",
            "bus": "pcie.0",
            "addr": port_address(spec, bus).removeprefix("00:"),
            "chassis": bus,
            "slot": bus,
            # A template's port is empty, and an empty slot's power is off: a clone's device would stay invisible.
            # A hot-plug port is not empty there.
            "power_controller_present": bus in spec.hot_plug,
            "hotplug": bus in spec.hot_plug,
        }
        if bus == spec.buses and spec.iommu in TABLE_OF_BUSES:
            port["bus-reserve"] = _LAST_BUS - bus
        arguments += ["-device", json.dumps(port)]
    arguments += filler_arguments(spec)
    for number, device in enumerate(spec.devices):
        arguments += device_arguments(device, number, wiring.disks, properties, spec, wiring.sockets)
    return arguments


def lacking(spec: MachineSpec, properties: Mapping[str, frozenset[str]]) -> str | None:
    """What of a machine's vIOMMU a build does not have, as one line; None when it has all."""
    try:
        _iommu(spec, properties)
    except ConfigurationError as error:
        return error.message
    return None


def _iommu(spec: MachineSpec, properties: Mapping[str, frozenset[str]]) -> list[str]:
    wanted: dict[str, object]
    address = f"{own_slots(spec)[IOMMU]:x}.0"
    if spec.iommu == "none":
        return []
    if spec.iommu == "intel":
        wanted = {"driver": "intel-iommu", "intremap": "on", "caching-mode": True, "aw-bits": spec.aw_bits}
        if spec.scalable:
            known = properties.get("intel-iommu", frozenset())
            wanted[next((name for name in _SCALABLE if name in known), _SCALABLE[0])] = True
    elif spec.iommu == "amd":
        wanted = {"driver": "amd-iommu", "intremap": "on", "dma-remap": True, "pci-id": _AMD_FUNCTION}
    else:
        wanted = {"driver": "virtio-iommu-pci", "bus": "pcie.0", "addr": address}
        # QEMU before 9.0 cannot limit the width.
        if spec.aw_bits != MachineSpec().aw_bits or "aw-bits" in properties.get("virtio-iommu-pci", frozenset()):
            wanted["aw-bits"] = spec.aw_bits
    driver = str(wanted["driver"])
    known = properties.get(driver, frozenset())
    missing = sorted(name for name in wanted if name not in ("driver", "bus", "addr") and name not in known)
    if missing:
        raise ConfigurationError(
            f"this QEMU build's {driver} lacks the properties {', '.join(missing)}",
            hint="choose another build with --qemu; 'harness qemu list' shows them",
        )
    # AMD's IOMMU is a function of bus 0 too; by itself it takes the first slot that is free.
    function = {"driver": "AMDVI-PCI", "id": _AMD_FUNCTION, "bus": "pcie.0", "addr": address}
    before = ["-device", json.dumps(function)] if spec.iommu == "amd" else []
    return [*before, "-device", json.dumps(wanted)]


def build_argv(
    spec: MachineSpec,
    boot: Boot,
    wiring: Wiring,
    *,
    machine_type: str,
    accelerator: str,
    sandbox: bool,
    properties: Mapping[str, frozenset[str]],
    ram: Ram | None = None,
    incoming: bool = False,
) -> list[str]:
    """QEMU's arguments, without the program itself.

    Args:
        spec: the machine.
        boot: kernel and initramfs.
        wiring: descriptors and files.
        machine_type: a pinned type, e.g. ``pc-q35-11.1``.
        accelerator: ``tcg`` or ``kvm``.
        sandbox: whether the build has ``-sandbox``.
        properties: device name to the names of its properties, as probed on this build.
        ram: guest memory in a file; None for anonymous memory.
        incoming: start stopped, and wait for a state to be loaded.

    Raises:
        ConfigurationError: a bus out of reach, or a device or a property that the build does not have.
    """
    slots = own_slots(spec)
    # sata and smbus off: q35's AHCI cannot be restored behind a vIOMMU, and nothing here needs either.
    machine = f"{machine_type},sata=off,smbus=off,vmport=off" + (
        ",kernel-irqchip=split" if accelerator == "kvm" else ""
    )
    argv = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "usdm-harness"]
    if ram is not None:
        share = "off" if ram.private else "on"
        where = str(ram.file).replace(",", ",,")
        argv += ["-object", f"memory-backend-file,id={RAM_OBJECT},size={spec.memory},mem-path={where},share={share}"]
        machine += f",memory-backend={RAM_OBJECT}"
    argv += ["-machine", machine, "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"]
    argv += ["-m", f"{spec.memory >> 20}M", "-smp", str(spec.cpus)]
    if sandbox:
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    # The vIOMMU must come before the devices that it serves.
    argv += _iommu(spec, properties)
    argv += ["-chardev", f"socket,id=qmp,fd={wiring.qmp}", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"socket,id=control,fd={wiring.control}", "-chardev", f"socket,id=ssh,fd={wiring.ssh}"]
    argv += ["-device", f"virtio-serial-pci,bus=pcie.0,addr={slots[SERIAL]:x}.0"]
    argv += ["-device", f"virtserialport,id={CONTROL_DEVICE},chardev=control,name={CONTROL_PORT},nr=1"]
    argv += ["-device", f"virtserialport,id={SSH_DEVICE},chardev=ssh,name={SSH_PORT},nr=2"]
    argv += ["-device", f"pvpanic-pci,bus=pcie.0,addr={slots[PANIC]:x}.0"]
    if spec.hot_plug:
        argv += ["-global", _NATIVE_HOT_PLUG]
    argv += _topology(spec, wiring, properties)
    # A comma inside an option's value is written twice.
    argv += ["-chardev", f"file,id=console,path={str(wiring.console).replace(',', ',,')}", "-serial", "chardev:console"]
    argv += ["-D", str(wiring.log), "-d", "guest_errors", "-msg", "timestamp=on"]
    for event in _FAULT_EVENTS[spec.iommu]:
        argv += ["-trace", event]
    if incoming:
        argv += ["-S", "-incoming", "defer"]
    argv += ["-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", kernel_command_line(spec)]
    return argv


def pasteable(argv: list[str], env: Mapping[str, str]) -> str:
    """A shell script that starts the same machine by hand, with the console and a root shell on the terminal.

    The harness's socket pairs do not exist there, so their ends become ``null``, as does the content of an nvme;
    devices that a process serves are left out, and files of the run folder are not overwritten.
    """
    out: list[str] = []
    for word in without_descriptors(argv):
        if word.startswith("socket,id="):
            out.append("null,id=" + word.split("id=")[1].split(",")[0])
        elif word.startswith("file,id=console"):
            out.append("stdio,id=console,signal=off")
        else:
            out.append(word)
    if "-D" in out:
        at = out.index("-D")
        out[at : at + 2] = []
    if "-append" in out:
        out[out.index("-append") + 1] += " harness.shell"
    assignments = [f"{name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    lines = " \\\n  ".join([*assignments, *(shlex.quote(word) for word in out)])
    about = "# The machine of this run, by hand: the console is the terminal; 'poweroff -f' ends it."
    if left_out := served_names(argv):
        about += f"\n# Left out, because nobody serves them here: {', '.join(left_out)}."
        about += "\n# 'python -m harness.device FILE.py:CLASS --socket S' serves one, and prints the -device to add."
    return f"#!/bin/sh\n{about}\nexec env {lines}\n"
