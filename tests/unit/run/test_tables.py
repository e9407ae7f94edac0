"""The host's reading of the IOMMU's tables as values of a step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.machine.vtd import ContextEntry, PasidTableEntry, PasidType, TableMode, TranslationType
from harness.run import tables

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "machine"))
from vtd_tables import PAGE, Memory, Unit

EDU = DeviceSpec("edu0", "edu", "02:00.0")
VF = DeviceSpec("vf10", "vf", "02:01.2", of="edu0")
FOREVER = Deadline.after(60)


class Reading:
    """In place of PhysicalMemory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.reads = 0

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __call__(self, address: int, size: int) -> bytes:
        self.reads += 1
        return self._memory(address, size)


def guest(monkeypatch: pytest.MonkeyPatch, unit: Unit | None, iommu: str = "intel") -> Any:
    monkeypatch.setattr(tables, "PhysicalMemory", lambda *_: Reading(unit.memory if unit else Memory()))
    return SimpleNamespace(spec=MachineSpec(iommu=iommu, devices=(EDU, VF)), emulator=None)  # type: ignore[arg-type]


def test_a_devices_own_tables(monkeypatch: pytest.MonkeyPatch):
    unit = Unit()
    table = unit.memory.new()
    unit.context(0x20A, ContextEntry(table=table, domain=7))
    for place, (read, write) in enumerate([(True, True), (True, True), (True, False), (False, True)]):
        unit.map(table, 4, 0x200000 + place * PAGE, 0x7000 + place * PAGE, read=read, write=write)
    one = guest(monkeypatch, unit)
    found = tables.read_tables(one, VF, 0x200000, 8 * PAGE, FOREVER)
    seconds = found.pop("seconds")
    assert isinstance(seconds, float)
    assert json.loads(json.dumps(found)) == {
        "way": "translated",
        "untranslated": False,
        "mode": "legacy",
        "asked": "legacy",
        "stage": "second",
        "levels": 4,
        "domain": 7,
        "reads": 7,
        "runs": [
            [0x200000, 0x7000, 2 * PAGE, PAGE, "rw"],
            [0x202000, 0x9000, PAGE, PAGE, "r"],
            [0x203000, 0xA000, PAGE, PAGE, "w"],
        ],
    }
    # Its PF is another requester.
    assert tables.read_tables(one, EDU, 0, PAGE, FOREVER)["way"] == "context entry not present"


@pytest.mark.parametrize(
    ("unit", "way", "untranslated"),
    [
        (Unit(enabled=False), "translation disabled", True),
        (Unit(), "root entry not present", False),
        (Unit(TableMode.ABORT), "abort mode", False),
    ],
)
def test_answers_without_tables(monkeypatch: pytest.MonkeyPatch, unit: Unit, way: str, untranslated: bool):
    found = tables.read_tables(guest(monkeypatch, unit), EDU, 0, PAGE, FOREVER)
    assert (found["way"], found["untranslated"], found["runs"]) == (way, untranslated, [])


def test_pass_through(monkeypatch: pytest.MonkeyPatch):
    unit = Unit()
    unit.context(0x200, ContextEntry(type=TranslationType.PASS_THROUGH))
    found = tables.read_tables(guest(monkeypatch, unit), EDU, 0, PAGE, FOREVER)
    assert (found["way"], found["untranslated"], found["mode"]) == ("pass-through", True, "legacy")


def test_no_iommu_is_an_answer_and_another_kind_none(monkeypatch: pytest.MonkeyPatch):
    found = tables.read_tables(guest(monkeypatch, None, "none"), EDU, 0, PAGE, FOREVER)
    assert found == {"way": "no IOMMU", "untranslated": True, "runs": []}
    with pytest.raises(InfrastructureError, match="virtio-iommu"):
        tables.read_tables(guest(monkeypatch, None, "virtio"), EDU, 0, PAGE, FOREVER)
    nested = Unit(TableMode.SCALABLE)
    nested.pasid(0x200, PasidTableEntry(type=PasidType.NESTED))
    with pytest.raises(InfrastructureError, match="nested tables"):
        tables.read_tables(guest(monkeypatch, nested), EDU, 0, PAGE, FOREVER)


def test_only_a_step_that_asks_for_it_and_has_no_error(monkeypatch: pytest.MonkeyPatch):
    one = guest(monkeypatch, None, "none")
    args = {"device": "edu0", "size": PAGE}
    for kind, answer in (("map", {"values": {}}), ("mappings", {"values": {}, "error": {"type": "NoIova"}})):
        tables.add_tables(one, kind, args, answer, FOREVER)
        assert answer["values"] == {}
    answer = {"values": {"iova": 0}, "error": None}
    tables.add_tables(one, "mappings", args, answer, FOREVER)
    assert answer["values"]["tables"]["way"] == "no IOMMU"  # type: ignore[index]
