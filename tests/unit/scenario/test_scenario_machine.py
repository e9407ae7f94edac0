"""Mistakes in the machine of a scenario."""

from __future__ import annotations

import pytest
from scenario_said import HEAD, said

from harness.machine.devices import NAMESPACE_BYTES
from harness.scenario import parse_scenario
from harness.scenario.engines import NVME_BYTES
from harness.scenario.machine import Device, Machine


def machine(value: str) -> list[str]:
    """What is said about a machine; its value begins at 1:10."""
    return said(f"machine: {value}\ntitle: t\nsource: s\nsteps: [{{buffer: {{as: a, size: 1}}}}]\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none", "1:10 expected a mapping, found 'none'"),
        ("{iommu: arm}", "1:18 expected intel, virtio, amd or none, found 'arm'"),
        ("{aw_bits: 40}", "1:20 expected 36, 39 or 48, found 40"),
        ('{aw_bits: "39"}', "1:20 expected 36, 39 or 48, found '39'"),
        ("{memory: 100M}", "1:19 expected a memory size from 128M to 64G in whole MiB, found 104857600"),
        ("{memory: 512m}", "1:19 expected a size, found '512m'"),
        ("{cpus: 0}", "1:17 expected a number of at least 1, found 0"),
        ("{cpus: 65}", "1:17 expected a number of at most 64, found 65"),
        ("{cpus: true}", "1:17 expected an integer, found true"),
        ('{cpus: "2"}', "1:17 expected an integer, found '2'"),
        ("{kernel_args: quiet}", "1:24 expected a list, found 'quiet'"),
        ("{kernel_args: [a, b c]}", "1:28 expected one word of the kernel's command line, found 'b c'"),
        ("{devices: [edu0]}", "1:20 expected a mapping, found a list"),
        ("{devices: {edu0: {}}}", "1:21 expected 'model' in 'edu0', found none"),
        ("{devices: {edu0: {model: edu}}}", "1:27 expected an address, found none"),
        ("{devices: {a: {model: igb, at: 02:00.0}}}", "1:32 expected edu, nvme, vf, qat or qat_vf, found 'igb'"),
        ("{devices: {a: {model: nvme, at: 00:05.0}}}",
         "1:24 expected an nvme behind a root port, at bb:00.0, found '00:05.0'"),
        ("{devices: {a: {model: nvme, at: 02:01.2}}}",
         "1:24 expected an nvme behind a root port, at bb:00.0, found '02:01.2'"),
        ("{devices: {a: {model: nvme, at: 02:00.0, vfs: 128}}}", "1:56 expected a number of at most 127, found 128"),
        ("{devices: {a: {model: edu, at: 02:00.0, vfs: 1}}}",
         "1:24 expected VFs of an nvme only, found vfs beside model: edu"),
        ("{devices: {a: {model: edu, at: 02:00.0, of: b}}}",
         "1:24 expected of and number for a vf only, found model: edu"),
        ("{devices: {a: {model: vf, of: b}}}",
         "1:24 expected of and number, and nothing else, for a vf, found other keys"),
        ("{devices: {a: {model: edu, at: 09:00.0, slot: true}}}",
         "1:24 expected a slot that has the device for itself, found '09:00.0'"),
        ("{devices: {a: {model: nvme, at: 02:00.0, vfs: 2, slot: true}}}",
         "1:24 expected a slot that has the device for itself, found '02:00.0'"),
        ("{devices: {a: {model: vf, of: b, number: 1, slot: true}}}",
         "1:24 expected of and number, and nothing else, for a vf, found other keys"),
        ("{devices: {a: {model: vf, of: b, number: 1}}}", "1:40 expected a PF with VFs, found 'b'"),
        ("{devices: {a: {model: vf, of: b, number: 1}, b: {model: nvme, at: 02:00.0}}}",
         "1:40 expected a PF with VFs, found 'b'"),
        ("{devices: {a: {model: vf, of: b, number: 5}, b: {model: nvme, at: 02:00.0, vfs: 4}}}",
         "1:51 expected a number from 1 to 4, found 5"),
        ("{devices: {b: {model: nvme, at: 02:00.0, vfs: 4}, a: {model: vf, of: b, number: 4},"
         " c: {model: vf, of: b, number: 4}}}",
         "1:124 expected an address of its own, found 02:00.4, which is 'a'"),
        ("{devices: {a: {model: edu, at: 2}}}", "1:41 expected a PCI address (bus:device.function), found 2"),
        ("{devices: {a: {model: edu, at: 02:00}}}", "1:41 expected a PCI address (bus:device.function), found '02:00'"),
        ("{devices: {a: {model: edu, at: ff:00.0}}}",
         "1:41 expected a PCI address where a device can be, found 'ff:00.0'"),
        ("{devices: {a: {model: edu, at: 00:00.1}}}",
         "1:41 expected a PCI address where a device can be, found '00:00.1'"),
        ("{iommu: amd, devices: {a: {model: edu, at: 09:00.0}}}",
         "1:10 expected buses 00 to 08 with iommu: amd, found bus 09"),
        ("{iommu: amd, aw_bits: 39}", "1:10 expected aw_bits 48, found 39"),
        ("{devices: {a: {model: edu, at: 00:1f.0}}}",
         "1:41 expected a PCI address where a device can be, found '00:1f.0'"),
        ("{devices: {a-b: {model: edu, at: 02:00.0}}}", "1:21 expected a name, found 'a-b'"),
        ("{devices: {port1: {model: edu, at: 02:00.0}}}", "1:21 expected another name, found 'port1'"),
        (
            "{devices: {a: {model: edu, at: 02:00.0}, b: {model: edu, at: 02:00.0}}}",
            "1:71 expected an address of its own, found 02:00.0, which is 'a'",
        ),
        ("{iomu: intel}", "1:11 expected a known key in 'machine', found 'iomu'"),
    ],
)  # fmt: skip
def test_machine(value: str, message: str) -> None:
    assert machine(value) == [message]


@pytest.mark.parametrize(
    ("number", "address"), [(1, "02:00.1"), (7, "02:00.7"), (8, "02:01.0"), (10, "02:01.2"), (127, "02:0f.7")]
)
def test_a_vfs_number_says_where_it_is(number: int, address: str) -> None:
    pf, vf = Device(model="nvme", at="02:00.0", vfs=127), Device(model="vf", of="pf", number=number)
    assert Machine(devices={"pf": pf, "vf": vf}).addresses == {"pf": "02:00.0", "vf": address}


NVME = """\
title: t
source: s
machine: {devices: {e: {model: edu, at: "01:00.0"}, x: {model: nvme, at: "02:00.0", vfs: 1}, v: {model: vf, of: x, number: 1}}}
steps:
  - open: {device: x}
  - open: {device: v}
  - buffer: {as: b, size: 1M}
  - map: {buffer: b, size: 1M}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("dma_read: {device: x, buffer: b, size: 100}",
         "9:44 expected a DMA size from 512 to 512K in whole sectors, found 100"),
        ("dma_read: {device: v, buffer: b, size: 0}",
         "9:44 expected a DMA size from 512 to 512K in whole sectors, found 0"),
        ("dma_write: {device: v, buffer: b, size: 513K}",
         "9:45 expected a DMA size from 512 to 512K in whole sectors, found 525312"),
        ("dma_read: {device: x, buffer: b, size: 512, device_offset: 100}",
         "9:64 expected a device_offset at a sector, a multiple of 512, found 100"),
        ("dma_read: {device: x, buffer: b, size: 4K, device_offset: 16M}",
         "9:63 expected device_offset + size of at most 16777216, found 16777216 + 4096 = 16781312"),
        ("dma_read: {device: x, iova: 0x1002, size: 4K}",
         "9:33 expected an IOVA that is a multiple of 4, found 0x1002"),
        ("dma_read: {device: x, buffer: b, offset: -2, size: 4K}",
         "9:46 expected an offset that is a multiple of 4, found -2"),
        ("fork: {steps: [{dma_read: {device: x, buffer: b, size: 1}}]}",
         "9:60 expected a DMA size from 512 to 512K in whole sectors, found 1"),
    ],
)  # fmt: skip
def test_a_dma_that_an_nvme_cannot_do(step: str, message: str) -> None:
    assert said(f"{NVME}  - {step}\n") == [message]


@pytest.mark.parametrize(("device", "size"), [("x", 512), ("v", 512 << 10)])
def test_a_dma_that_an_nvme_can_do(device: str, size: int) -> None:
    offset = NVME_BYTES - size
    text = f"{NVME}  - dma_write: {{device: {device}, buffer: b, offset: -4, size: {size}, device_offset: {offset}}}\n"
    assert parse_scenario(text, "x.yaml").steps


@pytest.mark.parametrize("address", ["01:00.0", "3d:00.0", "fe:1f.7", "3d:01.2", "00:01.0", "00:1e.7", "00:1f.3"])
def test_where_an_edu_can_be(address: str) -> None:
    assert Machine(devices={"a": Device(model="edu", at=address)}).addresses == {"a": address}


def test_a_vf_is_on_its_pfs_bus() -> None:
    pf, vf = Device(model="nvme", at="3d:00.0", vfs=16), Device(model="vf", of="pf", number=10)
    assert Machine(devices={"pf": pf, "vf": vf}).addresses["vf"] == "3d:01.2"


def test_devices_in_seventeen_slots_of_bus_0_are_too_many() -> None:
    text = ", ".join(f"e{slot}: {{model: edu, at: '00:{slot:02x}.0'}}" for slot in range(1, 18))
    assert machine(f"{{devices: {{{text}}}}}") == ["1:10 expected devices in at most 16 slots of bus 00, found 17"]


def test_devices_on_nine_buses_are_too_many() -> None:
    text = ", ".join(f"e{bus}: {{model: edu, at: '{bus:02x}:00.0'}}" for bus in range(0x3A, 0x43))
    assert machine(f"{{devices: {{{text}}}}}") == ["1:10 expected devices on at most 8 buses, found 9"]


REASONS = """\
title: t
source: s
machine: {iommu: %s, devices: {edu0: {model: edu, at: "02:00.0"}}}
steps:
  - open: {device: edu0}
expect:
  faults:
    - {device: edu0, access: read, address: 1, reason: %s}
"""


@pytest.mark.parametrize(
    ("iommu", "reason", "message"),
    [
        ("virtio", "6", "8:56 expected a reason of iommu: virtio (unknown or domain or mapping), found 0x06"),
        ("virtio", "io_page_fault",
         "8:56 expected a reason of iommu: virtio (unknown or domain or mapping), found 'io_page_fault'"),
        ("amd", "6", "8:56 expected a reason of iommu: amd (io_page_fault), found 0x06"),
        ("intel", "mapping", "8:56 expected a reason of iommu: intel (a number), found 'mapping'"),
        ("none", "6", "8:56 expected no fault of a machine without a vIOMMU, found one"),
        ("virtio", "maping", "8:56 expected a fault reason, found 'maping'"),
        ("intel", "0", "8:56 expected a fault reason, found 0"),
        ("intel", "256", "8:56 expected a fault reason, found 256"),
        ("intel", "true", "8:56 expected a fault reason, found true"),
    ],
)  # fmt: skip
def test_a_reason_is_one_of_the_machines_iommu(iommu: str, reason: str, message: str) -> None:
    assert said(REASONS % (iommu, reason)) == [message]


@pytest.mark.parametrize(
    ("iommu", "reason", "code"),
    [
        ("intel", "0x71", 0x71),
        *(("virtio", "unknown", 0), ("virtio", "domain", 1), ("virtio", "mapping", 2)),
        ("amd", "io_page_fault", 2),
    ],
)
def test_a_reason_has_a_code_and_says_whose_it_is(iommu: str, reason: str, code: int) -> None:
    (fault,) = parse_scenario(REASONS % (iommu, reason), "x.yaml").expect.faults
    assert (fault.vendor, fault.code) == (iommu, code)


def test_a_namespace_is_as_large_as_qemus() -> None:
    assert NVME_BYTES == NAMESPACE_BYTES


def test_a_broken_machine_does_not_hide_its_devices() -> None:
    text = HEAD.replace("02:00.0", "02:00") + "steps: [{open: {device: edu0}}]\n"
    assert said(text) == ["3:44 expected a PCI address (bus:device.function), found '02:00'"]
