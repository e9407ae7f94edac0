"""Topology to command line."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.machine.argv import (
    CONTROL_DEVICE,
    CONTROL_PORT,
    SSH_DEVICE,
    SSH_PORT,
    Boot,
    Ram,
    Wiring,
    build_argv,
    kernel_command_line,
    pasteable,
)
from harness.machine.devices import NAMESPACE_BYTES, make_disks
from harness.machine.spec import DeviceSpec, MachineSpec

PROPERTIES = {"intel-iommu": frozenset({"intremap", "caching-mode", "aw-bits"})}


def argv(
    spec: MachineSpec,
    *,
    accelerator: str = "tcg",
    sandbox: bool = True,
    properties=PROPERTIES,
    disks=None,
    sockets=None,
    **more,
) -> list[str]:
    return build_argv(
        spec,
        Boot(Path("/k/vmlinux"), Path("/k/initrd.img"), "key"),
        Wiring(10, 11, 12, Path("/r,1/console.log"), Path("/r,1/qemu.log"), disks=disks or {}, sockets=sockets or {}),
        machine_type="pc-q35-11.1",
        accelerator=accelerator,
        sandbox=sandbox,
        properties=properties,
        **more,
    )


def devices(words: list[str]) -> list[dict[str, object]]:
    found = [words[index + 1] for index, word in enumerate(words) if word == "-device"]
    return [json.loads(text) for text in found if text.startswith("{")]


def test_a_device_is_behind_the_root_port_of_its_bus_and_has_the_whole_mask():
    found = devices(argv(MachineSpec(devices=(DeviceSpec("edu0", "edu", "02:00.0"),))))
    ports = [device for device in found if device["driver"] == "pcie-root-port"]
    (edu,) = [device for device in found if device["driver"] == "edu"]
    assert [port["addr"] for port in ports] == ["10.0", "11.0", "12.0", "13.0"]
    # An empty slot's power would be off in a template, and a clone's device invisible.
    assert {(port["hotplug"], port["power_controller_present"]) for port in ports} == {(False, False)}
    assert (edu["bus"], edu["addr"], edu["dma_mask"]) == ("port2", "0.0", 2**64 - 1)


@pytest.mark.parametrize("buses", [1, 4, 8])
def test_each_bus_has_a_port_of_its_own(buses: int):
    """Where a port is does not depend on how many there are: templates of one width look alike to their clones."""
    ports = [one for one in devices(argv(MachineSpec(buses=buses))) if one["driver"] == "pcie-root-port"]
    assert [port["id"] for port in ports] == [f"port{bus}" for bus in range(1, buses + 1)]
    assert [port["addr"] for port in ports] == [f"{0x0F + bus:x}.0" for bus in range(1, buses + 1)]
    assert {port["bus"] for port in ports} == {"pcie.0"}
    assert len({port["chassis"] for port in ports}) == len({port["slot"] for port in ports}) == buses


def test_devices_on_the_last_bus_and_on_bus_0():
    found = devices(
        argv(MachineSpec(buses=8, devices=(DeviceSpec("a", "edu", "08:1f.7"), DeviceSpec("b", "edu", "00:05.0"))))
    )
    assert [(one["id"], one["bus"], one["addr"]) for one in found[-2:]] == [
        ("a", "port8", "1f.7"),
        ("b", "pcie.0", "5.0"),
    ]


NVME = {**PROPERTIES, "nvme": frozenset({"max_ioqpairs", "sriov_max_vfs"})}
WITH_VFS = MachineSpec(
    devices=(
        DeviceSpec("edu0", "edu", "01:00.0"),
        DeviceSpec("pf", "nvme", "02:00.0", vfs=16),
        DeviceSpec("vf10", "vf", "02:01.2", of="pf"),
        DeviceSpec("plain", "nvme", "03:00.0"),
    )
)
DISKS = {"pf": 20, "plain": 21}


def test_an_nvme_has_a_subsystem_a_namespace_and_memory_of_its_own():
    words = argv(WITH_VFS, properties=NVME, disks=DISKS)
    found = {str(one.get("id", one["driver"])): one for one in devices(words)}
    pf, plain = found["pf"], found["plain"]
    assert (pf["bus"], pf["addr"], pf["subsys"]) == ("port2", "0.0", "pf.subsystem")
    assert found["pf.subsystem"]["driver"] == "nvme-subsys"
    # The rules of QEMU: twice as many queues as VFs, an interrupt each, and something left for the PF.
    assert {name: value for name, value in pf.items() if "sriov" in name} == {
        "sriov_max_vfs": 16,
        "sriov_vq_flexible": 32,
        "sriov_vi_flexible": 16,
    }
    assert (pf["max_ioqpairs"], pf["msix_qsize"]) == (34, 17)
    assert not any("sriov" in name for name in plain)
    namespaces = [one for one in devices(words) if one["driver"] == "nvme-ns"]
    assert [(one["bus"], one["drive"], one["nsid"], one["shared"]) for one in namespaces] == [
        ("pf", "pf.data", 1, True),
        ("plain", "plain.data", 1, True),
    ]
    sets = [words[at + 1] for at, word in enumerate(words) if word == "-add-fd"]
    assert sets == ["fd=20,set=1", "fd=21,set=3"]
    blocks = [json.loads(words[at + 1]) for at, word in enumerate(words) if word == "-blockdev"]
    assert [(one["node-name"], one["filename"]) for one in blocks] == [
        ("pf.data", "/dev/fdset/1"),
        ("plain.data", "/dev/fdset/3"),
    ]


def test_a_vf_is_no_device_of_the_command_line():
    assert "vf10" not in " ".join(argv(WITH_VFS, properties=NVME, disks=DISKS))


def test_a_template_has_no_nvme():
    assert argv(WITH_VFS.frozen) == argv(MachineSpec())


@pytest.mark.parametrize("properties", [frozenset[str](), frozenset({"max_ioqpairs"})])
def test_a_build_without_sriov_is_refused(properties: frozenset[str]):
    with pytest.raises(ConfigurationError, match="no nvme with the property"):
        argv(WITH_VFS, properties={**PROPERTIES, "nvme": properties}, disks=DISKS)


SERVED = MachineSpec(
    devices=(
        DeviceSpec("pf", "qat", "02:00.0"),
        DeviceSpec("vf", "qat_vf", "02:00.1"),
        DeviceSpec("alone", "qat_vf", "03:02.5"),
        DeviceSpec("edu0", "edu", "01:00.0"),
    )
)
SERVES = {**PROPERTIES, "vfio-user-pci": frozenset({"socket"})}
SOCKETS = {"pf": "/d/pf", "vf": "/d/vf", "alone": "/d/alone"}


def test_a_served_device_is_told_its_socket_and_the_iommu_comes_first():
    found = devices(argv(SERVED, properties=SERVES, sockets=SOCKETS))
    served = [one for one in found if one["driver"] == "vfio-user-pci"]
    assert found[0]["driver"] == "intel-iommu"
    assert found[0]["caching-mode"] is True  # without it QEMU ends when the guest switches translation on
    places = [(one["id"], one["bus"], one["addr"], one.get("multifunction", False)) for one in served]
    assert places == [
        ("pf", "port2", "0.0", True),
        ("vf", "port2", "0.1", True),
        ("alone", "port3", "2.5", True),
    ]
    assert [one["socket"] for one in served] == [{"type": "unix", "path": SOCKETS[str(one["id"])]} for one in served]
    assert [one["id"] for one in found if one["driver"] == "pci-testdev"] == ["filler.03.02"]


def test_a_build_without_vfio_user_is_refused():
    with pytest.raises(ConfigurationError, match="no vfio-user-pci, which model: qat needs"):
        argv(SERVED, sockets=SOCKETS)


def test_the_script_leaves_served_devices_out_and_says_so():
    words = argv(SERVED, properties=SERVES, sockets=SOCKETS)
    script = pasteable(["qemu", *words], {})
    assert "# Left out, because nobody serves them here: pf, vf, alone.\n# 'python -m harness.device " in script
    assert "vfio-user-pci" not in script
    left = [json.loads(word) for word in shlex.split(script, comments=True) if word.startswith('{"driver": "edu"')]
    assert [one["id"] for one in left] == ["edu0"]
    assert shlex.split(script, comments=True).count("-device") == words.count("-device") - 3
    assert "Left out" not in pasteable(argv(MachineSpec()), {})


def test_each_namespace_has_memory_of_its_own():
    disks = make_disks(WITH_VFS.devices)
    try:
        assert set(disks) == {"pf", "plain"}
        assert {os.fstat(fd).st_size for fd in disks.values()} == {NAMESPACE_BYTES}
        os.pwrite(disks["pf"], b"x", 0)
        assert os.pread(disks["plain"], 1, 0) == b"\0"
    finally:
        for fd in disks.values():
            os.close(fd)


def test_a_host_without_memory_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch):
    closed = []
    monkeypatch.setattr(os, "memfd_create", lambda name, flags: 99)
    monkeypatch.setattr(os, "close", closed.append)

    def full(fd: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(InfrastructureError, match="No space left"):
        make_disks(WITH_VFS.devices)
    assert closed == [99]


def test_control_and_ssh_have_a_port_each():
    words = argv(MachineSpec())
    ports = [
        dict(part.partition("=")[::2] for part in word.split(",")[1:])
        for word in words
        if word.startswith("virtserialport")
    ]
    assert ports == [
        {"id": CONTROL_DEVICE, "chardev": "control", "name": CONTROL_PORT, "nr": "1"},
        {"id": SSH_DEVICE, "chardev": "ssh", "name": SSH_PORT, "nr": "2"},
    ]
    for chardev in ("socket,id=qmp,fd=10", "socket,id=control,fd=11", "socket,id=ssh,fd=12"):
        assert words[words.index(chardev) - 1] == "-chardev"


def test_the_viommu_comes_first_with_its_width_written_out():
    found = devices(argv(MachineSpec(aw_bits=39, devices=(DeviceSpec("edu0", "edu", "00:05.0"),))))
    assert found[0] == {"driver": "intel-iommu", "intremap": "on", "caching-mode": True, "aw-bits": 39}
    assert found[1]["bus"] == "pcie.0"
    assert "intel_iommu=on" in kernel_command_line(MachineSpec())


@pytest.mark.parametrize("name", ["scalable-mode", "x-scalable-mode"])
def test_scalable_mode_has_the_name_that_the_build_gives_it(name: str):
    spec = MachineSpec(scalable=True)
    words = argv(spec, properties={"intel-iommu": PROPERTIES["intel-iommu"] | {name}})
    assert devices(words)[0][name] is True
    assert "intel_iommu=on,sm_on" in kernel_command_line(spec).split()
    with pytest.raises(ConfigurationError, match="lacks the properties scalable-mode"):
        argv(spec)


def test_vfio_and_iommufd_are_told_that_virtio_iommu_remaps_no_interrupts():
    words = ["vfio_iommu_type1.allow_unsafe_interrupts=1", "iommufd.allow_unsafe_interrupts=1"]
    assert set(words) <= set(kernel_command_line(MachineSpec(iommu="virtio")).split())
    assert "unsafe" not in kernel_command_line(MachineSpec())


def test_without_it_the_command_lines_are_what_they_were():
    assert "scalable" not in " ".join(argv(MachineSpec()))
    assert "intel_iommu=on" in kernel_command_line(MachineSpec()).split()


def test_a_machine_without_viommu_has_none_and_does_not_ask_the_kernel_for_it():
    spec = MachineSpec(iommu="none")
    assert not any("intel-iommu" in word for word in argv(spec))
    assert "intel_iommu" not in kernel_command_line(spec)


def test_a_build_that_lacks_a_property_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="caching-mode"):
        argv(MachineSpec(), properties={"intel-iommu": frozenset({"intremap", "aw-bits"})})


def test_ram_can_lie_in_a_file_shared_or_private():
    file = Path("/c,1/ram")
    for private, share in ((False, "off"), (True, "on")):
        words = argv(MachineSpec(), ram=Ram(file, private=not private))
        (backend,) = [word for word in words if word.startswith("memory-backend-file")]
        assert backend == f"memory-backend-file,id=ram0,size={512 << 20},mem-path=/c,,1/ram,share={share}"
        assert words[words.index("-machine") + 1].endswith(",memory-backend=ram0")
    assert "memory-backend" not in " ".join(argv(MachineSpec()))


def test_a_clone_waits_for_its_state():
    words = argv(MachineSpec(), incoming=True)
    assert words[words.index("-incoming") + 1] == "defer"
    assert "-S" in words
    assert not {"-S", "-incoming"} & set(argv(MachineSpec()))


def test_more_buses_than_ports_are_refused():
    many = tuple(DeviceSpec(f"edu{bus}", "edu", f"{bus:02x}:00.0") for bus in (1, 2, 0x3D))
    with pytest.raises(ConfigurationError, match="devices on 3 buses and a machine with 2 root ports"):
        argv(MachineSpec(devices=many, buses=2))
    assert argv(MachineSpec(devices=many, buses=3))
    with pytest.raises(ConfigurationError, match="at most 8"):
        argv(MachineSpec(buses=9))


def test_a_frozen_machine_has_only_the_devices_of_bus_0():
    inside, behind = DeviceSpec("a", "edu", "00:05.0"), DeviceSpec("b", "edu", "02:00.0")
    spec = MachineSpec(devices=(inside, behind))
    assert spec.frozen == MachineSpec(devices=(DeviceSpec("at.00.05.0", "edu", "00:05.0"),))
    assert spec.fixed_devices == (inside,)


@pytest.mark.parametrize("text", ["2:00.0", "02:00.8", "02:00", "gg:00.0", ""])
def test_an_address_that_is_none_is_refused(text: str):
    with pytest.raises(ValueError, match="no PCI address"):
        DeviceSpec("edu0", "edu", text).bdf  # noqa: B018


def test_nothing_leads_out_of_the_guest():
    words = argv(MachineSpec())
    assert "-nodefaults" in words
    assert not any("netdev" in word or "hostfwd" in word or "tcp:" in word or "-nic" in word for word in words)
    assert words[words.index("-sandbox") + 1].startswith("on,")
    assert "-sandbox" not in argv(MachineSpec(), sandbox=False)


def test_kvm_gets_a_split_irqchip_for_interrupt_remapping():
    assert any("kernel-irqchip=split" in word for word in argv(MachineSpec(), accelerator="kvm"))
    assert not any("kernel-irqchip" in word for word in argv(MachineSpec()))


def test_a_comma_in_a_path_is_escaped():
    assert "file,id=console,path=/r,,1/console.log" in argv(MachineSpec())


def test_the_script_needs_nothing_of_the_harness():
    script = pasteable(["qemu", *argv(MachineSpec())], {"QEMU_MODULE_DIR": "/a b"})
    words = shlex.split(script.split("exec env", 1)[1].replace("\\\n", " "))
    assert words[0] == "QEMU_MODULE_DIR=/a b"
    assert not any("fd=" in word for word in words)
    assert "stdio,id=console,signal=off" in words
    assert "-D" not in words
    assert words[words.index("-append") + 1].endswith(" harness.shell")


def test_the_script_of_a_machine_with_an_nvme_has_an_empty_namespace():
    script = pasteable(["qemu", *argv(WITH_VFS, properties=NVME, disks=DISKS)], {})
    words = shlex.split(script.split("exec env", 1)[1].replace("\\\n", " "))
    assert not any("fd=" in word or "fdset" in word for word in words)
    blocks = [json.loads(words[at + 1]) for at, word in enumerate(words) if word == "-blockdev"]
    assert [(one["driver"], one["node-name"], one["size"]) for one in blocks] == [
        ("null-co", "pf.data", NAMESPACE_BYTES),
        ("null-co", "plain.data", NAMESPACE_BYTES),
    ]


def test_a_card_that_is_pulled_out_is_in_a_hot_plug_port_and_a_template_has_another_one_there():
    spec = MachineSpec(
        devices=(DeviceSpec("d", "nvme", "02:00.0", vfs=2), DeviceSpec("e", "edu", "03:00.0")), hot_plug=(2,)
    )
    words = argv(spec.frozen)
    ports = {port["id"]: port for port in devices(words) if port["driver"] == "pcie-root-port"}
    assert [name for name, port in ports.items() if port["hotplug"] and port["power_controller_present"]] == ["port2"]
    assert words[words.index("-global") + 1] == "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"
    assert [(one["id"], one["bus"]) for one in devices(words) if one["driver"] == "edu"] == [
        ("at.02.00.0", "port2"),
        ("at.03.00.0", "port3"),
    ]
    assert "-global" not in argv(MachineSpec())
    assert [device.name for device in spec.fixed_devices] == ["d", "e"]
