"""What a scenario expects of each step, against what the step did."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from harness.judge.aspect import NOT_SAID, Aspect
from harness.judge.mappings import PAGE, mapping_aspects
from harness.judge.operations import operation_aspects
from harness.judge.words import value
from harness.oracle_traits import TRAITS
from harness.results import Check, Oracle, StepEvidence
from harness.scenario.args import Alloc
from harness.scenario.expect import Deviation, StepExpect
from harness.scenario.steps import Nested, Step

IOVA_UNIT = 2 << 20
"""Bytes that an IOVA of qaeMemMapContiguousIova is a multiple of, as its specification says."""

# How each oracle says that a call failed: not why in the words of usdm, so each is every error of usdm.
_FAILURES = {name: traits.failures for name, traits in TRAITS.items()}
# Errors of the steps themselves, which do not come from the implementation.
_STEP_ERRORS = (
    *("NotAccessible", "DeviceNotOpen", "NoIova", "ChildFailed", "DmaTimeout", "UnknownBuffer", "UnknownDevice"),
    "UnknownRange",
    *("NotOffered", "NoLibrary", "NotSet", "UnknownStep", "NotReadable", "NotMounted"),
    *("DmaLength", "DmaAddress", "DeviceBusy", "NoSriov", "TooManyVfs", "VfsEnabled", "NotTaken"),
    *("InterruptLost", "NothingHanded", "NotQat", "NoQueueMemory", "DiskError"),
)


def check_steps(
    steps: Sequence[Step], evidence: Sequence[StepEvidence], oracle: Oracle | None = None
) -> Iterator[Check]:
    """One check for each step, in order, those of a fork's children after their parent's.

    Args:
        steps: the scenario's steps.
        evidence: what ran; a step of which there is none did not run.
        oracle: what they ran on; None for ``usdm``.
    """
    by_index: dict[int, StepEvidence] = {}
    for one in evidence:
        by_index.setdefault(one.index, one)
    for index, step in enumerate(steps):
        yield from _check_step(step, by_index.get(index), f"step {index}", index, oracle)
    yield from _surplus(len(steps), evidence, "the scenario", "step ", None)


def deviation(step: Step, oracle: Oracle | None) -> Deviation | None:
    """What is known to be different when a step runs on this version of an oracle, or None."""
    known = None if oracle is None else step.deviations[oracle.name]
    return known if oracle is not None and known is not None and known.applies(oracle.version) else None


def _check_step(
    step: Step, seen: StepEvidence | None, place: str, index: int, oracle: Oracle | None
) -> Iterator[Check]:
    name = f"{place} ({step.kind})"
    known = deviation(step, oracle)
    if known is not None:
        name += f", known as {known.id}"
    if seen is None:
        message = "expected this step to run, observed that it did not"
        yield Check(name=name, passed=False, message=message, expected="runs", observed="did not run", step=index)
        children: Sequence[StepEvidence] = ()
    else:
        shown = known is not None and _differs(step, seen, oracle, known)
        yield _check(
            name, tuple(_aspects(step, seen, oracle, known)), index, known.id if known is not None and shown else ""
        )
        children = seen.children
    if isinstance(step.args, Nested):
        number = place.removeprefix("step ")
        # A child is known by its place in the list: it may count its own steps from anywhere.
        for position, child in enumerate(step.args.steps):
            child_seen = children[position] if position < len(children) else None
            yield from _check_step(child, child_seen, f"step {number}.{position}", index, oracle)
        yield from _surplus(len(step.args.steps), children, "the fork", f"step {number}.", index)


def _differs(step: Step, seen: StepEvidence, oracle: Oracle | None, known: Deviation) -> bool:
    """Whether a step did not do what its own expectation says: what does shows no difference.

    Of an oracle's words a step's own expectation says nothing, so those that are known are a difference by themselves.
    """
    return known.expect.says is not None or not all(aspect.good for aspect in _aspects(step, seen, oracle, None))


def _surplus(
    count: int, evidence: Sequence[StepEvidence], whole: str, prefix: str, step: int | None
) -> Iterator[Check]:
    """Evidence of steps that the scenario does not have: then nothing that is said of the others can be trusted."""
    if len(evidence) > count:
        extra = evidence[count]
        yield Check(
            name=f"{prefix}{count} ({extra.kind})",
            passed=False,
            message=f"expected {count} steps of {whole}, observed evidence of {len(evidence)}",
            expected=f"{count} steps",
            observed=f"{len(evidence)} steps",
            step=step,
        )


def _check(name: str, aspects: Sequence[Aspect], index: int, known: str) -> Check:
    bad = [aspect for aspect in aspects if not aspect.good]
    message = "; ".join(f"expected {a.expected}, observed {a.observed}" for a in bad)
    return Check(
        name=name,
        passed=not bad,
        message=message or "; ".join(a.observed for a in aspects),
        expected="; ".join(a.expected for a in aspects),
        observed="; ".join(a.observed for a in aspects),
        step=index,
        known=known,
    )


def _aspects(step: Step, seen: StepEvidence, oracle: Oracle | None, known: Deviation | None) -> Iterator[Aspect]:
    """What a step did against what is expected of it.

    Args:
        step: the step.
        seen: what it did.
        oracle: what it ran on; None for usdm.
        known: what is expected instead; None for the step's own expectation.
    """
    if seen.kind != step.kind:
        yield Aspect(good=False, expected=f"evidence of {step.kind}", observed=f"evidence of {seen.kind}")
        return
    expect = step.expect if known is None else known.expect
    # Only a call of the implementation itself has its one failure; what the program does is the same on both.
    yield _error(expect, seen, () if oracle is None or step.kind == "buffer" else _FAILURES[oracle.name])
    # What it says is said in each implementation's own words.
    if expect.says is not None and (known is not None or oracle is None):
        yield _says(expect.says, seen)
    if expect.names("returns"):
        # Which errno a refusal has is each implementation's own.
        any_errno = oracle is not None and TRAITS[oracle.name].own_errnos and known is None and expect.error is not None
        yield _returns(expect, seen, any_errno=any_errno)
    if expect.pointer is not None:
        yield _equals("pointer", expect.pointer, seen.values.get("pointer"))
    counts = expect.counts or {}
    # What is known of an oracle is known of what it keeps.
    kept = counts if known is not None else _kept(step.kind, counts, oracle)
    for name, count in kept.items() if step.kind != "mappings" else ():
        yield _equals(name, count, seen.values.get("counts", seen.values).get(name))
    # A step that raised an error has observed nothing, and one that should have is judged by that alone.
    if seen.error is None and expect.error is None:
        yield from _observations(step, expect, seen)


def _kept(kind: str, counts: Mapping[str, int], oracle: Oracle | None) -> Mapping[str, int]:
    """Those of some counts that an implementation keeps."""
    kept = None if oracle is None else TRAITS[oracle.name].counts.get(kind)
    return counts if kept is None else {name: count for name, count in counts.items() if name in kept}


def _observations(step: Step, expect: StepExpect, seen: StepEvidence) -> Iterator[Aspect]:
    if expect.nodes is not None:
        yield _equals("nodes", list(expect.nodes), seen.values.get("nodes"))
    if step.kind in ("check", "compare") or (step.kind == "disk_io" and step.args_json()["op"] != "write"):
        yield _equal(expect.equal is not False, seen)
    if step.kind == "translate_back":
        yield _same(expect.same is not False, seen)
    if step.kind == "translate" and expect.translation is not None:
        yield _translation(expect.translation, seen)
    if step.kind in ("dma_read", "dma_write"):
        done = seen.values.get("completed")
        observed = "a completed DMA" if done is True else "a DMA that did not complete"
        yield Aspect(good=done is True, expected="a completed DMA", observed=observed)
    if step.kind in ("operate", "collect"):
        yield from operation_aspects(step, expect, seen)
    if step.kind == "operate" and (expect.equal is not None or "equal" in seen.values):
        yield _equal(expect.equal is not False, seen)
    if step.kind in ("alloc", "map"):
        yield from _aligned(step, seen)
    if step.kind in ("iova_alloc", "stream_map"):
        yield _in_granule(seen)
    if step.kind == "mappings":
        yield from mapping_aspects(expect, seen)


def _error(expect: StepExpect, seen: StepEvidence, failures: tuple[str, ...]) -> Aspect:
    """Whether the step met the error that it should, or none.

    Args:
        expect: what should be.
        seen: what was.
        failures: what an oracle calls its failures; each is met where usdm has an error of its own. None for usdm.
    """
    expected = "no error" if expect.error is None else f"the error {expect.error}"
    if seen.error is None:
        return Aspect(good=expect.error is None, expected=expected, observed="no error")
    said = f": {seen.error.message}" if seen.error.message else ""
    good = seen.error.type == expect.error or (
        expect.error is not None and seen.error.type in failures and expect.error not in _STEP_ERRORS
    )
    return Aspect(good=good, expected=expected, observed=f"the error {seen.error.type}{said}")


def _says(pattern: str, seen: StepEvidence) -> Aspect:
    text = "" if seen.error is None else seen.error.message
    return Aspect(
        good=re.search(pattern, text) is not None, expected=f"an error that says {pattern}", observed=value(text)
    )


def _equals(name: str, wanted: object, found: object) -> Aspect:
    said = NOT_SAID if found is None else f"{name} {value(found)}"
    return Aspect(good=found == wanted, expected=f"{name} {value(wanted)}", observed=said)


def _aligned(step: Step, seen: StepEvidence) -> Iterator[Aspect]:
    """Whether the IOVA that a step was given is a multiple of what it must be."""
    iova = _number(seen.values.get("iova"))
    boundary = step.args.align if isinstance(step.args, Alloc) else IOVA_UNIT
    if iova and boundary:
        observed = f"the IOVA {iova:#x}"
        yield Aspect(
            good=iova % boundary == 0, expected=f"an IOVA that is a multiple of {boundary:#x}", observed=observed
        )


def _in_granule(seen: StepEvidence) -> Aspect:
    """Whether an IOVA has the offset in its granule that the memory has."""
    iova, inside = (_number(seen.values.get(key)) for key in ("iova", "inside"))
    if iova is None or inside is None:
        return Aspect(good=False, expected="an IOVA with the memory's offset in its granule", observed=NOT_SAID)
    return Aspect(
        good=iova % PAGE == inside,
        expected=f"an IOVA at {inside:#x} of its granule, as the memory",
        observed=f"the IOVA {iova:#x}",
    )


def _returns(expect: StepExpect, seen: StepEvidence, *, any_errno: bool) -> Aspect:
    wanted = expect.returns
    if any_errno and isinstance(wanted, int) and wanted < 0:
        good = seen.returns is not None and seen.returns < 0
        expected = "a return value below zero"
    elif wanted == "nonzero":
        good = seen.returns is not None and seen.returns != 0
        expected = "a return value that is not zero"
    else:
        good = seen.returns == wanted
        expected = f"the return value {value(wanted)}"
    return Aspect(good=good, expected=expected, observed=f"the return value {value(seen.returns)}")


def _equal(wanted: bool, seen: StepEvidence) -> Aspect:
    words = {True: "equal bytes", False: "bytes that differ"}
    found = seen.values.get("equal")
    if not isinstance(found, bool):
        return Aspect(good=False, expected=words[wanted], observed=NOT_SAID)
    observed = words[found]
    if not found and seen.values.get("first_difference") is not None:
        observed += f", the first at {value(seen.values['first_difference'])}"
    return Aspect(good=found is wanted, expected=words[wanted], observed=observed)


def _same(wanted: bool, seen: StepEvidence) -> Aspect:
    words = {True: "the same virtual address", False: "another virtual address"}
    found = seen.values.get("same")
    if not isinstance(found, bool):
        return Aspect(good=False, expected=words[wanted], observed=NOT_SAID)
    observed = words[found]
    if not found and "found" in seen.values:
        observed += f", {value(seen.values['found'])}"
    return Aspect(good=found is wanted, expected=words[wanted], observed=observed)


def _translation(wanted: str, seen: StepEvidence) -> Aspect:
    present, absent = (_number(seen.values.get(key)) for key in ("present", "absent"))
    contiguous = seen.values.get("contiguous")
    if present is None or absent is None:
        return Aspect(good=False, expected=_TRANSLATION[wanted], observed=NOT_SAID)
    # A range in which nothing was looked at is neither contiguous nor absent.
    whole = present > 0 and absent == 0 and contiguous is True
    none = absent > 0 and present == 0
    row = "" if contiguous is None or not present else ", contiguous" if contiguous is True else ", not contiguous"
    observed = f"{present} addresses translated, {absent} not{row}"
    good = {"contiguous": whole, "absent": none, "partial": present > 0 and absent > 0}[wanted]
    return Aspect(good=good, expected=_TRANSLATION[wanted], observed=observed)


_TRANSLATION = {
    "contiguous": "every address translated, contiguous from the first",
    "absent": "no address translated",
    "partial": "some addresses translated, others not",
}


def _number(anything: object) -> int | None:
    return anything if isinstance(anything, int) and not isinstance(anything, bool) else None
