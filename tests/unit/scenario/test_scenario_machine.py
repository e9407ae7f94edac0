"""Mistakes in the machine of a scenario."""

from __future__ import annotations

import pytest
from scenario_said import HEAD, said


def machine(value: str) -> list[str]:
    """What is said about a machine; its value begins at 1:10."""
    return said(f"machine: {value}\ntitle: t\nsource: s\nsteps: [{{buffer: {{as: a, size: 1}}}}]\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none", "1:10 expected a mapping, found 'none'"),
        ("{iommu: amd}", "1:18 expected intel, virtio or none, found 'amd'"),
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
        ("{devices: {edu0: {}}}", None),
        ("{devices: {a: {model: nvme, at: 02:00.0}}}", "1:32 expected edu, found 'nvme'"),
        ("{devices: {a: {model: edu, at: 2}}}", "1:41 expected a PCI address (bus:device.function), found 2"),
        ("{devices: {a: {model: edu, at: 02:00}}}", "1:41 expected a PCI address (bus:device.function), found '02:00'"),
        ("{devices: {a: {model: edu, at: 09:00.0}}}",
         "1:41 expected a PCI address where a device can be, found '09:00.0'"),
        ("{devices: {a: {model: edu, at: 02:01.0}}}",
         "1:41 expected a PCI address where a device can be, found '02:01.0'"),
        ("{devices: {a: {model: edu, at: 02:00.1}}}",
         "1:41 expected a PCI address where a device can be, found '02:00.1'"),
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
def test_machine(value: str, message: str | None) -> None:
    found = machine(value)
    if message is None:
        assert found == ["1:21 expected 'at' in 'edu0', found none", "1:21 expected 'model' in 'edu0', found none"]
    else:
        assert found == [message]


def test_a_broken_machine_does_not_hide_its_devices() -> None:
    text = HEAD.replace("02:00.0", "02:00") + "steps: [{open: {device: edu0}}]\n"
    assert said(text) == ["3:44 expected a PCI address (bus:device.function), found '02:00'"]
