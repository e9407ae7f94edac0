"""The faults that a scenario expects, against those that QEMU's trace has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from harness.fault import KernelFaults, describe, reason_name
from harness.fault.pci import without_domain_0
from harness.fault.trace import PAGE_SHIFT, page_of
from harness.judge.bindings import Bindings
from harness.judge.words import listed
from harness.results import Check, Evidence, FaultRecord
from harness.scenario.expect import FaultExpect, ScenarioDeviation
from harness.scenario.model import Scenario

_NAME = "faults"


class Expectation(Protocol):
    """An expected fault."""

    def matches(self, fault: FaultRecord) -> bool:
        """Whether the fault is the expected one."""

    def describe(self) -> str:
        """It in words."""


_E = TypeVar("_E", bound=Expectation)


@dataclass(frozen=True)
class _Wanted:
    """An expected fault with its names looked up."""

    expect: FaultExpect
    requester: str | None
    step: int | None
    bindings: Bindings

    def address(self, step: int) -> int | None:
        """The address that is expected of a fault in a step; None when the buffer or range has no IOVA there."""
        name = self.expect.buffer or self.expect.range
        if name is None:
            return self.expect.address
        child = self.expect.step if step == self.step else None
        base = self.bindings.iova(name, step, child)
        return None if base is None else base + self.expect.offset

    def matches(self, fault: FaultRecord) -> bool:
        """Whether the trace's fault is the expected one.

        The trace has exact addresses. So an expectation that is no page's start must be met exactly; one that is means
        the page, because that is all that the kernel's log tells and what people copy from there.
        """
        if self.step is not None and fault.step != self.step:
            return False
        if (fault.requester, fault.vendor, fault.reason) != (self.requester, self.expect.vendor, self.expect.code):
            return False
        # amd-iommu's trace does not say whether it was a read.
        if fault.access != self.expect.access and (fault.access is not None or fault.vendor != "amd"):
            return False
        address = self.address(-1 if fault.step is None else fault.step)
        if address is None or fault.address is None:
            return False
        exact = address % (1 << PAGE_SHIFT) != 0
        return fault.address == address if exact else page_of(fault.address) == page_of(address)

    def describe(self) -> str:
        expect = self.expect
        name = expect.buffer or expect.range
        place = name or f"{expect.address or 0:#x}"
        if name is not None and expect.offset:
            place += f"{expect.offset:+#x}"
        if name is not None and self.step is not None:
            address = self.address(self.step)
            place += " (no IOVA known)" if address is None else f" ({address:#x})"
        device = "" if expect.device is None else f"{expect.device} "
        requester = f"({self.requester or 'address not known'})" if device else self.requester
        step = "" if expect.step is None else f", step {expect.step}"
        return (
            f"{device}{requester} {expect.access} {place},"
            f" reason 0x{expect.code:02x} ({reason_name(expect.code, expect.vendor)}){step}"
        )


def other_faults(scenario: Scenario, evidence: Evidence) -> ScenarioDeviation | None:
    """The faults that are known to happen instead on the oracle of this evidence; None where they are the same."""
    oracle = evidence.oracle
    known = None if oracle is None else scenario.expect.deviations[oracle.name]
    return known if oracle is not None and known is not None and known.applies(oracle.version) else None


def check_faults(scenario: Scenario, evidence: Evidence, trace: Sequence[FaultRecord], kernel: KernelFaults) -> Check:
    """Check that the faults that happened are those that the scenario names, each once.

    Args:
        scenario: what is expected.
        evidence: the addresses of devices and buffers.
        trace: the trace's faults, collapsed.
        kernel: what the kernel's log says, for a scenario that expects no fault at all.
    """
    known = other_faults(scenario, evidence)
    bindings = Bindings(scenario.steps, evidence.steps)
    steps = scenario.steps_by_id()

    def wanted_of(faults: Sequence[FaultExpect]) -> list[_Wanted]:
        return [
            _Wanted(
                expect=expect,
                requester=expect.requester if expect.device is None else _address_of(expect.device, evidence),
                step=None if expect.step is None else steps.get(expect.step, -1),
                bindings=bindings,
            )
            for expect in faults
        ]

    wanted = wanted_of((known or scenario.expect).faults)
    # Faults that are also what the scenario expects of all show no difference.
    shown = known is not None and pair(wanted_of(scenario.expect.faults), trace) != ([], [])
    extra = []
    if not wanted and not trace and not kernel.silent:
        extra.append("the kernel's log tells of faults that the trace does not have: " + listed(_signs(kernel)))
    names = {_address_of(name, evidence): name for name in evidence.devices}
    ids: dict[int | None, str] = {step: name for name, step in steps.items()}
    return paired_check(
        wanted,
        trace,
        extra=extra,
        told=lambda fault: describe(fault, names.get(fault.requester, ""), ids.get(fault.step, "")),
        nothing="no fault happened: none in the trace, none in the kernel's log",
        known=known.id if known is not None and shown else "",
    )


def paired_check(
    wanted: Sequence[_E],
    trace: Sequence[FaultRecord],
    *,
    nothing: str,
    extra: Sequence[str] = (),
    told: Callable[[FaultRecord], str] = describe,
    known: str = "",
) -> Check:
    """Check that expected faults and those of a trace are the same, one to one.

    Args:
        wanted: what is expected.
        trace: the trace's faults, collapsed.
        nothing: what to say when none is expected and none happened.
        extra: problems besides.
        told: a fault of the trace in words.
        known: id of the known difference that is expected, for the check.
    """
    missing, unexpected = pair(wanted, trace)
    problems = []
    if missing:
        problems.append("missing: " + listed([one.describe() for one in missing]))
    if unexpected:
        problems.append("unexpected: " + listed([told(fault) for fault in unexpected]))
    problems += extra
    expected = listed([one.describe() for one in wanted]) or "no fault"
    observed = listed([told(fault) for fault in trace]) or "no fault in the trace"
    if not problems:
        count = len(trace)
        message = f"{count} fault{'s' * (count != 1)} as expected: {observed}" if wanted else nothing
        return Check(name=_NAME, passed=True, message=message, expected=expected, observed=observed, known=known)
    count = len(wanted)
    head = f"expected {count or 'no'} fault{'s' * (count != 1)}, observed {len(trace)}; "
    return Check(name=_NAME, passed=False, message=head + "; ".join(problems), expected=expected, observed=observed)


def pair(wanted: Sequence[_E], trace: Sequence[FaultRecord]) -> tuple[list[_E], list[FaultRecord]]:
    """Give each expected fault one of the trace's own; what is left over on either side.

    An expectation that fits several faults must not take the only one that fits another, so the pairs are a maximum
    matching: each expectation in turn looks for a free fault, over those whose owners can move to another.
    """
    fits = [[f for f, fault in enumerate(trace) if one.matches(fault)] for one in wanted]
    owner: dict[int, int] = {}
    missing: list[_E] = []
    for start in range(len(wanted)):
        came_from: dict[int, int] = {}  # fault to the expectation that reached it
        queue = deque([start])
        free: int | None = None
        while queue and free is None:
            one = queue.popleft()
            for fault in fits[one]:
                if fault in came_from:
                    continue
                came_from[fault] = one
                if fault not in owner:
                    free = fault
                    break
                queue.append(owner[fault])
        if free is None:
            missing.append(wanted[start])
        while free is not None:
            one = came_from[free]
            moved = next((fault for fault, holder in owner.items() if holder == one), None)
            owner[free] = one
            if moved is not None:
                del owner[moved]
            free = moved
    return missing, [fault for f, fault in enumerate(trace) if f not in owner]


def _address_of(device: str, evidence: Evidence) -> str | None:
    """A device's PCI address as the trace writes it, without the domain 0."""
    address = evidence.devices.get(device)
    return None if address is None else without_domain_0(address).lower()


def _signs(kernel: KernelFaults) -> list[str]:
    """What the kernel's log says of faults, in words."""
    signs = [describe(record) for record in kernel.records]
    if kernel.suppressed:
        signs.append(f"{kernel.suppressed} callbacks suppressed")
    signs += [f"fault status register {s.value:#x}" for s in kernel.status if s.pending or s.overflow]
    return signs
