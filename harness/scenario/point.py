"""A scenario at a point of a matrix: on another vIOMMU, command line or number of CPUs than its file says, or as it is.

It is checked again there as its file is. What a scenario writes down itself is what it is about, and is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from harness.errors import ConfigurationError
from harness.scenario.base import frozen
from harness.scenario.crosscheck import cross_check
from harness.scenario.explain import explain
from harness.scenario.machine import Machine
from harness.scenario.model import Scenario
from harness.scenario.problems import Problem
from harness.scenario.steps import NESTED
from harness.scenario.yaml_marks import Document

_MIB: Final = 1 << 20
_HUGEPAGE: Final = 2 * _MIB
# What the kernel, the initramfs and the programs take of a guest's memory; the rest may be hugepages.
_OWN_MEMORY: Final = 256 * _MIB


@dataclass(frozen=True, slots=True)
class Viommu:
    """A value of the axis ``viommu``: what it makes of a machine's keys of these names."""

    iommu: str
    aw_bits: int = 48
    scalable: bool = False


VIOMMUS: Final[Mapping[str, Viommu]] = {
    "intel": Viommu("intel"),
    "intel-39": Viommu("intel", 39),
    "intel-scalable": Viommu("intel", scalable=True),
    "intel-scalable-39": Viommu("intel", 39, scalable=True),
    "virtio": Viommu("virtio"),
    "virtio-39": Viommu("virtio", 39),
    "amd": Viommu("amd"),
    "none": Viommu("none"),
}
"""The values of the axis ``viommu``."""

CMDLINES: Final[Mapping[str, str]] = {
    "default": "",
    "strict": "iommu.strict=1",
    "lazy": "iommu.strict=0",
    "pt": "iommu.passthrough=1",
}
"""The values of the axis ``cmdline`` and the word that each adds to the kernel's command line."""

NOTHING_MAPPED: Final = "with iommu.passthrough=1 the kernel's own drivers map nothing"
"""Why what is about the kernel's own mappings is not run at ``cmdline: pt``."""

# The error of USDM that says that there are none.
_NO_HUGEPAGES: Final = "HugepagesNotConfigured"
SAME_CMDLINE: Final = {"iommu=pt": "pt", "iommu=nopt": "", "iommu.passthrough=0": ""} | {
    word: name for name, word in CMDLINES.items() if word
}
"""Words that say the same as a value of the axis ``cmdline``; or that contradict every one: empty."""

_ABOUT_IOMMU: Final = ("iommu", "iommu.strict", "iommu.passthrough", "intel_iommu", "amd_iommu")


@dataclass(frozen=True, slots=True)
class Point:
    """What of a matrix's point changes a scenario's machine; None is as the scenario has it.

    Args:
        viommu: one of :data:`VIOMMUS`.
        cmdline: one of :data:`CMDLINES`.
        hugepages: how many pages of 2 MiB the kernel sets aside when it boots, >= 0.
        vcpus: number of virtual CPUs, 1 to 64.
    """

    viommu: str | None = None
    cmdline: str | None = None
    hugepages: int | None = None
    vcpus: int | None = None

    @property
    def values(self) -> dict[str, str]:
        """Axis to value, of the axes that have one, in the order in which a point is written."""
        found = {"viommu": self.viommu, "cmdline": self.cmdline, "hugepages": self.hugepages, "vcpus": self.vcpus}
        return {axis: str(value) for axis, value in found.items() if value is not None}


AS_WRITTEN: Final = Point()
"""The point at which everything is as its scenario has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a scenario expects at a point where that is something else.

    Args:
        why: why it differs, one line.
        reasons: fault reason as in the file, to the one that there is instead (VT-d's code, or a name).
        expect: instead of the scenario's whole ``expect``; None keeps that.
        steps: id of a step, or its position from 0, to what is there instead of its ``expect``.
    """

    why: str
    reasons: Mapping[int | str, int | str] = field(default_factory=dict)
    expect: Mapping[str, Any] | None = None
    steps: Mapping[int | str, Mapping[str, Any]] = field(default_factory=dict)


class NotApplicable(Exception):
    """A scenario that means nothing at a point.

    Attributes:
        reason: why, one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def machine_at(machine: Machine, point: Point) -> Machine:
    """A machine at a point; the same object where the point changes nothing.

    Raises:
        NotApplicable: the machine writes down something else, or cannot be so.
        ConfigurationError: the point names an unknown value.
    """
    changes = _viommu(machine, point.viommu) | _cpus(machine, point.vcpus)
    words = [*_cmdline(machine, point.cmdline), *_hugepages(machine, point.hugepages)]
    if words:
        changes["kernel_args"] = (*machine.kernel_args, *words)
    if not changes:
        return machine
    written = {name: getattr(machine, name) for name in machine.model_fields_set}
    try:
        return Machine.model_validate(written | changes)
    except ValidationError as error:
        raise NotApplicable("; ".join(_said(error))) from None


def at_point(scenario: Scenario, point: Point, rule: Rule | None = None) -> Scenario:
    """A scenario at a point, checked again; the same object where point and rule change nothing.

    Args:
        scenario: the scenario, loaded from a file.
        point: the point.
        rule: what it expects there, where that differs.

    Raises:
        NotApplicable: it means nothing there.
        ConfigurationError: the point names an unknown value, or the rule does not fit the scenario.
    """
    machine = machine_at(scenario.machine, point)
    _check_steps(scenario, point, changed=machine is not scenario.machine)
    other = machine.iommu != scenario.machine.iommu
    if other and machine.iommu == "none":
        raise NotApplicable(f"the scenario is about iommu: {scenario.machine.iommu}")
    if machine is scenario.machine and rule is None:
        return scenario
    if other and scenario.expect.kernel_log and (rule is None or rule.expect is None):
        raise NotApplicable(f"it expects lines of the kernel's log, which iommu: {machine.iommu} words otherwise")
    if not other and rule is None:
        # Of a machine only its vIOMMU, its devices and what is inside it say what may stand in the rest.
        return scenario.model_copy(update={"machine": machine})
    data = {**scenario.data, "machine": {**scenario.data["machine"], **_as_data(scenario.machine, machine)}}
    checked = _checked(scenario, data, rule)
    # The devices are those of the scenario as it was given, which may be of another model than its file's.
    kept = machine.model_copy(update={"devices": scenario.machine.devices})
    return scenario.model_copy(update={"machine": kept, "expect": checked.expect, "steps": checked.steps})


def _checked(scenario: Scenario, data: dict[str, Any], rule: Rule | None) -> Scenario:
    """What was made of a file's data, with a rule: checked as the file was."""
    if rule is None:
        return _valid(scenario, data)
    as_written = data
    data = {**data, "expect": _with_reasons(data.get("expect", {}), rule.reasons)}
    caused = _wrong(scenario, data)[1] if rule.reasons else ()
    if caused:
        # Of what the file says anyway the rule is not to be blamed.
        before = _wrong(scenario, as_written)[1]
        caused = tuple(one for one in caused if one not in before)
    if caused:
        raise ConfigurationError(f"the reasons that {scenario.id} is to expect ({rule.why}): {'; '.join(caused)}")
    if rule.expect is None and not rule.steps:
        return _valid(scenario, data)
    # Without what the rule replaces: so the rule is blamed for nothing but itself.
    _valid(scenario, {**data, "expect": {}} if rule.expect is not None else data)
    if rule.expect is not None:
        data["expect"] = frozen(rule.expect)
    data["steps"] = _with_steps(scenario, data["steps"], rule)
    try:
        return _valid(scenario, data)
    except NotApplicable as error:
        raise ConfigurationError(f"what {scenario.id} is to expect instead ({rule.why}): {error.reason}") from None


def _valid(scenario: Scenario, data: dict[str, Any]) -> Scenario:
    checked, problems = _wrong(scenario, data)
    if problems or checked is None:
        raise NotApplicable("; ".join(problems))
    return checked


def _wrong(scenario: Scenario, data: dict[str, Any]) -> tuple[Scenario | None, tuple[str, ...]]:
    """A file's data as a scenario, and everything that is wrong with it."""
    document = Document(data)
    problems: list[Problem] = []
    checked = None
    try:
        checked = Scenario.model_validate(data)
    except ValidationError as error:
        problems += explain(document, scenario.file, error)
    problems += cross_check(document, scenario.file)
    return checked, tuple(dict.fromkeys(one.message for one in problems))


def _viommu(machine: Machine, name: str | None) -> dict[str, Any]:
    """The keys of a machine that a value of the axis changes."""
    if name is None:
        return {}
    if name not in VIOMMUS:
        raise ConfigurationError(f"there is no viommu '{name}'", hint=f"there are {', '.join(VIOMMUS)}")
    wanted = VIOMMUS[name]
    if machine.iommu not in (wanted.iommu, "intel"):
        raise NotApplicable(f"the scenario is about iommu: {machine.iommu}")
    for key in ("aw_bits", "scalable"):
        value = getattr(machine, key)
        if key in machine.model_fields_set and value != getattr(wanted, key):
            raise NotApplicable(f"the scenario is about {key}: {str(value).lower()}")
    return {
        key: getattr(wanted, key)
        for key in ("iommu", "aw_bits", "scalable")
        if getattr(machine, key) != getattr(wanted, key)
    }


def _cpus(machine: Machine, wanted: int | None) -> dict[str, Any]:
    if wanted is None or wanted == machine.cpus:
        return {}
    if "cpus" in machine.model_fields_set:
        raise NotApplicable(f"the scenario is about cpus: {machine.cpus}")
    return {"cpus": wanted}


def _cmdline(machine: Machine, name: str | None) -> list[str]:
    """The words that a value of the axis adds."""
    if name is None:
        return []
    if name not in CMDLINES:
        raise ConfigurationError(f"there is no cmdline '{name}'", hint=f"there are {', '.join(CMDLINES)}")
    word = CMDLINES[name]
    if not word:
        return []
    if machine.iommu == "none":
        raise NotApplicable(f"there is no IOMMU that {word} could be about")
    own = [one for one in machine.kernel_args if one.partition("=")[0] in _ABOUT_IOMMU]
    if any(SAME_CMDLINE.get(one) != name for one in own):
        raise NotApplicable(f"the scenario is about {' '.join(own)}")
    return [] if own else [word]


def _hugepages(machine: Machine, wanted: int | None) -> list[str]:
    """The words that so many hugepages add; a kernel has none by itself."""
    if wanted is None:
        return []
    own = [one for one in machine.kernel_args if one.partition("=")[0] in ("hugepages", "hugepagesz")]
    if own:
        if own == [f"hugepages={wanted}"]:
            return []
        raise NotApplicable(f"the scenario is about {' '.join(own)}")
    if wanted and wanted * _HUGEPAGE > machine.memory - _OWN_MEMORY:
        size = f"{machine.memory // _MIB} MiB of memory"
        raise NotApplicable(f"{wanted} hugepages of 2 MiB leave too little of its {size}")
    return [f"hugepages={wanted}"] if wanted else []


def _check_steps(scenario: Scenario, point: Point, *, changed: bool) -> None:
    """Refuse a point that a step would undo, or that takes away what a step is about."""
    if point.hugepages is not None and scenario.uses("hugepages"):
        raise NotApplicable("a step of the scenario says how many hugepages there are")
    if point.hugepages and any(step.expect.error == _NO_HUGEPAGES for step in scenario.steps):
        raise NotApplicable("the scenario is about a kernel without hugepages")
    if changed and point.cmdline == "pt" and scenario.uses("kernel_driver"):
        raise NotApplicable(NOTHING_MAPPED)


def _as_data(before: Machine, after: Machine) -> dict[str, Any]:
    """What differs between two machines, as it would stand in a file."""
    keys = ("iommu", "aw_bits", "scalable", "cpus", "kernel_args")
    return {key: getattr(after, key) for key in keys if getattr(after, key) != getattr(before, key)}


def _said(error: ValidationError) -> Iterator[str]:
    for one in error.errors(include_url=False):
        yield str(one["msg"])


def _with_reasons(expect: Mapping[str, Any], reasons: Mapping[int | str, int | str]) -> dict[str, Any]:
    """The data of an ``expect`` with other fault reasons; also of what an oracle does instead."""
    changed = dict(expect)
    for key, value in expect.items():
        if key == "faults":
            changed[key] = tuple({**one, "reason": reasons.get(one["reason"], one["reason"])} for one in value)
        elif isinstance(value, Mapping):
            changed[key] = _with_reasons(value, reasons)
    return changed


def _with_steps(scenario: Scenario, steps: tuple[dict[str, Any], ...], rule: Rule) -> tuple[dict[str, Any], ...]:
    """The data of steps with other expectations.

    Raises:
        ConfigurationError: there is no such step.
    """
    left = dict(rule.steps)

    def changed(step: dict[str, Any], position: int | None) -> dict[str, Any]:
        for key in (step.get("id"), position):
            if key is not None and key in left:
                step = {**step, "expect": frozen(left.pop(key))}
        for kind in NESTED:
            if kind in step:
                inner = tuple(changed(one, None) for one in step[kind]["steps"])
                step = {**step, kind: {**step[kind], "steps": inner}}
        return step

    made = tuple(changed(step, position) for position, step in enumerate(steps))
    if left:
        names = ", ".join(str(name) for name in left)
        hint = f"it has the steps 0 to {len(steps) - 1}"
        known = sorted(scenario.steps_by_id())
        hint += f" and the ids {', '.join(known)}" if known else ""
        raise ConfigurationError(f"{scenario.id} has no step {names} ({rule.why})", hint=hint)
    return made
