"""``--model``: QAT-like devices where scenarios have an edu, and the reasons for which they cannot stand in."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.guest.payload import Payload
from harness.image.build import Image
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.paths import scenarios_dir
from harness.run.cells import Cell, expand, machine_spec, unmet
from harness.run.models import unmet_steps, with_model
from harness.run.options import DmaModel, RunOptions
from harness.run.resources import Emulation, Resources
from harness.scenario import Scenario
from harness.scenario.load import parse_scenario

DMA = scenarios_dir() / "dma" / "unmapped_read.yaml"
BARE = scenarios_dir() / "bare" / "bus_master_off.yaml"
NVME = scenarios_dir() / "nvme"
EDU = 'edu0: {model: edu, at: "02:00.0"}'


def scenario(*steps: str, devices: str = EDU, iommu: str = "intel") -> Scenario:
    listed = "".join(f"  - {step}\n" for step in steps or ("statistics: {}",))
    machine = f"{{iommu: {iommu}, devices: {{{devices}}}}}"
    found = parse_scenario(f"title: t\nsource: s\nmachine: {machine}\nsteps:\n{listed}", "x.yaml")
    assert isinstance(found, Scenario)
    return found


def cells(*models: DmaModel, path: Path = DMA, qemu: tuple[str, ...] = ("11.1",)) -> list[Cell]:
    return expand(RunOptions(paths=(path,), models=models, qemu=qemu))


def resources(properties: dict[str, frozenset[str]], version: str = "11.1.3") -> Resources:
    nowhere = Path("-")
    image = Image(
        "trixie", "i", nowhere, nowhere, nowhere, "6.12.88", {}, "2026", 1, frozenset({"VFIO", "VIRTIO_IOMMU"})
    )
    build = QemuBuild("11.1", version, "b", ("qemu",), {}, None)
    emulation = Emulation(build, Capabilities("pc-q35-11.1", True, properties, frozenset()), Decision("tcg", "no KVM"))
    return Resources({"11.1": emulation}, {"6.12": image}, Payload(b"", "p"))


def test_without_the_option_an_edu_is_an_edu():
    (cell,) = expand(RunOptions(paths=(DMA,)))
    assert (cell.name, cell.model) == ("dma/unmapped_read", "edu")
    assert isinstance(cell.scenario, Scenario)
    assert {one.model for one in machine_spec(cell.scenario).devices} == {"edu"}
    assert "--model" not in cell.rerun


def test_a_qat_stands_at_the_same_place_under_the_same_name():
    (edu,), (qat,) = cells("edu"), cells("qat")
    assert isinstance(edu.scenario, Scenario)
    assert isinstance(qat.scenario, Scenario)
    assert (qat.name, qat.scenario.id, qat.scenario.file) == (edu.name, "dma/unmapped_read", DMA)
    before, after = machine_spec(edu.scenario), machine_spec(qat.scenario)
    assert [(one.name, one.at) for one in after.devices] == [(one.name, one.at) for one in before.devices]
    assert {one.model for one in after.devices} == {"qat"}
    assert after.frozen == before.frozen
    assert qat.rerun == f"harness run {DMA} --qemu 11.1 --kernel 6.12 --model qat"


def test_each_model_is_a_point_of_the_matrix():
    both = cells("edu", "qat")
    assert [one.name for one in both] == ["dma/unmapped_read [model edu]", "dma/unmapped_read [model qat]"]
    assert [one.folder_name for one in both] == ["dma.unmapped_read-model-edu", "dma.unmapped_read-model-qat"]
    more = cells("edu", "qat", qemu=("10.0", "11.1"))
    assert more[-1].name == "dma/unmapped_read [qemu 11.1, kernel 6.12, model qat]"
    assert len({one.name for one in more}) == 4


@pytest.mark.parametrize("path", [NVME, BARE], ids=["nvme", "bare"])
def test_who_has_no_edu_of_a_guest_is_the_same_on_every_model(path: Path):
    found = cells("edu", "qat", path=path)
    assert len({one.scenario.file for one in found}) == len(found)
    assert {one.name for one in found} == {one.scenario.id for one in found}
    assert not any("--model" in one.rerun for one in found)


def test_another_model_in_the_same_machine_stays():
    mixed = scenario(
        devices=f'{EDU}, pf: {{model: nvme, at: "03:00.0", vfs: 2}}, vf1: {{model: vf, of: pf, number: 1}}'
    )
    spec = machine_spec(with_model(mixed, "qat"))
    assert [(one.name, one.model, one.vfs) for one in spec.devices] == [
        ("edu0", "qat", 0),
        ("pf", "nvme", 2),
        ("vf1", "vf", 0),
    ]


@pytest.mark.parametrize("iommu", ["intel", "virtio", "none"])
@pytest.mark.parametrize("properties", [{}, {"vfio-user-pci": frozenset()}], ids=["no device", "no socket"])
def test_a_build_without_vfio_user_skips_with_the_reason(iommu: str, properties: dict[str, frozenset[str]]):
    cell = Cell(with_model(scenario(iommu=iommu), "qat"), "11.1", "6.12", "a", model="qat")
    found = unmet(cell, resources(properties, "10.0.2"))
    assert found == "needs QEMU >=10.1 with vfio-user-pci for model: qat, this is 10.0.2 without"
    assert unmet(cell, resources({"vfio-user-pci": frozenset({"socket"})})) is None
    assert unmet(Cell(scenario(iommu=iommu), "11.1", "6.12", "a"), resources(properties)) is None


MASTER = "bus_master: {device: edu0, enabled: true}"
READ = "dma_read: {device: edu0, iova: 0x900000, size: 16}"
OPEN = "register: {device: edu0}"


@pytest.mark.parametrize(
    "steps",
    [
        (OPEN, READ),
        (OPEN, MASTER, "bus_master: {device: edu0, enabled: false}", READ),
        (OPEN, MASTER, "close: {device: edu0}", "open: {device: edu0}", READ),
        (OPEN, f"fork: {{steps: [{READ}]}}"),
    ],
    ids=["never", "off again", "closed", "in a child"],
)
def test_a_dma_while_it_is_no_bus_master_is_for_an_edu(steps: tuple[str, ...]):
    found = unmet_steps(with_model(scenario(*steps), "qat"))
    assert found == "'edu0' is to make a DMA while it is no bus master, and a qat reads no request then"
    assert unmet_steps(scenario(*steps)) is None


@pytest.mark.parametrize(
    "steps",
    [
        (OPEN, MASTER, READ),
        (OPEN, MASTER, f"fork: {{steps: [{READ}]}}"),
        (OPEN, f"{READ}\n    expect: {{error: DmaTimeout}}"),
        (OPEN, "container_info: {device: edu0}"),
    ],
    ids=["a bus master", "in a child", "expected to fail", "no count"],
)
def test_what_a_qat_can_do(steps: tuple[str, ...]):
    assert unmet_steps(with_model(scenario(*steps), "qat")) is None


@pytest.mark.parametrize(
    "step",
    [
        "container_info: {device: edu0}\n    expect: {counts: {mappings_left: 65535}}",
        "map: {address: 0x400000, size: 4K}\n    expect: {error: TooManyMappings, returns: 0}",
    ],
    ids=["counted", "full"],
)
def test_what_counts_mappings_is_for_an_edu(step: str):
    found = unmet_steps(with_model(scenario(OPEN, step), "qat"))
    assert found == "it counts the mappings of a container, of which a qat has one for its rings"
    assert unmet_steps(scenario(OPEN, step)) is None


def test_a_file_that_names_the_model_itself_knows_what_that_can_do():
    own = scenario(OPEN, READ, devices=EDU.replace("model: edu", "model: qat"))
    serving = resources({"vfio-user-pci": frozenset({"socket"})})
    assert unmet(Cell(own, "11.1", "6.12", "a"), serving) is None
    replaced = Cell(with_model(scenario(OPEN, READ), "qat"), "11.1", "6.12", "a", model="qat")
    assert unmet(replaced, serving) is not None
