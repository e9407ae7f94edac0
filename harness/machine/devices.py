"""Devices under test as QEMU's arguments: edu, and nvme with its subsystem, its namespace and its VFs.

A namespace keeps what is written to it in memory that the harness gives QEMU as a descriptor: no file is left behind,
and QEMU opens none. A VF is no device of QEMU's command line: it is there when its PF's SR-IOV has been switched on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from harness.errors import ConfigurationError, InfrastructureError
from harness.machine.spec import SERVED, DeviceSpec, MachineSpec

NAMESPACE_BYTES = 16 << 20
"""Size of an nvme's namespace; its sectors have 512 bytes."""

# edu's default mask of 28 bits folds larger IOVAs silently into the first 256 MiB.
_EDU_MASK = 0xFFFF_FFFF_FFFF_FFFF
_ISA_BRIDGE = (0, 0x1F, 0)  # the machine's own
_FDSET = "/dev/fdset/"
_VFIO_USER = "vfio-user-pci"
# How many milliseconds QEMU waits for the process before it gives up on the device for good; its default of 5,000 may
# pass on a busy host. An end of the process is seen at once.
_PATIENCE = 60_000


def device_arguments(
    device: DeviceSpec,
    number: int,
    disks: Mapping[str, int],
    properties: Mapping[str, frozenset[str]],
    spec: MachineSpec,
    sockets: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """The arguments that put a device into the machine; none for a VF.

    Args:
        device: the device.
        number: its place among the devices, from 0.
        disks: name of each nvme to the descriptor of its namespace's memory.
        properties: device name to the names of its properties, as probed on this build.
        spec: the machine that has it.
        sockets: name of each device whose model is a process beside QEMU to the path of its socket.

    Raises:
        ConfigurationError: the build has no such device, or not with SR-IOV.
    """
    if device.model == "vf":
        return []
    where = _place(device.bdf, spec)
    if device.model == "edu":
        return _device({"driver": "edu", "id": device.name, **where, "dma_mask": _EDU_MASK})
    if device.model in SERVED:
        if not can_serve(properties):
            raise ConfigurationError(
                f"this QEMU build has no {_VFIO_USER}, which model: {device.model} needs",
                hint="choose QEMU 10.1 or later with --qemu; 'harness qemu list' shows the builds",
            )
        socket = {"type": "unix", "path": sockets[device.name]}
        patience = {"x-msg-timeout": _PATIENCE} if "x-msg-timeout" in properties[_VFIO_USER] else {}
        return _device({"driver": _VFIO_USER, "id": device.name, **where, **patience, "socket": socket})
    wanted = "sriov_max_vfs" if device.vfs else "max_ioqpairs"
    if wanted not in properties.get("nvme", frozenset()):
        raise ConfigurationError(
            f"this QEMU build has no nvme with the property {wanted}",
            hint="choose another build with --qemu; 'harness qemu list' shows them",
        )
    # No name of a scenario has a dot.
    subsystem, data = f"{device.name}.subsystem", f"{device.name}.data"
    file = {"driver": "file", "node-name": data, "filename": f"{_FDSET}{number}", "locking": "off"}
    controller = {"driver": "nvme", "id": device.name, **where, "serial": device.name, "subsys": subsystem}
    return [
        *("-add-fd", f"fd={disks[device.name]},set={number}", "-blockdev", json.dumps(file)),
        *_device({"driver": "nvme-subsys", "id": subsystem}),
        *_device({**controller, **_sriov(device.vfs)}),
        # All controllers of the subsystem have it: the PF and each VF.
        *_device({"driver": "nvme-ns", "bus": device.name, "drive": data, "nsid": 1, "shared": True}),
    ]


def can_serve(properties: Mapping[str, frozenset[str]]) -> bool:
    """Whether a build, by its devices' properties, takes devices that a process beside it serves."""
    return "socket" in properties.get(_VFIO_USER, frozenset())


def filler_arguments(spec: MachineSpec) -> list[str]:
    """The arguments for what must be beside devices at functions other than 0.

    A function is looked for where function 0 of its slot is. So a slot that has no device there gets one that does
    nothing.
    """
    arguments: list[str] = []
    there = {device.bdf for device in spec.devices if device.model != "vf"}
    there.add(_ISA_BRIDGE)
    for bus, slot in sorted({(bus, slot) for bus, slot, function in there if function}):
        if (bus, slot, 0) not in there:
            filler = {"driver": "pci-testdev", "id": f"filler.{bus:02x}.{slot:02x}"}
            arguments += _device({**filler, **_place((bus, slot, 0), spec)})
    return arguments


def _place(bdf: tuple[int, int, int], spec: MachineSpec) -> dict[str, object]:
    bus, slot, function = bdf
    parent = f"port{spec.port_of[bus]}" if bus else "pcie.0"
    where: dict[str, object] = {"bus": parent, "addr": f"{slot:x}.{function:x}"}
    slots = [device.bdf[:2] for device in spec.devices if device.model != "vf" and device.bdf[2]]
    if (bus, slot) in slots:
        # QEMU wants it of function 0 only. But Linux gives a function that it finds later, as in a clone, a group of
        # its own unless the function itself says that it has neighbours; one that it finds at boot it knows better.
        where["multifunction"] = True
    return where


def _device(properties: dict[str, object]) -> list[str]:
    return ["-device", json.dumps(properties)]


def _sriov(vfs: int) -> dict[str, object]:
    """The properties of an nvme with VFs.

    Each VF can have an interrupt and two queue pairs (admin and I/O), and the PF keeps two pairs and an interrupt of
    its own (QEMU, docs/system/devices/nvme.rst).
    """
    if not vfs:
        return {}
    queues = 2 * vfs
    return {
        "sriov_max_vfs": vfs,
        "sriov_vq_flexible": queues,
        "sriov_vi_flexible": vfs,
        "max_ioqpairs": queues + 2,
        "msix_qsize": vfs + 1,
    }


def make_disks(devices: Iterable[DeviceSpec]) -> dict[str, int]:
    """Name of each nvme to a new descriptor of its namespace's memory, all zeros; the caller closes them.

    Raises:
        InfrastructureError: the host gives none.
    """
    disks: dict[str, int] = {}
    try:
        for device in devices:
            if device.model == "nvme":
                disks[device.name] = os.memfd_create(f"nvme-{device.name}", os.MFD_CLOEXEC)
                os.ftruncate(disks[device.name], NAMESPACE_BYTES)
    except OSError as error:
        for fd in disks.values():
            os.close(fd)
        raise InfrastructureError(f"no memory for a namespace: {os.strerror(error.errno or 0)}") from error
    return disks


def without_descriptors(argv: list[str]) -> list[str]:
    """The same arguments for a QEMU that is given no descriptors.

    What is written to a namespace there is lost, and devices whose model is a process beside QEMU are left out.
    """
    out: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "-add-fd":
            next(words)
        elif _is_served(word):
            out.pop()  # its -device: nobody serves it there
        elif word.startswith("{") and _FDSET in word:
            node = json.loads(word)["node-name"]
            out.append(
                json.dumps({"driver": "null-co", "node-name": node, "size": NAMESPACE_BYTES, "read-zeroes": True})
            )
        else:
            out.append(word)
    return out


def served_names(argv: Iterable[str]) -> list[str]:
    """The names of the devices that a process beside QEMU serves, in the order of QEMU's arguments."""
    return [str(json.loads(word)["id"]) for word in argv if _is_served(word)]


def _is_served(word: str) -> bool:
    return word.startswith(f'{{"driver": "{_VFIO_USER}"')
