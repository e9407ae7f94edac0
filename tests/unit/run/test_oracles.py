"""What a scenario is compared with, where its cells run, and why one cannot run there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.guest.payload import Payload
from harness.image.build import Image
from harness.image.library import Library
from harness.image.module import Module
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.results import Implementation
from harness.run import cells, resources
from harness.run.cells import Cell, choose_kernels, expand, unmet
from harness.run.options import RunOptions
from harness.run.oracles import oracle_of, unmet_library
from harness.run.resources import Emulation, Resources, with_modules
from harness.scenario import KINDS, Scenario, parse_scenario
from harness.scenario.args_iova import IOVA_KINDS
from harness.scenario.on_kernel import BESIDE, unmet_kernel

EDU = 'machine: {devices: {edu0: {model: edu, at: "02:00.0"}}}'
ALLOC = "iova_alloc: {device: edu0, as: r, buffer: b, size: 4K}"
PLAIN = "fill: {buffer: b, pattern: zero}"


def text(*steps: str, machine: str = EDU, needs: str = "{}", opened: str = "register: {device: edu0}") -> str:
    listed = "".join(f"  - {step}\n" for step in (opened, "buffer: {as: b, size: 16K}", *steps))
    return f"title: t\nsource: s\n{machine}\nneeds: {needs}\nsteps:\n{listed}"


def scenario(*steps: str, **more: str) -> Scenario:
    found = parse_scenario(text(*steps, **more), "x.yaml")
    assert isinstance(found, Scenario)
    return found


# ---- what a scenario is compared with


@pytest.mark.parametrize(
    ("steps", "oracle"),
    [
        ((PLAIN,), "libusdm"),
        ((ALLOC,), "kernel"),
        (("stream_map: {device: edu0, buffer: b, size: 4K}",), "kernel"),
        ((PLAIN, "fork: {steps: [{merge_boundary: {device: edu0}}]}"), "kernel"),
        (("map: {buffer: b, size: 4K}",), "libusdm"),
    ],
)
def test_the_kernel_is_compared_with_where_it_has_the_functions(steps: tuple[str, ...], oracle: str) -> None:
    assert oracle_of(scenario(*steps)) == oracle


@pytest.mark.parametrize(
    ("implementation", "sides"),
    [("usdm", ("usdm",)), ("libusdm", ("libusdm",)), ("kernel", ("kernel",)), ("both", ("usdm", "kernel"))],
)
def test_the_sides_of_a_cell(implementation: Implementation, sides: tuple[str, ...]) -> None:
    one = Cell(scenario(ALLOC), "11.1", "7.2", "x", implementation=implementation)
    assert one.sides == sides
    assert one.oracle == (sides[-1] if implementation != "usdm" else None)


def test_both_is_each_scenarios_own_oracle() -> None:
    assert Cell(scenario(PLAIN), "11.1", "6.12", "x", implementation="both").sides == ("usdm", "libusdm")


# ---- what cannot run on the kernel


@pytest.mark.parametrize("kind", sorted({*KINDS} - {*IOVA_KINDS}))
def test_every_kind_of_step_is_decided_on(kind: str) -> None:
    """A step that is new either runs on the kernel or is refused by its name; it is never taken for another one."""
    one = scenario(ALLOC)
    (step,) = [step for step in one.steps if step.kind == "bus_master"] or [one.steps[0]]
    other = step.model_copy(update={"kind": kind})
    reason = unmet_kernel(one.model_copy(update={"steps": (*one.steps, other)}))
    if kind in BESIDE:
        assert reason is None
    else:
        assert reason is not None
        assert reason.startswith(f"the kernel has nothing for the step {kind}")


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (scenario(PLAIN), "no step calls a function that the kernel has too"),
        (scenario(ALLOC, "fork: {steps: [{release: {buffer: b}}]}"), "step fork: a file of the test module"),
        (scenario(ALLOC, "unregister: {device: edu0}"), "step unregister: nothing is registered"),
        (scenario(ALLOC, opened="open: {device: edu0, container: own}"), "no containers"),
        (scenario(ALLOC, opened="open: {device: edu0, type: type1v2}"), "no containers"),
        (
            scenario(
                ALLOC,
                opened="open: {device: edu0, through: iommufd}",
                needs="{kernel_options: {IOMMUFD: true, VFIO_DEVICE_CDEV: true}}",
            ),
            "not through IOMMUFD",
        ),
        (scenario(ALLOC, machine=EDU.replace("model: edu", "model: qat")), "drives an edu, not a qat"),
    ],
)
def test_why_a_scenario_cannot_run_on_the_kernel(one: Scenario, reason: str) -> None:
    assert reason in (unmet_kernel(one) or "")


def test_the_c_library_has_none_of_it() -> None:
    one = scenario("map: {buffer: b, size: 4K}", ALLOC)
    assert unmet_library(one, "26.08.0-2") == "libusdm 26.08.0-2 has no function for the step iova_alloc"
    assert unmet_library(scenario(PLAIN), "26.08.0-2") is None


# ---- cells


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "x.yaml"
    file.write_text(text(ALLOC))
    return file


@pytest.mark.parametrize("implementation", ["kernel", "both"])
def test_the_rerun_line_names_no_library_that_does_not_run(file: Path, implementation: Implementation) -> None:
    (one,) = expand(RunOptions(paths=(file,), implementation=implementation))
    assert one.libusdm == ""
    assert one.rerun.endswith(f"--kernel 6.12 --implementation {implementation}")


def image(name: str, release: str, tmp_path: Path) -> Image:
    return Image(name, "i", tmp_path, tmp_path, tmp_path, release, {}, "2026", 1)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resources:
    """Resources for the default kernel; images of others are found as they are asked for."""
    releases = {"trixie": "6.12.88+deb13-amd64", "trixie-7.2": "7.2.12+deb13-amd64", "lab": "7.2.12"}
    monkeypatch.setattr(resources, "find_image", lambda name: image(name, releases[name], tmp_path))
    build = QemuBuild("11.1", "11.1.3", "b", ("qemu",), {}, None)
    emulation = Emulation(build, Capabilities("pc-q35-11.1", True, {}, frozenset()), Decision("tcg", "no KVM"))
    library = Library("26.08", "l" * 64, Path("libusdm.so"), "26.08.0-2")
    images = {"6.12": image("trixie", releases["trixie"], tmp_path)}
    return Resources({"11.1": emulation}, images, Payload(b"", "p"), library)


def chosen(implementation: Implementation, one: Scenario, prepared: Resources) -> tuple[str, Resources]:
    cell = Cell(one, "11.1", "6.12", "x", implementation=implementation)
    (found,), after = choose_kernels([cell], RunOptions(implementation=implementation), prepared, pytest.fail)
    return found.kernel, after


@pytest.mark.parametrize(
    ("implementation", "kernel"), [("usdm", "6.12"), ("libusdm", "6.12"), ("kernel", "7.2"), ("both", "7.2")]
)
def test_without_a_kernel_chosen_it_is_one_with_a_module(
    implementation: Implementation, kernel: str, prepared: Resources
) -> None:
    found, after = chosen(implementation, scenario(ALLOC), prepared)
    assert found == kernel
    assert kernel in after.images


def test_what_cannot_run_on_the_kernel_asks_for_no_image(prepared: Resources) -> None:
    one = scenario(ALLOC, "unregister: {device: edu0}")
    assert chosen("both", one, prepared)[0] == "6.12"
    assert chosen("both", scenario(PLAIN), prepared)[0] == "6.12"


@pytest.mark.parametrize(("needs", "wanted"), [("{}", True), ("{implementation: usdm}", False)])
def test_what_is_skipped_for_its_implementation_needs_no_library(
    needs: str, wanted: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(text(PLAIN, needs=needs))
    got: list[bool] = []
    monkeypatch.setattr(cells, "prepare", lambda options, say, *, guests, libraries: got.append(bool(libraries)))
    monkeypatch.setattr(cells, "choose_kernels", lambda cells, options, resources, say: (cells, resources))
    monkeypatch.setattr(cells, "with_modules", lambda resources, kernels, options, say: resources)
    cells.prepare_cells(RunOptions(paths=(file,), implementation="both"), pytest.fail)
    assert got == [wanted]


@pytest.mark.parametrize("step", [PLAIN, ALLOC])
def test_what_is_skipped_for_its_implementation_asks_for_no_image(step: str, prepared: Resources) -> None:
    one = scenario(step, needs='{kernel: ">=7.0", implementation: usdm}')
    assert chosen("usdm", one, prepared)[0] == "7.2"
    kernel, after = chosen("both", one, prepared)
    assert (kernel, list(after.images)) == ("6.12", ["6.12"])
    reason = unmet(Cell(one, "11.1", kernel, "x", implementation="both"), after)
    assert reason is not None
    assert reason.endswith("needs the implementation usdm, this is both")


# ---- the module


def asked(prepared: Resources, *kernels: str) -> Resources:
    return with_modules(prepared, kernels, RunOptions(), pytest.fail)


def on_kernel(kernel: str) -> Cell:
    return Cell(scenario(ALLOC), "11.1", kernel, "x", implementation="kernel")


def test_the_module_is_found_once_for_a_kernel(
    prepared: Resources, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = Module("m", tmp_path / "x.ko", "7.2.12+deb13-amd64")
    calls: list[str] = []

    def find(image: Image) -> Module:
        calls.append(image.kernel_release)
        return module

    monkeypatch.setattr(resources, "find_module", find)
    _, prepared = chosen("kernel", scenario(ALLOC), prepared)
    after = asked(prepared, "7.2", "7.2")
    assert (calls, after.modules, after.no_module) == ([module.release], {"7.2": module}, {})
    assert unmet(on_kernel("7.2"), after) is None


def test_without_a_module_the_reason_is_that_of_the_skip(prepared: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(image: Image) -> Module:
        raise InfrastructureError("cannot be built:\n  gcc: not found", hint="install it")

    monkeypatch.setattr(resources, "find_module", find)
    _, prepared = chosen("kernel", scenario(ALLOC), prepared)
    after = asked(prepared, "7.2")
    assert after.modules == {}
    assert unmet(on_kernel("7.2"), after) == "cannot be built: gcc: not found; install it"
    assert unmet(replace(on_kernel("7.2"), implementation="usdm"), after) is None


@pytest.mark.parametrize(("kernel", "why"), [("6.12", "has no dma_iova_*"), ("lab", "loads no modules")])
def test_a_kernel_that_no_module_is_for_says_so(prepared: Resources, kernel: str, why: str) -> None:
    after = asked(prepared, kernel)
    assert why in after.no_module[kernel]
    assert after.no_module[kernel].endswith("--kernel 7.2 has one")
    images = {**after.images, "lab": after.images["6.12"]}
    assert unmet(on_kernel(kernel), replace(after, images=images)) == after.no_module[kernel]


def test_only_cells_that_run_on_the_kernel_ask_for_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not a scenario that is skipped there."""
    other = file.with_name("other.yaml")
    other.write_text(text(ALLOC, "unregister: {device: edu0}"))
    got: list[list[str]] = []

    def modules(resources: Resources, kernels: list[str], options: RunOptions, say: object) -> Resources:
        got.append(list(kernels))
        return resources

    monkeypatch.setattr(cells, "with_modules", modules)
    monkeypatch.setattr(cells, "prepare", lambda *args, **more: None)
    monkeypatch.setattr(cells, "choose_kernels", lambda cells, options, resources, say: (cells, resources))
    for implementation in ("usdm", "kernel", "both"):
        cells.prepare_cells(RunOptions(paths=(file, other), implementation=implementation), pytest.fail)
    assert got == [[], ["6.12"], ["6.12"]]
