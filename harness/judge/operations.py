"""What a qat says of the requests that it did, against what is expected."""

from __future__ import annotations

from collections.abc import Iterator

from harness.judge.aspect import NOT_SAID, Aspect
from harness.judge.words import value
from harness.results import StepEvidence
from harness.scenario.args_device import Operate
from harness.scenario.expect import StepExpect
from harness.scenario.steps import Step


def operation_aspects(step: Step, expect: StepExpect, seen: StepEvidence) -> Iterator[Aspect]:
    """What is looked at in ``operate`` and ``collect``; of a request that was only handed over, nothing.

    Args:
        step: the step.
        expect: what must be seen of it.
        seen: what was, without an error.
    """
    args = step.args
    if isinstance(args, Operate):
        if not args.wait:
            return
        yield _status(expect, seen.values.get("status"), seen)
        if seen.values.get("status") == "done" and expect.status in (None, "done"):
            yield from _agreement(args, seen)
    else:
        yield from _statuses(expect, seen)
    # A response too many is something that the device did wrong, so it must be named to be right.
    if "unasked" not in (expect.counts or {}):
        count = seen.values.get("unasked")
        observed = NOT_SAID if count is None else f"{value(count)} responses that nobody asked for"
        yield Aspect(good=count == 0, expected="no response that nobody asked for", observed=observed)


def _status(expect: StepExpect, status: object, seen: StepEvidence) -> Aspect:
    wanted = expect.status or "done"
    observed = NOT_SAID if status is None else f"the status {value(status)}"
    if seen.values.get("refused") is not None:
        observed += f" of {value(seen.values['refused'])}"
    if seen.values.get("reason"):
        observed += f" because of {seen.values['reason']}"
    return Aspect(good=status == wanted, expected=f'the status "{wanted}"', observed=observed)


def _statuses(expect: StepExpect, seen: StepEvidence) -> Iterator[Aspect]:
    wanted = expect.status or "done"
    statuses = seen.values.get("statuses")
    good = isinstance(statuses, list) and bool(statuses) and all(status == wanted for status in statuses)
    observed = NOT_SAID if statuses is None else f"the statuses {value(statuses)}"
    yield Aspect(good=good, expected=f'the status "{wanted}" of every response', observed=observed)


def _agreement(args: Operate, seen: StepEvidence) -> Iterator[Aspect]:
    """Whether the program finds in its own memory what the device found by DMA."""
    pieces = (*args.source, *args.destination)
    if args.op not in ("crc32", "compare") or args.source_list or args.destination_list:
        return
    if any(piece.buffer is None for piece in pieces):
        return
    agrees = seen.values.get("agrees")
    what = {"crc32": "the checksum", "compare": "the comparison"}[args.op]
    observed = NOT_SAID if not isinstance(agrees, bool) else f"{what} is {'' if agrees else 'not '}the program's own"
    yield Aspect(good=agrees is True, expected=f"{what} is the program's own", observed=observed)
