"""Scenarios times the points of the matrix."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final, Literal

from harness.errors import ConfigurationError, InfrastructureError
from harness.image.module import module_kernels
from harness.image.recipe import recipe_for_kernel
from harness.machine.argv import lacking as lacking_of_build
from harness.machine.slots import MAX_PORTS
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.paths import scenarios_dir
from harness.results import Implementation, OracleName
from harness.run.axes import cell_name, differing, folder_name, point_words
from harness.run.bare import bare_unmet
from harness.run.kernels import KernelFinder, kernel_with, lacking
from harness.run.models import has_edu, unmet_model, unmet_steps, with_model
from harness.run.options import DmaModel, RunOptions
from harness.run.oracles import oracle_of, unmet_library
from harness.run.resources import Resources, Say, prepare, with_images, with_modules
from harness.scenario import BareScenario, Machine, Problem, Scenario, ScenarioError, find_scenarios, load_scenario
from harness.scenario.on_kernel import unmet_kernel
from harness.scenario.point import AS_WRITTEN, NOTHING_MAPPED, NotApplicable, Point, at_point

# The option that the driver of a vIOMMU is, where a kernel of an image here lacks it.
_DRIVERS: Final = {"virtio": "VIRTIO_IOMMU"}


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
        point: where on the other axes it is; ``scenario`` is as it is there.
        refused: why it is not run at this point, one line; then ``scenario`` is as its file has it.
        more: further words of :attr:`rerun`: options of the run that belong to no axis.
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
    point: Point = AS_WRITTEN
    refused: str = ""
    more: tuple[str, ...] = ()

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
        return folder_name(self.name)

    @property
    def rerun(self) -> str:
        """A command line that runs exactly this cell."""
        words = ["harness", "run", str(self.scenario.file), "--qemu", self.qemu]
        if isinstance(self.scenario, BareScenario):
            return shlex.join(words)
        words += ["--kernel", self.kernel, *point_words(self.point)]
        if self.model != "edu":
            words += ["--model", self.model]
        if self.usdm is not None:
            words += ["--usdm", str(self.usdm.absolute())]
        if self.fresh_boot:
            words.append("--fresh-boot")
        if self.implementation != "usdm":
            words += ["--implementation", self.implementation]
        if self.libusdm:
            words += ["--libusdm", self.libusdm]
        return shlex.join([*words, *self.more])


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

    A scenario that means nothing at a point is a cell all the same, which will be skipped.

    Raises:
        ScenarioError, ConfigurationError: as :func:`list_scenarios`; or there is nothing to run.
    """
    cells: list[Cell] = []
    for scenario in list_scenarios(options.paths):
        if isinstance(scenario, BareScenario):
            builds = list(dict.fromkeys(options.qemu))
            several = [{"qemu": qemu} if len(builds) > 1 else {} for qemu in builds]
            names = [cell_name(scenario.id, one) for one in several]
            cells += [Cell(scenario, qemu, "", name) for qemu, name in zip(builds, names, strict=True)]
        else:
            cells += _guest_cells(scenario, options)
    if not cells:
        raise ConfigurationError("there is no scenario to run", hint="'harness list' shows what there is")
    return cells


def _guest_cells(scenario: Scenario, options: RunOptions) -> Iterator[Cell]:
    versions = list(product(options.qemu, options.kernels))
    # One without an edu is the same on each model.
    models = options.models if has_edu(scenario) else ("edu",)
    named = differing(options.points)
    # Made once for all versions.
    made = {point: _made(scenario, point) for point in options.points}
    for (qemu, kernel), (point, (there, refused)), model in product(versions, made.items(), models):
        words = {"qemu": qemu, "kernel": kernel} if len(versions) > 1 else {}
        words |= {axis: value for axis, value in point.values.items() if axis in named}
        words |= {"model": model} if len(models) > 1 else {}
        cell = Cell(
            with_model(there, model),
            qemu,
            kernel,
            cell_name(scenario.id, words),
            usdm=options.usdm,
            fresh_boot=options.fresh_boot,
            implementation=options.implementation,
            model=model,
            point=point,
            refused=refused,
            more=options.rerun_words,
        )
        yield replace(cell, libusdm=options.libusdm) if cell.oracle == "libusdm" else cell


def _made(scenario: Scenario, point: Point) -> tuple[Scenario, str]:
    """A scenario at a point; else as it is, and why."""
    try:
        return at_point(scenario, point), ""
    except NotApplicable as error:
        return scenario, error.reason


def prepare_cells(options: RunOptions, say: Say) -> tuple[list[Cell], Resources]:
    """Every scenario on every point, and what they need.

    Raises:
        ScenarioError, ConfigurationError, InfrastructureError: as :func:`expand` and :func:`prepare_for`.
    """
    # What the user wrote is checked before anything is looked for or fetched.
    for kernel in options.kernels:
        recipe_for_kernel(kernel)
    return prepare_for(expand(options), options, say)


def prepare_for(cells: list[Cell], options: RunOptions, say: Say) -> tuple[list[Cell], Resources]:
    """What cells need, wherever they come from.

    Args:
        cells: the cells.
        options: where what is missing comes from, the accelerator, another ``usdm`` under test, and whether the kernel
            was anybody's choice. Builds, kernels, C libraries and models are those of the cells.
        say: told what goes on.

    Returns:
        The cells, each on a kernel that it can run on where nobody chose one, and what they need.

    Raises:
        ConfigurationError, InfrastructureError: as ``resources.prepare`` and :func:`choose_kernels`.
    """
    running = [cell for cell in cells if not cell.refused]
    guests = [cell for cell in running if isinstance(cell.scenario, Scenario)]
    libraries = dict.fromkeys(cell.libusdm for cell in guests if cell.oracle == "libusdm" and _wanted(cell))
    needed = replace(
        options,
        qemu=tuple(dict.fromkeys(cell.qemu for cell in cells)),
        kernels=tuple(dict.fromkeys(cell.kernel for cell in guests)) or options.kernels,
    )
    resources = prepare(needed, say, guests=bool(guests), libraries=tuple(libraries))
    cells, resources = choose_kernels(cells, options, resources, say)
    return cells, with_modules(resources, [cell.kernel for cell in cells if calls_kernel(cell)], options, say)


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
    chosen, finder = [], KernelFinder()
    for cell in cells:
        if isinstance(cell.scenario, BareScenario) or not _wanted(cell):
            chosen.append(cell)
            continue
        needs = cell.scenario.needs
        without = lacking(needs, resources.images[cell.kernel])
        kernel = (finder.kernel_with(needs) if without else None) or cell.kernel
        if calls_kernel(cell) and cell.kernel not in module_kernels():
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
    """Whether the cell's scenario makes sense on this implementation and at its point; else it is skipped.

    It needs nothing then.
    """
    if isinstance(cell.scenario, BareScenario):
        return True
    return not cell.refused and cell.scenario.needs.implementation in (None, cell.implementation)


def calls_kernel(cell: Cell) -> bool:
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
    if cell.refused:
        return cell.refused
    if isinstance(cell.scenario, BareScenario):
        return bare_unmet(cell.scenario, resources.emulations[cell.qemu])
    image = resources.images[cell.kernel]
    library = resources.library_of(cell.libusdm) if cell.oracle == "libusdm" else None
    emulation = resources.emulations[cell.qemu]
    amd = emulation.capabilities.properties.get("amd-iommu", frozenset())
    if cell.scenario.machine.iommu == "amd" and "dma-remap" not in amd:
        return f"needs QEMU >=11 for iommu: amd, this is {emulation.build.version}, whose amd-iommu remaps no DMA"
    spec = machine_spec(cell.scenario)
    driver = _DRIVERS.get(spec.iommu)
    if driver is not None and driver not in image.options:
        return f"needs a kernel with {driver} for iommu: {spec.iommu}, this is {image.kernel_release}"
    # Of a width the scenario's file says which QEMU it needs; a point has nobody who would.
    asked = cell.point.viommu is not None or spec.scalable
    lacks = lacking_of_build(spec, emulation.capabilities.properties) if asked else None
    if lacks is not None:
        return f"{lacks} (QEMU {emulation.build.version})"
    lacks = unmet_model(spec, emulation)
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
        if cell.point.cmdline == "pt":
            return NOTHING_MAPPED
        return unmet_kernel(cell.scenario) or resources.no_module.get(cell.kernel)
    return reason or (unmet_library(cell.scenario, library.version) if library else None)


def machine_spec(scenario: Scenario) -> MachineSpec:
    """The scenario's machine as the part that starts machines takes it."""
    removed = {step.args_json()["device"] for step in scenario.steps if step.kind == "surprise_removal"}
    return spec_of(scenario.machine, removed)


def spec_of(machine: Machine, removed: Collection[str] = ()) -> MachineSpec:
    """A machine as the part that starts machines takes it.

    Args:
        machine: the machine.
        removed: names of the devices that are pulled out of their slots, besides those whose ``slot`` says that they
            may be.
    """
    removed = {*removed, *(name for name, device in machine.devices.items() if device.slot)}
    devices = tuple(
        DeviceSpec(name, device.model, machine.address(name), device.vfs, device.of or "")
        for name, device in machine.devices.items()
    )
    buses = {device.bdf[0] for device in devices} - {0}
    highest = max((bus for bus in buses if bus <= MAX_PORTS), default=0)
    return MachineSpec(
        iommu=machine.iommu,
        aw_bits=machine.aw_bits,
        scalable=machine.scalable,
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
