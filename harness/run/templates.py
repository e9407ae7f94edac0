"""The templates in the cache: what scenarios need, what is there, making it ahead of a run, removing the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

from harness.errors import ConfigurationError, HarnessError
from harness.guest.freeze import get_template, ingredients
from harness.guest.guest import GuestPlan
from harness.guest.payload import build_payload
from harness.image.build import Image, find_image
from harness.image.recipe import load_recipe, recipe_names
from harness.machine.accel import Accelerator, Decision
from harness.machine.builds import list_builds
from harness.machine.probe import capabilities
from harness.machine.snapshot import can_load
from harness.machine.spec import MachineSpec
from harness.machine.template import Template, find_template, list_templates, prune_templates
from harness.run.cells import Cell, list_scenarios, machine_spec, prepare_cells, unmet
from harness.run.options import RunOptions
from harness.run.resources import Emulation, Resources, prepare
from harness.scenario import BareScenario, Scenario

Say = Callable[[str], None]

# A template's guest leaves its files in the template; the plan's own folder is not used.
_NO_FOLDER = Path("-")
_ACCELERATORS: tuple[Accelerator, ...] = ("tcg", "kvm")


@dataclass(frozen=True, slots=True)
class Listed:
    """A template in the cache.

    Args:
        template: the template.
        current: the project's scenarios would be cloned from it as things are now.
        disk_bytes: what it takes on the disk.
    """

    template: Template
    current: bool
    disk_bytes: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        template = self.template
        return {
            "key": template.key,
            "qemu": template.facts["qemu"],
            "kernel": kernel_of(template),
            "accelerator": template.facts["accelerator"],
            "machine": template.facts["machine"],
            "method": str(template.method),
            "disk_bytes": self.disk_bytes,
            "created": template.created,
            "current": self.current,
            "folder": str(template.folder),
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """A template that scenarios need.

    Args:
        key: its key.
        plan: one of the guests that are cloned from it.
        kernel: release of its kernel.
        scenarios: names of the cells that are cloned from it.
    """

    key: str
    plan: GuestPlan
    kernel: str
    scenarios: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, object]:
        """What it is made of, by name, for people."""
        return ingredients(self.plan).facts


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run needs.

    Args:
        templates: the templates, those that the first cells need first.
        skipped: name of each cell that would be skipped, and why.
    """

    templates: list[Wanted]
    skipped: dict[str, str]


@dataclass(frozen=True, slots=True)
class Built:
    """What became of a template that was needed.

    Args:
        wanted: what was needed.
        state: ``here`` already, ``made`` now, or ``failed``.
        seconds: how long that took.
        disk_bytes: what it takes on the disk, 0 for one that could not be made.
        error: why it could not be made.
    """

    wanted: Wanted
    state: Literal["here", "made", "failed"]
    seconds: float
    disk_bytes: int = 0
    error: HarnessError | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        facts = self.wanted.facts
        return {
            "key": self.wanted.key,
            "state": self.state,
            "qemu": facts["qemu"],
            "kernel": self.wanted.kernel,
            "accelerator": facts["accelerator"],
            "machine": facts["machine"],
            "scenarios": self.wanted.scenarios,
            "seconds": round(self.seconds, 3),
            "disk_bytes": self.disk_bytes,
            "failure_class": str(self.error.failure_class) if self.error else None,
            "message": self.error.message if self.error else "",
            "hint": self.error.hint if self.error else None,
        }


def kernel_of(template: Template) -> str:
    """The release of a template's kernel, as the guest itself said it."""
    return template.hello.partition(" ")[0]


def list_known() -> list[Listed]:
    """All templates, newest first.

    Raises:
        ScenarioError: the project's scenarios are wrong, so what they need is not known.
        ConfigurationError: there is no ``usdm`` package.
    """
    found = list_templates()
    keys = current_keys() if found else set()
    return [Listed(one, one.key in keys, one.disk_bytes) for one in found]


def current_keys() -> set[str]:
    """The keys of all templates that the project's scenarios, or a shell, could be cloned from as things are now.

    That is with the working tree's ``usdm``, and every QEMU build, image and accelerator that may be asked for. It
    makes no difference what the steps run on.

    Raises:
        ScenarioError, ConfigurationError: as :func:`list_known`.
    """
    scenarios = [one for one in list_scenarios(()) if isinstance(one, Scenario)]
    keys = set()
    images, payload = _images_here(), build_payload()
    for accelerator in _ACCELERATORS:
        resources = Resources(_emulations_here(accelerator), images, payload)
        for qemu, kernel in product(resources.emulations, images):
            # One for the C library alone is cloned from its machine's template as well.
            ons = [one.needs.implementation or "usdm" for one in scenarios]
            cells = [Cell(one, qemu, kernel, one.id, implementation=on) for one, on in zip(scenarios, ons, strict=True)]
            keys |= _keys_of(cells, resources) | _shell_keys(resources, qemu, kernel)
    return keys


def _keys_of(cells: list[Cell], resources: Resources) -> set[str]:
    """The keys of the templates that cells need, without those that a build cannot have."""
    try:
        return {wanted.key for wanted in needs_of(cells, resources, advise=False).templates}
    except ConfigurationError:
        # One at a time takes longer, and loses only the machine that this build lacks something for.
        if len(cells) < 2:
            return set()
        return set().union(*(_keys_of([cell], resources) for cell in cells))


def _shell_keys(resources: Resources, qemu: str, kernel: str) -> set[str]:
    try:
        return {_shell_key(resources, qemu, kernel)}
    except ConfigurationError:  # the host's own QEMU may lack what a vIOMMU needs
        return set()


def default_key() -> str:
    """The key of the template that ``harness run`` and ``harness shell`` without options use.

    Raises:
        ConfigurationError, InfrastructureError: what it is made of is not here.
    """
    options = RunOptions()
    return _shell_key(prepare(options, lambda text: None), options.qemu[0], options.kernels[0])


def find_needs(options: RunOptions, say: Say) -> Needs:
    """What a run with these options needs. Nothing is made yet but what ``--fetch`` asks for.

    Raises:
        ScenarioError, ConfigurationError: what was asked for is wrong.
        InfrastructureError: something is missing or damaged; the hint says how to get it.
    """
    return needs_of(*prepare_cells(options, say))


def needs_of(cells: Iterable[Cell], resources: Resources, *, advise: bool = True) -> Needs:
    """What cells need: the templates of those that are cloned, each once.

    Args:
        cells: the cells.
        resources: what was prepared for them.
        advise: see :func:`harness.run.cells.unmet`.
    """
    needs = Needs([], {})
    by_machine: dict[tuple[MachineSpec, str, str], Wanted] = {}
    by_key: dict[str, Wanted] = {}
    for cell in cells:
        if isinstance(cell.scenario, BareScenario):
            continue
        image = resources.images[cell.kernel]
        reason = unmet(cell, resources, advise=advise)
        spec = machine_spec(cell.scenario)
        if reason:
            needs.skipped[cell.name] = reason
        elif can_load(resources.emulations[cell.qemu].capabilities, spec):
            machine = (spec.frozen, cell.qemu, cell.kernel)
            if machine not in by_machine:
                plan = resources.plan(spec.frozen, cell.qemu, cell.kernel, _NO_FOLDER)
                key = ingredients(plan).key
                by_machine[machine] = by_key.setdefault(key, Wanted(key, plan, image.kernel_release))
            by_machine[machine].scenarios.append(cell.name)
    needs.templates.extend(by_key.values())
    return needs


def build_template(wanted: Wanted, options: RunOptions, say: Say) -> Built:
    """Make a template, unless it is there. What goes wrong is in the result.

    Args:
        wanted: the template.
        options: how long its guest may boot.
        say: told what takes time.
    """
    started = time.monotonic()
    try:
        found = find_template(wanted.key, say)
        template = found or get_template(wanted.plan, options.boot_timeout, say)
    except HarnessError as error:
        return Built(wanted, "failed", time.monotonic() - started, error=error)
    state: Literal["here", "made"] = "here" if found else "made"
    return Built(wanted, state, time.monotonic() - started, template.disk_bytes)


def prune(say: Say, *, everything: bool = False) -> tuple[list[Listed], int]:
    """Remove the templates that are not current, or all; gives those that were removed, and how many are left.

    Raises:
        ScenarioError, ConfigurationError: as :func:`list_known`; not with ``everything``.
        InfrastructureError: the cache cannot be written.
    """
    # By what is needed, not by what is there: another process may be making one just now.
    keep = set() if everything else current_keys()
    known = [Listed(template, template.key in keep, template.disk_bytes) for template in list_templates()]
    removed = set(prune_templates(keep, say))
    return [one for one in known if one.template.key in removed], len(list_templates())


def _shell_key(resources: Resources, qemu: str, kernel: str) -> str:
    """The key of the template for the machine that a shell has when no scenario is named."""
    return ingredients(resources.plan(MachineSpec(), qemu, kernel, _NO_FOLDER)).key


def _emulations_here(accelerator: Accelerator) -> dict[str, Emulation]:
    """The builds that are here; one that does not run has no templates."""
    found = {}
    for build in list_builds():
        try:
            found[build.name] = Emulation(build, capabilities(build), Decision(accelerator, ""))
        except HarnessError:
            continue
    return found


def _images_here() -> dict[str, Image]:
    """The images that are here and whole, by the kernel that they are asked for by."""
    found = {}
    for name in recipe_names():
        try:
            found[load_recipe(name).kernel] = find_image(name)
        except HarnessError:
            continue
    return found
