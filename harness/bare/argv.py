"""QEMU's arguments for a machine without a guest system."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from harness.bare.spec import BareDeviceSpec, BareSpec
from harness.errors import ConfigurationError, InfrastructureError
from harness.machine.devices import device_arguments
from harness.machine.probe import Capabilities
from harness.machine.spec import DeviceSpec, MachineSpec

_FIRMWARE_BYTES = 64 * 1024
_RESET_VECTOR = 16  # bytes before the end
# cli; hlt; jmp to the hlt: the processor sleeps for good, and icount lets time leap to the next timer.
_HALT = bytes((0xFA, 0xF4, 0xEB, 0xFD))
_EDU_MASK = 0xFFFF_FFFF_FFFF_FFFF
# The events that are witnesses.
TRACES = ("vtd_dmar_fault", "vtd_frr_new", "apic_deliver_irq")
_SCALABLE = ("scalable-mode", "x-scalable-mode")
_FIRST_STAGE = ("fsts", "x-flts")


def firmware() -> int:
    """A descriptor of the firmware in memory; the caller closes it.

    Raises:
        InfrastructureError: the host gives no memory.
    """
    image = bytearray(b"\xf4" * _FIRMWARE_BYTES)
    image[-_RESET_VECTOR : -_RESET_VECTOR + len(_HALT)] = _HALT
    try:
        fd = os.memfd_create("bare-firmware", os.MFD_CLOEXEC)
        os.write(fd, image)
    except OSError as error:
        raise InfrastructureError(f"no memory for the firmware: {os.strerror(error.errno or 0)}") from error
    return fd


def property_of(capabilities: Capabilities, names: tuple[str, ...], what: str) -> str:
    """What this build calls a property of intel-iommu.

    Raises:
        ConfigurationError: it has none of these names.
    """
    known = capabilities.properties.get("intel-iommu", frozenset())
    found = next((name for name in names if name in known), None)
    if found is None:
        raise ConfigurationError(
            f"this QEMU build's intel-iommu has no {what}", hint="choose another build with --qemu"
        )
    return found


def lacks(spec: BareSpec, capabilities: Capabilities) -> str | None:
    """What of a machine a build does not have, as one line; None when it has all."""
    try:
        _iommu(spec, capabilities)
    except ConfigurationError as error:
        return error.message
    return None


def _iommu(spec: BareSpec, capabilities: Capabilities) -> dict[str, object]:
    options: dict[str, object] = {"driver": "intel-iommu", "aw-bits": spec.aw_bits, "intremap": "on", "eim": "off"}
    if spec.scalable:
        options[property_of(capabilities, _SCALABLE, "scalable mode")] = True
    if spec.first_stage:
        options[property_of(capabilities, _FIRST_STAGE, "first-stage tables")] = True
    return options


def bare_argv(spec: BareSpec, capabilities: Capabilities, *, qtest: int, bios: int, folder: Path) -> list[str]:
    """QEMU's arguments, without the program itself.

    Args:
        spec: the machine.
        capabilities: what the build can do.
        qtest: descriptor of QEMU's end of the qtest connection.
        bios: descriptor of the firmware.
        folder: where log, trace and qtest log go.

    Raises:
        ConfigurationError: the build lacks what the machine asks for.
    """
    argv = ["-nodefaults", "-no-user-config", "-display", "none", "-name", "usdm-harness-bare"]
    argv += ["-machine", f"{capabilities.machine_type},sata=off,smbus=off,vmport=off,pit=off,hpet=off,acpi=off"]
    argv += ["-accel", "tcg", "-icount", "shift=0,sleep=off", "-m", f"{spec.memory >> 20}M"]
    argv += ["-bios", f"/proc/self/fd/{bios}"]
    if capabilities.sandbox:
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    # The IOMMU must come before the devices that it serves.
    argv += ["-device", json.dumps(_iommu(spec, capabilities))]
    for options in _topology(spec):
        argv += ["-device", json.dumps(options)]
    for number, device in enumerate(spec.devices):
        argv += _device(device, number, capabilities)
    log = str(folder / "qtest.log")
    argv += ["-chardev", f"socket,id=qtest,fd={qtest}"]
    argv += ["-object", json.dumps({"qom-type": "qtest", "id": "qtest0", "chardev": "qtest", "log": log})]
    argv += ["-D", str(folder / "qemu.log"), "-d", "guest_errors", "-msg", "timestamp=on"]
    for event in TRACES:
        argv += ["-trace", event]
    return argv


def _topology(spec: BareSpec) -> Iterator[dict[str, object]]:
    """Root ports, bridges, and what a bus needs beside the devices."""
    for bus, slot in spec.ports.items():
        place = {"bus": "pcie.0", "addr": f"{slot:x}.0", "chassis": slot, "slot": slot}
        yield {"driver": "pcie-root-port", "id": f"port{bus}", **place}
        bridged = [one for one in spec.devices if one.bridge and one.bus == bus + 1]
        if bridged:
            yield {"driver": "pcie-pci-bridge", "id": f"bridge{bus + 1}", "bus": f"port{bus}", "addr": "0.0"}
        elif not any(one.bus == bus and not one.source_id & 0xFF for one in spec.devices):
            # A root port shows what is behind it only when there is a device 00.0.
            yield {"driver": "pci-testdev", "bus": f"port{bus}", "addr": "0.0", "multifunction": True}


def _bus_name(device: BareDeviceSpec) -> str:
    if device.bus == 0:
        return "pcie.0"
    return f"bridge{device.bus}" if device.bridge else f"port{device.bus}"


def _device(device: BareDeviceSpec, number: int, capabilities: Capabilities) -> list[str]:
    if device.model == "vf":
        return []
    place: dict[str, object] = {"bus": _bus_name(device), "addr": f"{device.slot:x}.{device.function:x}"}
    if device.model == "nvme":
        # Identify needs no namespace, so the disk and its descriptor are left out.
        at = f"{device.bus:02x}:{device.slot:02x}.{device.function:x}"
        spec = DeviceSpec(device.name, "nvme", at, device.vfs)
        machine = MachineSpec(devices=(spec,))
        words = device_arguments(spec, number, {device.name: -1}, capabilities.properties, machine)
        wanted = [json.loads(word) for word in words if word.startswith('{"driver": "nvme')]
        options = [one for one in wanted if one["driver"] in ("nvme-subsys", "nvme")]
        options[-1] |= place
    else:
        options = [{"driver": device.model.replace("_", "-"), "id": device.name, **place}]
        if device.model == "edu":
            options[0]["dma_mask"] = _EDU_MASK
    return [word for one in options for word in ("-device", json.dumps(one))]
