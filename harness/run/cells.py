"""Scenarios times the points of the matrix."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.paths import scenarios_dir
from harness.run.options import Implementation, RunOptions
from harness.run.resources import Resources
from harness.scenario import Problem, Scenario, ScenarioError, find_scenarios, load_scenario
from harness.scenario.values import satisfies

# Kinds of steps that not every version of the C library has a function for.
_SINCE = {"map": ">=26.02", "unmap": ">=26.02", "map_each": ">=26.02", "unmap_each": ">=26.02", "threads": ">=26.02"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario on one point of the matrix.

    Args:
        scenario: the scenario.
        qemu: name of the QEMU build.
        kernel: version of the guest's kernel, as in the image recipes.
        name: the scenario's id, with the point behind it where there is more than one.
        usdm: another ``usdm`` package that is under test, or None.
        fresh_boot: its guest is booted although it could be cloned.
        implementation: what the steps run on.
        libusdm: which C library, where one runs.
    """

    scenario: Scenario
    qemu: str
    kernel: str
    name: str
    usdm: Path | None = None
    fresh_boot: bool = False
    implementation: Implementation = "usdm"
    libusdm: str = ""

    @property
    def folder_name(self) -> str:
        """A name for its run folder, without slashes."""
        return self.name.replace("/", ".").replace(" ", "-").replace("[", "").replace("]", "").replace(",", "")

    @property
    def rerun(self) -> str:
        """A command line that runs exactly this cell."""
        words = ["harness", "run", str(self.scenario.file), "--qemu", self.qemu, "--kernel", self.kernel]
        if self.usdm is not None:
            words += ["--usdm", str(self.usdm)]
        if self.fresh_boot:
            words.append("--fresh-boot")
        if self.implementation != "usdm":
            words += ["--implementation", self.implementation, "--libusdm", self.libusdm]
        return shlex.join(words)


def list_scenarios(paths: tuple[Path, ...]) -> list[Scenario]:
    """Load scenarios.

    Args:
        paths: files and folders; empty means those that come with the project.

    Raises:
        ScenarioError: files that are wrong; all problems of all files at once.
        ConfigurationError: a path that does not exist or has no scenario.
    """
    files = find_scenarios(list(paths) or [scenarios_dir()])
    scenarios: list[Scenario] = []
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
    """Every scenario on every point.

    Raises:
        ScenarioError, ConfigurationError: as :func:`list_scenarios`; or there is nothing to run.
    """
    points = [(qemu, kernel) for qemu in options.qemu for kernel in options.kernels]
    cells = []
    for scenario in list_scenarios(options.paths):
        for qemu, kernel in points:
            name = scenario.id if len(points) == 1 else f"{scenario.id} [qemu {qemu}, kernel {kernel}]"
            cells.append(
                Cell(
                    scenario,
                    qemu,
                    kernel,
                    name,
                    usdm=options.usdm,
                    fresh_boot=options.fresh_boot,
                    implementation=options.implementation,
                    libusdm="" if options.implementation == "usdm" else options.libusdm,
                )
            )
    if not cells:
        raise ConfigurationError("there is no scenario to run", hint="'harness list' shows what there is")
    return cells


def unmet(cell: Cell, resources: Resources) -> str | None:
    """Why a cell has to be skipped, as one line; None when it can run.

    Args:
        cell: the cell.
        resources: the builds, images and the library of the run.
    """
    library = resources.library
    reason = cell.scenario.needs.unmet(
        qemu=resources.emulations[cell.qemu].build.version,
        kernel=resources.images[cell.kernel].kernel_release,
        implementation=cell.implementation,
        libusdm=library.version if library else "",
    )
    if reason or library is None:
        return reason
    for kind, since in _SINCE.items():
        if cell.scenario.uses(kind) and not satisfies(library.version, since):
            return f"libusdm {library.version} has no function for the step {kind}"
    return None


def machine_spec(scenario: Scenario) -> MachineSpec:
    """The scenario's machine as the part that starts machines takes it."""
    machine = scenario.machine
    devices = tuple(
        DeviceSpec(name, device.model, machine.address(name), device.vfs, device.of or "")
        for name, device in machine.devices.items()
    )
    highest = max((device.bdf[0] for device in devices), default=0)
    return MachineSpec(
        iommu=machine.iommu,
        aw_bits=machine.aw_bits,
        memory=machine.memory,
        cpus=machine.cpus,
        kernel_args=tuple(machine.kernel_args),
        devices=devices,
        vm=machine.vm,
        # Machines whose devices differ only in their place share a template.
        buses=4 if highest <= 4 else 8,
    )
