"""Whether the devices whose models run beside QEMU were there and whole, but where a scenario takes them away."""

from __future__ import annotations

from collections.abc import Iterator

from harness.fault.pci import without_domain_0
from harness.judge.words import listed
from harness.results import Check, Evidence, StepEvidence

_EXPECTED = "a device that is there, and whose model does its work"


def check_presence(evidence: Evidence) -> Iterator[Check]:
    """One check for each device: failed from where QEMU and its model parted, or the model failed, unasked.

    Args:
        evidence: what ran.
    """
    for name in evidence.served:
        place, problems = _first(name, evidence)
        observed = listed(problems) or "connected throughout, unless a step took it away"
        yield Check(
            name=f"device {name}: presence",
            passed=not problems,
            message=f"expected {_EXPECTED}, observed {observed}" if problems else observed,
            expected=_EXPECTED,
            observed=observed,
            step=place,
        )


def _first(name: str, evidence: Evidence) -> tuple[int | None, list[str]]:
    """The first step at which something was wrong with a device, and what."""
    for seen in evidence.steps:
        news = seen.devices.get(name)
        gone = _taken_away(name, seen, evidence)
        if news is not None:
            problems = [f"its model failed: {news.failure}"] if news.failure else []
            if not gone:
                problems += [f"the server says: {one}" for one in news.complaints]
                problems += [] if news.connected else ["QEMU and the model are not connected any more"]
            if problems:
                return seen.index, [f"after step {seen.index} ({seen.kind}): {one}" for one in problems]
        if gone:
            return None, []
    return None, []


def _taken_away(name: str, seen: StepEvidence, evidence: Evidence) -> bool:
    """Whether a step takes a device away, alone or with the card that it is on."""
    other = seen.args.get("device")
    if seen.kind == "vanish":
        return other == name
    return seen.kind == "surprise_removal" and _slot(evidence, str(other)) == _slot(evidence, name)


def _slot(evidence: Evidence, name: str) -> str:
    return without_domain_0(evidence.devices.get(name, name)).rpartition(".")[0]
