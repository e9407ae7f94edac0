"""Devices on every bus and at every function; the vIOMMUs beside VT-d on the command line."""

from __future__ import annotations

import json

import pytest
from test_argv import PROPERTIES, argv, devices

from harness.errors import ConfigurationError
from harness.machine.argv import kernel_command_line
from harness.machine.slots import own_slots, port_address
from harness.machine.spec import DeviceSpec, MachineSpec

VIOMMUS = PROPERTIES | {
    "virtio-iommu-pci": frozenset({"aw-bits"}),
    "amd-iommu": frozenset({"intremap", "dma-remap", "pci-id"}),
}


def edus(*places: str, **more: object) -> MachineSpec:
    return MachineSpec(devices=tuple(DeviceSpec(f"e{n}", "edu", at) for n, at in enumerate(places)), **more)  # type: ignore[arg-type]


def placed(spec: MachineSpec) -> dict[str, tuple[object, object]]:
    return {str(one["id"]): (one["bus"], one["addr"]) for one in devices(argv(spec)) if one["driver"] == "edu"}


def test_a_higher_bus_is_behind_a_port_that_no_other_bus_needs() -> None:
    spec = edus("fe:00.0", "01:00.0", "3d:00.0", "03:00.0")
    assert spec.port_of == {1: 1, 3: 3, 0x3D: 2, 0xFE: 4}
    assert spec.renumbered == {2: 0x3D, 4: 0xFE}
    assert placed(spec) == {
        "e0": ("port4", "0.0"),
        "e1": ("port1", "0.0"),
        "e2": ("port2", "0.0"),
        "e3": ("port3", "0.0"),
    }
    assert (port_address(spec, 2), port_address(spec, 8)) == ("00:11.0", "00:17.0")


def test_devices_of_one_bus_are_behind_one_port() -> None:
    spec = edus("3d:00.0", "3d:00.1", "3d:1f.7", "02:00.0")
    assert spec.port_of == {2: 2, 0x3D: 1}
    assert {bus for bus, _ in placed(spec).values()} == {"port1", "port2"}


def test_a_machine_of_low_buses_is_not_renumbered() -> None:
    assert edus("01:00.0", "00:05.0", "04:00.0").renumbered == {}
    assert edus("01:00.0", iommu="virtio").renumbered == {}


def test_virtio_iommus_last_port_reserves_the_buses_and_gives_them_up() -> None:
    """The firmware's table names the buses that it serves, once."""
    ports = [one for one in devices(argv(MachineSpec(iommu="virtio"), properties=VIOMMUS)) if "chassis" in one]
    assert [one.get("bus-reserve") for one in ports] == [None, None, None, 0xFA]
    assert edus("3d:00.0", iommu="virtio").renumbered == {1: 0x3D, 4: 4}
    assert not any("bus-reserve" in one for one in devices(argv(MachineSpec())))


def test_a_function_gets_a_function_0_beside_it() -> None:
    spec = edus("3d:01.2", "3d:02.0", "3d:02.1", "00:05.3", "3d:00.0")
    found = {str(one["id"]): one for one in devices(argv(spec)) if one["driver"] in ("edu", "pci-testdev")}
    assert [(one["id"], one["bus"], one["addr"]) for one in found.values() if one["driver"] == "pci-testdev"] == [
        ("filler.00.05", "pcie.0", "5.0"),
        ("filler.3d.01", "port1", "1.0"),
    ]
    assert {name for name, one in found.items() if one.get("multifunction")} == {*found} - {"e4"}
    assert list(found)[:2] == ["filler.00.05", "filler.3d.01"], "function 0 comes first"
    assert [(one.model, one.at) for one in spec.frozen.devices] == [("edu", "00:05.3")]


def test_the_machines_own_devices_make_room_and_the_ports_stay_in_order() -> None:
    spec = edus("00:10.1", "00:14.0", "00:1d.0", "00:1f.3", "02:00.0")
    slots = own_slots(spec)
    assert [slots[f"port{port}"] for port in range(1, 9)] == [0x11, 0x12, 0x13, 0x15, 0x16, 0x17, 0x1A, 0x1B]
    assert (slots["iommu"], slots["serial"], slots["pvpanic"]) == (0x1C, 0x19, 0x1E)
    assert len(set(slots.values())) == len(slots)
    assert port_address(spec, 2) == "00:12.0"
    words = argv(spec)
    assert "virtio-serial-pci,bus=pcie.0,addr=19.0" in words
    ports = [one["addr"] for one in devices(words) if one["driver"] == "pcie-root-port"]
    assert ports == ["11.0", "12.0", "13.0", "15.0"]
    fillers = [one["addr"] for one in devices(words) if one["driver"] == "pci-testdev"]
    assert fillers == ["10.0"], "1f.0 is the machine's own"
    assert own_slots(spec.frozen) == slots, "a clone finds everything where its template had it"


def test_a_full_bus_0_is_refused() -> None:
    assert len(own_slots(edus(*(f"00:{slot:02x}.0" for slot in range(1, 0x14))))) == 11
    with pytest.raises(ConfigurationError, match="devices in 20 slots of bus 00 leave no room"):
        argv(edus(*(f"00:{slot:02x}.0" for slot in range(1, 0x15))))


def test_the_kernel_looks_everywhere_when_it_must() -> None:
    assert "pci=pcie_scan_all" in kernel_command_line(MachineSpec(any_function=True)).split()
    assert "pci=pcie_scan_all" not in kernel_command_line(MachineSpec())


def viommu(spec: MachineSpec, properties=VIOMMUS) -> list[dict[str, object]]:
    return [
        one for one in devices(argv(spec, properties=properties)) if "iommu" in str(one["driver"]) or "AMD" in str(one)
    ]


def test_amds_iommu_remaps_dma_and_its_function_is_out_of_the_way() -> None:
    function, iommu = viommu(MachineSpec(iommu="amd"))
    assert iommu == {"driver": "amd-iommu", "intremap": "on", "dma-remap": True, "pci-id": function["id"]}
    assert (function["driver"], function["bus"], function["addr"]) == ("AMDVI-PCI", "pcie.0", "1c.0")
    with pytest.raises(ConfigurationError, match="amd-iommu lacks the properties dma-remap"):
        viommu(MachineSpec(iommu="amd"), {"amd-iommu": frozenset({"intremap", "pci-id"})})


def test_virtio_iommu_of_a_build_without_widths_has_its_own() -> None:
    (new,) = viommu(MachineSpec(iommu="virtio"))
    (old,) = viommu(MachineSpec(iommu="virtio"), {"virtio-iommu-pci": frozenset()})
    assert new["aw-bits"] == 48
    assert "aw-bits" not in old
    with pytest.raises(ConfigurationError, match="virtio-iommu-pci lacks the properties aw-bits"):
        viommu(MachineSpec(iommu="virtio", aw_bits=39), {"virtio-iommu-pci": frozenset()})


@pytest.mark.parametrize(
    ("iommu", "events"),
    [
        ("intel", ["vtd_dmar_fault"]),
        ("virtio", ["virtio_iommu_report_fault", "virtio_iommu_translate"]),
        ("amd", ["amdvi_page_fault", "amdvi_translation_result"]),
    ],
)
def test_the_trace_has_what_tells_of_faults(iommu: str, events: list[str]) -> None:
    words = argv(MachineSpec(iommu=iommu), properties=VIOMMUS)  # type: ignore[arg-type]
    assert [words[at + 1] for at, word in enumerate(words) if word == "-trace"] == events


def test_the_key_of_a_template_says_nothing_of_the_bus() -> None:
    assert json.dumps(argv(edus("3d:00.0").frozen)) == json.dumps(argv(edus("02:00.0").frozen))
