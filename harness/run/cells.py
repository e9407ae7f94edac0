"""Scenarios times the points of the matrix."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from harness.errors import ConfigurationError, InfrastructureError
from harness.image.module import module_kernels
from harness.machine.slots import MAX_PORTS
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.paths import scenarios_dir
from harness.results import Implementation, OracleName
from harness.run.bare import bare_unmet
from harness.run.kernels import kernel_with, lacking
from harness.run.models import has_edu, unmet_model, unmet_steps, with_model
from harness.run.options import DmaModel, RunOptions
from harness.run.oracles import oracle_of, unmet_library
from harness.run.resources import Resources, Say, prepare, with_images, with_modules
from harness.scenario import BareScenario, Problem, Scenario, ScenarioError, find_scenarios, load_scenario
from harness.scenario.on_kernel import unmet_kernel


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario on one point of the matrix.

    Args:
        scenario: the scenario.
        qemu: name of the QEMU build.
        kernel: the guest's kernel, by what its recipe calls it; empty for a bare scenario, which has no guest.
        name: the scenario's id, with the point behind it where there is more than one.
        usdm: another ``usdm`` package that is under test, or None.
        fresh_boot: its guest is booted although it could be cloned.
        implementation: what the steps run on.
        libusdm: which C library, where one is named.
        model: what stands where the scenario's file has an edu.
    """

    scenario: Scenario | BareScenario
    qemu: str
    kernel: str
    name: str
    usdm: Path | None = None
    fresh_boot: bool = False
    implementation: Implementation = "usdm"
    libusdm: str = ""
    model: DmaModel = "edu"

    @property
    def oracle(self) -> OracleName | None:
        """What its steps run on instead of ``usdm``, or beside it; None for ``usdm`` alone."""
        if self.implementation == "usdm" or isinstance(self.scenario, BareScenario):
            return None
        return oracle_of(self.scenario) if self.implementation == "both" else self.implementation

    @property
    def sides(self) -> tuple[Literal["usdm"] | OracleName, ...]:
        """What its steps run on, each in a guest of its own."""
        if self.oracle is None:
            return ("usdm",)
        return ("usdm", self.oracle) if self.implementation == "both" else (self.oracle,)

    @property
    def folder_name(self) -> str:
        """A name for its run folder, without slashes."""
        return self.name.replace("/", ".").replace(" ", "-").replace("[", "").replace("]", "").replace(",", "")

    @property
    def rerun(self) -> str:
        """A command line that runs exactly this cell."""
        words = ["harness", "run", str(self.scenario.file), "--qemu", self.qemu]
        if isinstance(self.scenario, BareScenario):
            return shlex.join(words)
        words += ["--kernel", self.kernel]
        if self.model != "edu":
            words += ["--model", self.model]
        if self.usdm is not None:
            words += ["--usdm", str(self.usdm)]
        if self.fresh_boot:
            words.append("--fresh-boot")
        if self.implementation != "usdm":
            words += ["--implementation", self.implementation]
        if self.libusdm:
            words += ["--libusdm", self.libusdm]
        return shlex.join(words)


def list_scenarios(paths: tuple[Path, ...]) -> list[Scenario | BareScenario]:
    """Load scenarios.

    Args:
        paths: files and folders; empty means those that come with the project.

    Raises:
        ScenarioError: files that are wrong; all problems of all files at once.
        ConfigurationError: a path that does not exist or has no scenario.
    """
    files = find_scenarios(list(paths) or [scenarios_dir()])
    scenarios: list[Scenario | BareScenario] = []
    problems: list[Problem] = []
    for file in files:
        try:
            scenarios.append(load_scenario(file))
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(tuple(problems))
    return scenarios


def expand(options: RunOptions) -> list[Cell]:
    """Every scenario on every point; a bare one on every QEMU build.

    Raises:
        ScenarioError, ConfigurationError: as :func:`list_scenarios`; or there is nothing to run.
    """
    points = [(qemu, kernel) for qemu in options.qemu for kernel in options.kernels]
    cells: list[Cell] = []
    for scenario in list_scenarios(options.paths):
        if isinstance(scenario, BareScenario):
            builds = list(dict.fromkeys(options.qemu))
            names = [scenario.id if len(builds) == 1 else f"{scenario.id} [qemu {qemu}]" for qemu in builds]
            cells += [Cell(scenario, qemu, "", name) for qemu, name in zip(builds, names, strict=True)]
            continue
        # One without an edu is the same on each model.
        models = options.models if has_edu(scenario) else ("edu",)
        for qemu, kernel, model in [(*point, model) for point in points for model in models]:
            point = [f"qemu {qemu}", f"kernel {kernel}"] if len(points) > 1 else []
            point += [f"model {model}"] if len(models) > 1 else []
            cell = Cell(
                with_model(scenario, model),
                qemu,
                kernel,
                f"{scenario.id} [{', '.join(point)}]" if point else scenario.id,
                usdm=options.usdm,
                fresh_boot=options.fresh_boot,
                implementation=options.implementation,
                model=model,
            )
            cells.append(replace(cell, libusdm=options.libusdm) if cell.oracle == "libusdm" else cell)
    if not cells:
        raise ConfigurationError("there is no scenario to run", hint="'harness list' shows what there is")
    return cells


def prepare_cells(options: RunOptions, say: Say) -> tuple[list[Cell], Resources]:
    """Every scenario on every point, and what they need.

    Raises:
        ScenarioError, ConfigurationError, InfrastructureError: as :func:`expand`, ``resources.prepare`` and
            :func:`choose_kernels`.
    """
    cells = expand(options)
    guests = any(isinstance(cell.scenario, Scenario) for cell in cells)
    library = any(cell.oracle == "libusdm" and _wanted(cell) for cell in cells)
    cells, resources = choose_kernels(cells, options, prepare(options, say, guests=guests, library=library), say)
    return cells, with_modules(resources, [cell.kernel for cell in cells if _calls_kernel(cell)], options, say)


def choose_kernels(
    cells: list[Cell], options: RunOptions, resources: Resources, say: Say
) -> tuple[list[Cell], Resources]:
    """Where the user chose no kernel: cells that need what the default lacks, put on another.

    That is a release, options, or, of a cell whose steps run on the kernel's own functions, the test module.

    Args:
        cells: the cells, on the default kernel.
        options: whether the kernel was chosen, and whether an image may be built.
        resources: what was prepared for the default kernel.
        say: told what goes on.

    Returns:
        The cells, and the resources with the images of their kernels.

    Raises:
        InfrastructureError: such a kernel's image is not here; the message has the first scenario that needs it.
    """
    if not options.auto_kernel:
        return cells, resources
    chosen = []
    for cell in cells:
        if isinstance(cell.scenario, BareScenario) or not _wanted(cell):
            chosen.append(cell)
            continue
        needs = cell.scenario.needs
        without = lacking(needs, resources.images[cell.kernel])
        kernel = (kernel_with(needs) if without else None) or cell.kernel
        if _calls_kernel(cell) and cell.kernel not in module_kernels():
            kernel, without = module_kernels()[0], ["with a test module"]
        try:
            resources = with_images(resources, [kernel], options, say)
        except InfrastructureError as error:
            raise InfrastructureError(
                f"{cell.name} needs a kernel {' and '.join(without)}: {error.message}",
                hint=f"{error.hint}; with --kernel {cell.kernel} it is skipped" if error.hint else None,
                context=error.context,
            ) from error
        chosen.append(replace(cell, kernel=kernel))
    return chosen, resources


def _wanted(cell: Cell) -> bool:
    """Whether the cell's scenario makes sense on this implementation; else it is skipped, and needs nothing for it."""
    if isinstance(cell.scenario, BareScenario):
        return True
    return cell.scenario.needs.implementation in (None, cell.implementation)


def _calls_kernel(cell: Cell) -> bool:
    """Whether the cell's steps can run on the kernel's own functions, and are to."""
    if cell.oracle != "kernel" or isinstance(cell.scenario, BareScenario):
        return False
    return _wanted(cell) and unmet_kernel(cell.scenario) is None


def unmet(cell: Cell, resources: Resources, *, advise: bool = True) -> str | None:
    """Why a cell has to be skipped, as one line; None when it can run.

    Args:
        cell: the cell.
        resources: the builds, images and the library of the run.
        advise: also look, in recipes and caches, for a kernel that would do; the line then names it.
    """
    if isinstance(cell.scenario, BareScenario):
        return bare_unmet(cell.scenario, resources.emulations[cell.qemu])
    image = resources.images[cell.kernel]
    library = resources.library if cell.oracle == "libusdm" else None
    emulation = resources.emulations[cell.qemu]
    amd = emulation.capabilities.properties.get("amd-iommu", frozenset())
    if cell.scenario.machine.iommu == "amd" and "dma-remap" not in amd:
        return f"needs QEMU >=11 for iommu: amd, this is {emulation.build.version}, whose amd-iommu remaps no DMA"
    lacks = unmet_model(machine_spec(cell.scenario), emulation)
    # A file that names the model itself knows what that can do.
    if lacks is None and cell.model != "edu":
        lacks = unmet_steps(cell.scenario)
    if lacks is not None:
        return lacks
    reason = cell.scenario.needs.unmet(
        qemu=emulation.build.version,
        kernel=image.kernel_release,
        implementation=cell.implementation,
        libusdm=library.version if library else "",
        options=image.options,
    )
    if lacking(cell.scenario.needs, image) and _wanted(cell):
        kernel = kernel_with(cell.scenario.needs) if advise else None
        return f"{reason}; --kernel {kernel} is such a kernel" if kernel else reason
    if reason is None and cell.oracle == "kernel":
        return unmet_kernel(cell.scenario) or resources.no_module.get(cell.kernel)
    return reason or (unmet_library(cell.scenario, library.version) if library else None)


def machine_spec(scenario: Scenario) -> MachineSpec:
    """The scenario's machine as the part that starts machines takes it."""
    machine = scenario.machine
    devices = tuple(
        DeviceSpec(name, device.model, machine.address(name), device.vfs, device.of or "")
        for name, device in machine.devices.items()
    )
    buses = {device.bdf[0] for device in devices} - {0}
    highest = max((bus for bus in buses if bus <= MAX_PORTS), default=0)
    removed = {step.args_json()["device"] for step in scenario.steps if step.kind == "surprise_removal"}
    return MachineSpec(
        iommu=machine.iommu,
        aw_bits=machine.aw_bits,
        memory=machine.memory,
        cpus=machine.cpus,
        kernel_args=tuple(machine.kernel_args),
        devices=devices,
        vm=machine.vm,
        # Machines whose devices differ only in their place share a template.
        buses=4 if highest <= 4 and len(buses) <= 4 else MAX_PORTS,
        # Behind a root port a kernel looks at the functions of device 0 by itself.
        any_function=any(device.bdf[0] and device.bdf[1] for device in devices if device.model != "vf"),
        hot_plug=tuple(sorted({device.bdf[0] for device in devices if device.name in removed})),
    )
