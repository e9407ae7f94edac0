"""Points as a run is asked for them: cells, their names, their rerun lines, what they need."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.cli.options import Cmdlines, Models, Viommus
from harness.errors import ConfigurationError
from harness.guest.payload import Payload
from harness.image.build import Image
from harness.image.library import Library
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.paths import scenarios_dir
from harness.results import Outcome
from harness.run import cells as cells_module
from harness.run import resources as resources_module
from harness.run.axes import all_points, cell_name, differing, point_words
from harness.run.cell import run_cell
from harness.run.cells import Cell, expand, machine_spec, prepare_for, unmet
from harness.run.options import RunOptions
from harness.run.resources import Emulation, Resources
from harness.scenario import Scenario
from harness.scenario.point import CMDLINES, VIOMMUS, Point

DMA = scenarios_dir() / "dma" / "unmapped_read.yaml"
BARE = scenarios_dir() / "bare" / "bus_master_off.yaml"
WIDTH = scenarios_dir() / "dma" / "width_39.yaml"


def cells(*paths: Path, **options: Any) -> list[Cell]:
    return expand(RunOptions(paths=paths or (DMA,), **options))


def emulation(properties: frozenset[str], version: str = "11.1.3") -> Emulation:
    build = QemuBuild("11.1", version, "b", ("qemu",), {}, None)
    known = {"intel-iommu": properties, "virtio-iommu-pci": frozenset({"x-fake"})}
    return Emulation(build, Capabilities("pc-q35-11.1", True, known, frozenset()), Decision("tcg", "no KVM"))


def resources(*properties: str) -> Resources:
    nowhere = Path("-")
    image = Image(
        "trixie", "i", nowhere, nowhere, nowhere, "6.12.88", {}, "2026", 1, frozenset({"VFIO", "VIRTIO_IOMMU"})
    )
    names = frozenset({"intremap", "caching-mode", "aw-bits", *properties})
    return Resources({"11.1": emulation(names)}, {"6.12": image}, Payload(b"", "p"))


def test_the_command_line_knows_every_value() -> None:
    assert [one.value for one in Viommus] == list(VIOMMUS)
    assert [one.value for one in Cmdlines] == list(CMDLINES)


def test_points_are_every_combination_each_once() -> None:
    assert all_points() == (Point(),)
    found = all_points(["intel", "virtio", "intel"], [], [0, 8], [2])
    assert found == (
        Point(viommu="intel", hugepages=0, vcpus=2),
        Point(viommu="intel", hugepages=8, vcpus=2),
        Point(viommu="virtio", hugepages=0, vcpus=2),
        Point(viommu="virtio", hugepages=8, vcpus=2),
    )
    assert differing(found) == ["viommu", "hugepages"]
    assert differing([Point(), Point(vcpus=1)]) == ["vcpus"]
    assert point_words(found[1]) == ["--viommu", "intel", "--hugepages", "8", "--vcpus", "2"]


def test_a_cell_is_named_by_what_there_are_several_of() -> None:
    assert cell_name("a/b", {}) == "a/b"
    (one,) = cells(points=all_points(["intel-39"], ["lazy"]))
    assert (one.name, one.point) == ("dma/unmapped_read", Point(viommu="intel-39", cmdline="lazy"))
    several = cells(points=all_points(["intel", "intel-39"], ["lazy"], [], [1, 2]), qemu=("10.0", "11.1"))
    assert len({cell.name for cell in several}) == 8
    assert len({cell.folder_name for cell in several}) == 8
    assert several[-1].name == "dma/unmapped_read [qemu 11.1, kernel 6.12, viommu intel-39, vcpus 2]"
    assert several[-1].folder_name == "dma.unmapped_read-qemu-11.1-kernel-6.12-viommu-intel-39-vcpus-2"


def test_what_is_started_is_the_machine_at_the_point() -> None:
    (one,) = cells(points=all_points(["intel-scalable-39"], ["strict"], [16], [4]))
    assert isinstance(one.scenario, Scenario)
    spec = machine_spec(one.scenario)
    assert (spec.aw_bits, spec.scalable, spec.cpus, spec.kernel_args) == (
        39,
        True,
        4,
        ("iommu.strict=1", "hugepages=16"),
    )


def test_a_bare_scenario_is_run_once_on_each_build() -> None:
    found = cells(BARE, points=all_points(["intel", "intel-39"], [], [], [1, 2]), qemu=("10.0", "11.1"))
    assert [cell.name for cell in found] == [f"bare/bus_master_off [qemu {one}]" for one in ("10.0", "11.1")]


def test_what_means_nothing_at_a_point_is_skipped_with_the_reason(tmp_path: Path) -> None:
    intel, other = cells(WIDTH, points=all_points(["intel", "intel-39"]))
    assert (intel.refused, other.refused) == ("the scenario is about aw_bits: 39", "")
    result = run_cell(intel, resources(), RunOptions(), tmp_path / "x", lambda stage: None, pytest.fail)
    assert (result.outcome, result.message) == (Outcome.SKIP, "the scenario is about aw_bits: 39")
    assert "--viommu intel" in result.rerun


def test_what_is_refused_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[str, ...], bool]] = []

    def prepare(options: RunOptions, say: object, *, guests: bool, libraries: tuple[str, ...]) -> Resources:
        asked.append((libraries, guests))
        return resources()

    monkeypatch.setattr(cells_module, "prepare", prepare)
    options = RunOptions(points=all_points(["intel"]), implementation="libusdm")
    prepare_for(cells(WIDTH, points=options.points, implementation="libusdm"), options, pytest.fail)
    assert asked == [((), False)]


def test_a_list_of_cells_gets_what_its_cells_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds, kernels and C libraries are the cells' own, whatever the options name."""
    (one,) = cells()
    image = resources().images["6.12"]
    monkeypatch.setattr(resources_module, "_build", lambda name, options, say: QemuBuild(name, name, "b", (), {}, None))
    monkeypatch.setattr(resources_module, "capabilities", lambda build: build.name)
    monkeypatch.setattr(resources_module, "decide", lambda build, wanted: Decision("tcg", wanted))
    monkeypatch.setattr(resources_module, "_image", lambda kernel, options, say: image)
    monkeypatch.setattr(
        resources_module, "_library", lambda name, options, say: Library(name, name, Path(name), f"{name}.0-1")
    )
    monkeypatch.setattr(resources_module, "build_payload", lambda usdm: Payload(b"", "p"))
    listed = [
        replace(one, qemu="7.2", kernel="6.12"),
        replace(one, qemu="10.0", kernel="7.2", implementation="libusdm", libusdm="26.08"),
        replace(one, qemu="10.0", kernel="6.12", implementation="both", libusdm="24.02"),
    ]
    found, needed = prepare_for(listed, RunOptions(kernels=("lab",), accel="tcg"), pytest.fail)
    assert found == listed
    assert sorted(needed.emulations) == ["10.0", "7.2"]
    assert sorted(needed.images) == ["6.12", "7.2"]
    libraries = [needed.library_of(cell.libusdm) for cell in listed[1:]]
    assert [library.version for library in libraries if library] == ["26.08.0-1", "24.02.0-1"]


@pytest.mark.parametrize(
    ("viommu", "properties", "said"),
    [
        ("intel-scalable", (), "this QEMU build's intel-iommu lacks the properties scalable-mode (QEMU 11.1.3)"),
        ("intel-scalable", ("x-scalable-mode",), None),
        ("intel-scalable", ("scalable-mode",), None),
        ("intel-39", (), None),
    ],
)
def test_a_build_that_cannot_be_so_skips(viommu: str, properties: tuple[str, ...], said: str | None) -> None:
    (one,) = cells(points=all_points([viommu]))
    assert unmet(one, resources(*properties)) == said


def test_a_scenario_of_scalable_mode_needs_a_build_with_it() -> None:
    (one,) = cells(scenarios_dir() / "tables" / "scalable_mode.yaml")
    assert unmet(one, resources()) == "this QEMU build's intel-iommu lacks the properties scalable-mode (QEMU 11.1.3)"
    assert unmet(one, resources("x-scalable-mode")) is None


def test_a_width_that_virtio_cannot_have_skips() -> None:
    usdm = scenarios_dir() / "virtio" / "roundtrip.yaml"
    (one,) = cells(usdm, points=all_points(["virtio-39"]))
    assert unmet(one, resources()) == "this QEMU build's virtio-iommu-pci lacks the properties aw-bits (QEMU 11.1.3)"


@pytest.mark.parametrize(
    "options",
    [
        {"points": all_points(["intel-scalable-39"], ["pt"], [16], [2])},
        {"points": all_points([], ["default"], [0])},
        {"accel": "tcg"},
        {"timeout": 300.0, "boot_timeout": 99.5},
        {"models": ("qat",), "points": all_points(["intel-39"])},
    ],
    ids=str,
)
def test_the_rerun_line_gives_the_same_cell_again(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[RunOptions] = []

    def run_scenarios(options: RunOptions, progress: object) -> None:
        taken.append(options)
        raise ConfigurationError("that is all")

    monkeypatch.setattr("harness.run.run_scenarios", run_scenarios)
    (one,) = cells(**options)
    assert CliRunner().invoke(app, shlex.split(one.rerun)[1:]).exit_code == 2
    assert expand(taken[0]) == [one]
    assert [getattr(taken[0], name) for name in options] == list(options.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--viommu", "vtd"], "vtd"),
        (["run", "--hugepages", "-1"], "--hugepages"),
        (["run", "--vcpus", "65"], "less than or equal to 64"),
        (["shell", "--viommu", "intel", "--viommu", "amd"], "--viommu: a shell is one guest, so name one"),
        (["shell", "--vcpus", "1", "--vcpus", "2"], "--vcpus: a shell is one guest, so name one, not 1, 2"),
        (["shell", str(WIDTH), "--viommu", "intel"], "the machine cannot be so: the scenario is about aw_bits: 39"),
    ],
)
def test_a_mistyped_point_is_told(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_the_environment_holds_several_values(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[RunOptions] = []

    def run_scenarios(options: RunOptions, progress: object) -> None:
        taken.append(options)
        raise ConfigurationError("that is all")

    monkeypatch.setattr("harness.run.run_scenarios", run_scenarios)
    for name, value in (("VIOMMU", "intel virtio"), ("CMDLINE", "pt"), ("HUGEPAGES", "0 8"), ("VCPUS", "2")):
        monkeypatch.setenv(f"HARNESS_{name}", value)
    assert CliRunner().invoke(app, ["run"]).exit_code == 2
    assert taken[0].points == all_points(["intel", "virtio"], ["pt"], [0, 8], [2])
    assert Models.EDU.value == taken[0].models[0]


def test_a_kernel_without_the_driver_skips() -> None:
    (one,) = cells(scenarios_dir() / "virtio" / "roundtrip.yaml")
    known = resources()
    old = replace(known.images["6.12"], kernel_release="6.1.0-50-amd64", options=frozenset({"VFIO"}))
    said = "needs a kernel with VIRTIO_IOMMU for iommu: virtio, this is 6.1.0-50-amd64"
    assert unmet(one, replace(known, images={"6.12": old})) == said
    assert unmet(one, known) is None


def test_the_kernels_own_functions_are_not_run_where_they_map_nothing() -> None:
    found = cells(
        scenarios_dir() / "iova" / "one_shot.yaml", points=all_points([], ["pt", "strict"]), implementation="kernel"
    )
    reasons = [unmet(replace(one, point=one.point), resources()) for one in found]
    assert reasons[0] == "with iommu.passthrough=1 the kernel's own drivers map nothing"
    assert reasons[1] != reasons[0]


def test_the_rerun_line_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (one,) = cells(usdm=Path("broken"))
    assert f"--usdm {tmp_path / 'broken'}" in one.rerun


def test_when_all_were_skipped_the_option_is_named_that_is_meant() -> None:
    done = CliRunner().invoke(app, ["run", "--viommu", "none", str(DMA)])
    assert done.exit_code == 2
    assert done.stderr.endswith("the report says what each needs: --viommu\n")
