"""From a fault record to a scenario, without a guest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.fault import parse_kernel_log
from harness.fault.pci import Requester
from harness.repro.kinds import State, Tier
from harness.repro.line import line_pattern, linux_line
from harness.repro.place import NotReproducible, place
from harness.repro.plan import Plan, plan
from harness.repro.recipes import RECIPES
from harness.results import FaultRecord, Vendor
from harness.scenario.bare import BareScenario
from harness.scenario.load import parse_scenario
from harness.scenario.model import Scenario

SEED = "DMAR:[DMA Read] Request device [02:01.2] fault addr 900000 DMAR:[fault reason 06] PTE Read access is not set"


def at(requester: str) -> Requester:
    found = Requester.parse(requester)
    assert found is not None
    return found


def made(line: str, state: State = State.NEVER_MAPPED) -> Plan:
    (record,) = parse_kernel_log(line).records
    return plan(record, line, state)


def scenario(line: str, state: State = State.NEVER_MAPPED) -> Scenario:
    found = parse_scenario(made(line, state).text, Path("again.yaml"))
    assert isinstance(found, Scenario)
    return found


def read(requester: str = "02:00.0", address: int = 0x900000, reason: int = 0x06, access: str = "Read") -> str:
    return f"DMAR: [DMA {access}] Request device [{requester}] fault addr {address:x} [fault reason {reason:#04x}]"


def test_the_seeds_line_is_vf_10_of_02_00_0():
    found = scenario(SEED)
    assert found.machine.addresses == {"pf": "02:00.0", "dut": "02:01.2"}
    assert [step.kind for step in found.steps] == [
        *("open", "bus_master", "enable_vfs", "register", "bus_master", "dma_read")
    ]
    (fault,) = found.expect.faults
    assert (fault.requester, fault.access, fault.address, fault.reason) == ("02:01.2", "read", 0x900000, 6)
    assert SEED in found.source


@pytest.mark.parametrize(
    ("requester", "models"),
    [
        ("02:00.0", ["edu"]),
        ("00:03.0", ["edu"]),
        ("00:02.1", ["edu"]),
        ("00:1f.3", ["edu"]),
        ("08:00.1", ["nvme", "vf"]),
        ("fe:0f.7", ["nvme", "vf"]),
        ("02:10.0", ["edu"]),
        ("e8:1f.7", ["edu"]),
    ],
)
def test_a_function_is_at_the_lines_address(requester: str, models: list[str]):
    found = scenario(read(requester))
    assert found.machine.addresses["dut"] == requester
    assert [device.model for device in found.machine.devices.values()] == models


@pytest.mark.parametrize(
    ("requester", "why"),
    [
        ("00:00.0", "chipset"),
        ("00:1f.0", "chipset"),
        ("ff:00.0", "chipset"),
    ],
)
def test_where_no_function_can_be_is_told(requester: str, why: str):
    with pytest.raises(NotReproducible, match=why) as caught:
        place(at(requester))
    assert caught.value.hint


def test_the_largest_vf():
    assert "vfs: 127" in place(at("03:0f.7")).devices[0]


@pytest.mark.parametrize("access", ["Read", "Write"])
def test_a_page_that_was_unmapped_is_used_before(access: str):
    found = scenario(read(reason=6 if access == "Read" else 5, access=access), State.UNMAPPED)
    assert [step.kind for step in found.steps][2:] == [
        *("buffer", "container_map", f"dma_{access.lower()}", "container_unmap", f"dma_{access.lower()}")
    ]


def test_a_read_only_page_is_not_read_before_it_is_written():
    found = scenario(read(reason=5, access="Write", address=0x123456789000), State.READ_ONLY)
    assert [step.kind for step in found.steps][2:] == ["buffer", "container_map", "dma_write"]
    assert found.steps[3].args_json()["access"] == "read"


@pytest.mark.parametrize(("address", "width"), [(1 << 39, 39), (1 << 48, 48), (1 << 63, 48)])
def test_an_address_beyond_the_width_takes_the_widest_that_it_is_beyond(address: int, width: int):
    assert scenario(read(address=address, reason=4)).machine.aw_bits == width


@pytest.mark.parametrize(
    ("line", "state", "rule"),
    [
        (read(address=0xFEE01000), State.NEVER_MAPPED, "interrupt address range"),
        (read(address=0x900000, reason=4), State.NEVER_MAPPED, "within 39 bits"),
        (read(address=1 << 48), State.NEVER_MAPPED, "beyond 48 bits"),
        (read(reason=0x0D), State.NEVER_MAPPED, "never gives reason 0x0d .*context entry blocks"),
        (read(reason=0x80), State.NEVER_MAPPED, "is canonical"),
        (read(reason=0x30), State.NEVER_MAPPED, "reserved mode"),
        (read(reason=0x05), State.NEVER_MAPPED, "about a write"),
        (read(), State.READ_ONLY, "refuses writes"),
        ("DMAR: [DMA Read] Request device [02:00.0] fault addr\n", State.NEVER_MAPPED, "lacks"),
        ("INTR-REMAP: Request device [02:00.0] fault index 1f [fault reason 0x27]", State.NEVER_MAPPED, "never gives"),
        ("INTR-REMAP: Request device [02:00.0] fault index 1f [fault reason 0x25]", State.NEVER_MAPPED, "old format"),
        ("INTR-REMAP: Request device [02:00.0] fault index 1 [fault reason 0x21]", State.NEVER_MAPPED, "every table"),
        ("INTR-REMAP: Request device [02:00.0] fault index 100 [fault reason 0x22]", State.NEVER_MAPPED, "256 entries"),
        (
            "INTR-REMAP: Request device [02:00.0] fault index 1 [fault reason 0x0c]",
            State.NEVER_MAPPED,
            "no interrupt's",
        ),
        (read(reason=0x22), State.NEVER_MAPPED, "about an interrupt"),
        (read(reason=0x85), State.NEVER_MAPPED, "about a write"),
        (read(reason=0x0C, address=1 << 48), State.NEVER_MAPPED, "beyond 48 bits"),
        (read(reason=0x0C, address=0xFEE00000), State.NEVER_MAPPED, "interrupt address range"),
    ],
)
def test_a_rule_that_stands_in_the_way_is_named(line: str, state: State, rule: str):
    with pytest.raises(NotReproducible, match=rule):
        made(line, state)


@pytest.mark.parametrize(
    ("vendor", "iommu", "reason"), [("virtio", "virtio", "mapping"), ("amd", "amd", "io_page_fault")]
)
def test_other_iommus_are_what_the_machine_has(vendor: Vendor, iommu: str, reason: str):
    record = FaultRecord(witness="kernel", vendor=vendor, requester="02:00.1", access=None, address=0x1000, reason=2)
    made = plan(record, "")
    found = parse_scenario(made.text, Path("again.yaml"))
    assert found.machine.iommu == iommu
    assert found.machine.devices["dut"].model == "edu"
    assert (found.expect.faults[0].reason, found.expect.faults[0].access) == (reason, "read")
    assert any("does not say it" in one for one in made.remarks)


def test_virtios_refused_write_to_a_mapping_is_one_to_a_read_only_page():
    record = FaultRecord(witness="kernel", vendor="virtio", requester="02:00.0", access="write", address=0, reason=2)
    assert "read-only" in plan(record, "").words


@pytest.mark.parametrize(("vendor", "why"), [("arm", "SMMU"), ("virtio", "no domain")])
def test_what_no_machine_has_is_told(vendor: Vendor, why: str):
    record = FaultRecord(witness="kernel", vendor=vendor, requester="02:00.0", access="read", address=0, reason=1)
    with pytest.raises(NotReproducible, match=why):
        plan(record, "")


@pytest.mark.parametrize("vendor", ["xen", "freebsd"])
def test_vtd_is_vtd_whoever_prints_it(vendor: Vendor):
    (record,) = parse_kernel_log(SEED).records
    assert plan(record.model_copy(update={"vendor": vendor}), SEED).text == made(SEED).text


def test_what_cannot_be_the_same_is_a_remark():
    line = "DMAR: [DMA Read PASID 0x1] Request device [0001:02:00.0] fault addr 0x900000 [fault reason 0x06]"
    found = made(line)
    assert [one.split(":")[0] for one in found.remarks] == ["PCI domain 0001", "PASID 0x1"]
    assert (found.wanted.requester, found.wanted.pasid) == ("02:00.0", None)
    assert made(line.replace("0001:", "0000:").replace("PASID 0x1", "NO_PASID")).remarks == ()


def test_a_line_with_anything_in_it_stays_one_scalar():
    line = read() + " it's \x1b[31m: #x\x00 {\u2028"
    found = scenario(line)
    assert "it's ?[31m: #x? {?" in found.source


@pytest.mark.parametrize("requester", ["02:00.0", "3d:01.2"])
def test_linuxs_line_is_read_back(requester: str):
    fault = FaultRecord(witness="trace", requester=requester, access="write", address=0x900123, reason=5)
    (back,) = parse_kernel_log(linux_line(fault)).records
    assert (back.requester, back.access, back.address, back.reason) == (requester, "write", 0x900000, 5)
    assert re.search(line_pattern(fault), linux_line(fault))
    assert not re.search(line_pattern(fault), linux_line(fault.model_copy(update={"address": 0x800000})))


@pytest.mark.parametrize("reason", RECIPES)
@pytest.mark.parametrize("requester", ["02:00.0", "3d:01.2", "00:05.0"])
def test_every_reason_of_the_emulator_has_a_bare_scenario(reason: int, requester: str):
    recipe = RECIPES[reason]
    access = recipe.access or "read"
    interrupt = access == "interrupt"
    index = 7 if interrupt else None
    record = FaultRecord(
        witness="kernel",
        requester=requester,
        access=access,
        address=None if interrupt else 0x800000123000 if reason == 0x80 else 0x7F0000123000,
        index=index,
        reason=reason,
    )
    made = plan(record, "", tier=Tier.BARE)
    found = parse_scenario(made.text, Path("again.yaml"))
    assert isinstance(found, BareScenario)
    assert found.machine.address("dut") == requester
    (fault,) = found.expect.faults
    assert (fault.requester, fault.access, fault.reason, fault.index) == (requester, access, reason, index)


def test_only_what_linux_does_is_done_by_linux():
    assert made(read()).tier is Tier.GUEST
    assert made(read(reason=2)).tier is Tier.BARE
    record = FaultRecord(witness="kernel", vendor="virtio", requester="02:00.0", access="read", address=0, reason=2)
    with pytest.raises(NotReproducible, match="VT-d only"):
        plan(record, "", tier=Tier.BARE)
