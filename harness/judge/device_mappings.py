"""The mappings that a device has seen against those that the program believes in, after every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.judge.device_ranges import Difference, differences, expand, outside
from harness.judge.steps import deviation
from harness.judge.words import listed
from harness.results import Belief, Check, Evidence, Oracle, Run, StepEvidence
from harness.scenario.steps import Nested, Step

_UNITS = ((30, "G"), (20, "M"), (10, "K"))


def check_mappings(steps: Sequence[Step], evidence: Evidence, known: str = "") -> tuple[list[Check], tuple[str, ...]]:
    """Check the mappings of every device whose model saw them.

    Args:
        steps: the scenario's steps, for what is known of an oracle.
        evidence: what ran.
        known: id of the oracle's difference that changes the faults of the whole scenario; empty for none.

    Returns:
        A passed check for each device that saw what it should throughout, else a failed one for each step after which
        something new was wrong; and notes for people.
    """
    checks: list[Check] = []
    notes: list[str] = []
    for name in evidence.served:
        found = _Device(name, steps, evidence.oracle, known)
        for seen in evidence.steps:
            checks += found.step(seen)
        checks += found.summary()
        notes += found.notes
    return checks, tuple(notes)


class _Device:
    """One device over the steps."""

    def __init__(self, name: str, steps: Sequence[Step], oracle: Oracle | None, known: str) -> None:
        self.name = name
        self.notes: list[str] = []
        self._steps = steps
        self._oracle = oracle
        self._known_of_all = known
        self._ranges: tuple[Run, ...] | None = None
        self._belief = Belief(unknown="nobody was asked what is mapped")
        self._passed_on = False
        self._reason = ""
        self._before: list[Difference] = []
        self._same = False  # nothing has changed since it was compared
        self._failed = False
        self._compared = self._most = 0

    def step(self, seen: StepEvidence) -> Iterator[Check]:
        """What is wrong after a step and was not before."""
        news = seen.devices.get(self.name)
        if news is None:
            return
        self._same = self._same and news.ranges is None and news.believed is None
        self._ranges = news.ranges if news.ranges is not None else self._ranges
        self._belief = news.believed or self._belief
        if seen.kind == "pass_through" and seen.error is None and seen.args.get("device") == self.name:
            self._passed_on = True
        reason = self._not_comparable(connected=news.connected)
        if reason != self._reason and reason:
            where = f"step {seen.index} ({seen.kind})"
            self.notes.append(f"{self.name}: its mappings are not compared from {where} on: {reason}")
        self._reason = reason
        if reason:
            return
        if self._belief.failure:
            yield from self._no_word(seen, self._belief.failure)
            return
        self._compared += 1
        if self._same:  # there may be 65,535 ranges
            return
        self._same = True
        found = differences(self._belief, self._ranges or ())
        fresh, self._before = outside(found, self._before), found
        self._most = max(self._most, sum(run[3] for run in self._ranges or ()))
        if fresh:
            yield self._wrong(seen, fresh)

    def summary(self) -> Iterator[Check]:
        """The word on a device that was right throughout."""
        if self._compared and not self._failed:
            plural = "s" * (self._most != 1)
            observed = (
                f"after each of {self._compared} steps it could reach just that, {self._most} range{plural} at most"
            )
            if not self._belief.exact:
                observed = observed.replace("just", "at least")
            yield Check(
                name=f"device {self.name}: mappings",
                passed=True,
                message=observed,
                expected="what the program believes to be mapped",
                observed=observed,
            )

    # ---- one step

    def _not_comparable(self, *, connected: bool) -> str:
        """Why nothing can be compared; empty when it can."""
        if not connected:
            return "the device is gone"
        if self._passed_on:
            return "it belongs to the virtual machine"
        return self._belief.unknown

    def _no_word(self, seen: StepEvidence, failure: str) -> Iterator[Check]:
        if self._failed:
            return
        self._failed = True
        expected = "a program that says what it has mapped"
        yield self._check(seen, expected, failure.strip().splitlines()[-1], "")

    def _wrong(self, seen: StepEvidence, fresh: list[Difference]) -> Check:
        self._failed = True
        known = self._known(seen.index)
        expected, observed = (listed([words(one) for one in fresh]) for words in (self._expected, self._observed))
        return self._check(seen, expected, observed, known)

    def _check(self, seen: StepEvidence, expected: str, observed: str, known: str) -> Check:
        message = f"expected {expected}, observed {observed}"
        return Check(
            name=f"device {self.name}: mappings after step {seen.index} ({seen.kind})"
            + (f", known as {known}" if known else ""),
            passed=bool(known),
            message=message,
            expected=expected,
            observed=observed,
            step=seen.index,
            known=known,
        )

    def _known(self, index: int) -> str:
        """The known difference of the oracle that stands at a step, or at one inside it, or else at the scenario."""
        steps = self._steps[index : index + 1]
        steps = (*steps, *(inner for step in steps if isinstance(step.args, Nested) for inner in step.args.steps))
        found = (deviation(step, self._oracle) for step in steps)
        return next((known.id for known in found if known is not None), self._known_of_all)

    def _expected(self, one: Difference) -> str:
        """What the program believes there; of a range that is partly right, the whole of it."""
        if one.kind in ("leak", "missing"):
            return f"{one.believed or 'nothing'} at {_span(one.first, one.end)}"
        first, end, access = next(whole for whole in expand(self._belief.runs) if whole[0] <= one.first <= whole[1])
        return f"{access} at {_span(first, end)}"

    def _observed(self, one: Difference) -> str:
        where = _span(one.first, one.end)
        return {
            "leak": f"a leak: {one.seen} at {where}",
            "too long": f"a mapping that is too long: {one.seen} at {where} too",
            "missing": f"no mapping at {where}",
            "too short": f"a mapping that is too short: nothing at {where}",
            "wrong permission": f"{one.seen} at {where}",
        }[one.kind]


def _span(first: int, end: int) -> str:
    """``0x200000-0x201fff (8K)``."""
    size = end - first
    amount = next((f"{size >> shift}{name}" for shift, name in _UNITS if size % (1 << shift) == 0), str(size))
    return f"{first:#x}-{end - 1:#x} ({amount})"
