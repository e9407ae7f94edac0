"""The steps on the kernel's own functions: what is known of them must be seen, and errnos are not compared."""

from __future__ import annotations

import pytest

from harness.agent import kernel_device
from harness.judge import judge, judge_both
from harness.judge.implementations import compare_implementations
from harness.results import Check, Evidence, Finding, Oracle, StepError, StepEvidence
from harness.scenario.kernel_differences import KERNEL_DIFFERENCES
from harness.scenario.model import Scenario
from usdm import dma_errors, errors

KERNEL = Oracle(name="kernel", version="7.2.12+deb13-amd64")
LIBRARY = Oracle(name="libusdm", version="26.08.0-2")
NOT_CALLED = sorted(one.__name__ for one in kernel_device.TestModuleRefused.__subclasses__())
LINK = {"iova_link": {"range": "r", "buffer": "b", "size": 4096}}
FREE = {"iova_free": {"range": "r"}}
KNOWN = {**FREE, "expect": {"error": "StillLinked"}, "kernel": {"differs": "K9"}}


def scenario(*steps, faults=(), kernel=None):
    machine = {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}}
    expect = {"faults": list(faults)} | ({} if kernel is None else {"kernel": kernel})
    return Scenario.model_validate(
        {"title": "t", "source": "s", "machine": machine, "steps": list(steps), "expect": expect}
    )


def ran(index, kind, *, error=None, args=None, **fields):
    if error is not None:
        fields["error"] = StepError(type=error, message="why")
    return StepEvidence(index=index, kind=kind, args=args or {}, **fields)


def verdict(step, oracle=KERNEL, **fields):
    evidence = Evidence(steps=(ran(0, next(iter(step)), **fields),), oracle=oracle)
    return judge(scenario(step), evidence)


MEANING = KERNEL_DIFFERENCES["K9"]


# ---- what is known


def test_a_difference_that_is_seen_is_a_finding():
    found = verdict(KNOWN)
    assert found.passed
    assert found.checks[0].name == "step 0 (iova_free), known as K9"
    assert found.findings == (Finding(defect="K9", step=0, observed=found.checks[0].observed, meaning=MEANING),)


def test_a_difference_that_has_gone_fails():
    found = verdict(KNOWN, error="KernelRefused")
    assert (found.passed, found.findings) == (False, ())


@pytest.mark.parametrize(
    ("step", "fields"),
    [
        ({**LINK, "expect": {"returns": 0}, "kernel": {"differs": "K2", "expect": {"returns": 0}}}, {"returns": 0}),
        # A refusal of any errno is as usdm's own.
        (
            {**LINK, "expect": {"error": "EndNotAtGranule", "returns": -22},
             "kernel": {"differs": "K2", "expect": {"error": "KernelRefused", "returns": -5}}},
            {"error": "KernelRefused", "returns": -5},
        ),
    ],
)  # fmt: skip
def test_what_does_not_differ_from_the_steps_own_expectation_is_no_finding(step, fields):
    found = verdict(step, **fields)
    assert found.passed
    assert found.findings == ()


@pytest.mark.parametrize(("oracle", "error"), [(None, "StillLinked"), (LIBRARY, "CFailure")])
def test_it_is_the_kernels_alone(oracle, error):
    found = verdict(KNOWN, oracle, error=error)
    assert (found.passed, found.findings) == (True, ())
    assert not verdict(KNOWN, oracle).passed


@pytest.mark.parametrize(("versions", "known"), [(">=7.2", True), (">=6.16, <7.2", False), ("<8", True)])
def test_other_releases_do_what_is_right(versions, known):
    step = {**KNOWN, "kernel": {"differs": "K9", "versions": versions}}
    assert verdict(step).passed is known
    assert verdict(step, error="KernelWarned").passed is not known


# ---- errors and errnos


@pytest.mark.parametrize("error", ["KernelRefused", "KernelWarned"])
def test_every_refusal_of_the_kernel_is_an_error_of_usdm(error):
    step = {**LINK, "expect": {"error": "OutsideRange", "says": "of its own words"}}
    assert verdict(step, error=error, returns=-22).passed
    assert not verdict(step, None, error=error, returns=-22).passed
    assert not verdict(step, LIBRARY, error=error, returns=-22).passed
    assert not verdict(step, error="CFailure", returns=-22).passed


@pytest.mark.parametrize("error", [*NOT_CALLED, "NoTestModule", "InternalError"])
def test_what_the_kernel_was_not_called_for_is_no_refusal(error):
    assert not verdict({**LINK, "expect": {"error": "OutsideRange"}}, error=error).passed


def test_no_error_of_usdm_has_the_name_of_a_refusal_of_the_test_modules():
    """Otherwise the module's refusal would be taken for the kernel meeting usdm's error."""
    own = {name for module in (errors, dma_errors) for name in vars(module)}
    assert not own & set(NOT_CALLED)


def test_an_errno_is_the_implementations_own_and_a_success_is_not():
    step = {**LINK, "expect": {"error": "OutsideRange", "returns": -22}}
    assert verdict(step, error="KernelRefused", returns=-98).passed
    for returns in (0, 1, None):
        assert not verdict(step, error="KernelRefused", returns=returns).passed
    assert not verdict(step, None, error="OutsideRange", returns=-98).passed, "of usdm it is known"
    assert not verdict({**LINK, "expect": {"returns": 0}}, returns=-22).passed
    known = {**step, "kernel": {"differs": "K5", "expect": {"error": "KernelRefused", "returns": -6}}}
    assert verdict(known, error="KernelRefused", returns=-6).passed
    assert not verdict(known, error="KernelRefused", returns=-22).passed, "what is known is known exactly"


def test_the_kernel_is_asked_only_for_counts_that_it_keeps():
    step = {"iova_info": {"range": "r"}, "expect": {"counts": {"links": 2, "in_use": 1, "reserved": 8192}}}
    kept = {"counts": {"in_use": 1, "reserved": 8192}}
    known = {**step, "kernel": {"differs": "K1", "expect": {"counts": {"in_use": 1, "links": 7}}}}
    assert not verdict(known, values=kept).passed, "what is known is looked at, also where the kernel keeps none"
    assert verdict(step, values=kept).passed
    assert not verdict(step, None, values=kept).passed
    assert not verdict(step, values={"counts": {"in_use": 1, "reserved": 4096}}).passed
    assert not verdict(step, values={"counts": {}}).passed
    other = {"iova_link_each": {**LINK["iova_link"], "count": 3}, "expect": {"counts": {"done": 3}}}
    assert not verdict(other, returns=0, values={"done": 2}).passed


# ---- usdm and the kernel


def compared(step, left, right, oracle=KERNEL) -> Check:
    kind = next(iter(step))
    ours, theirs = ran(0, kind, **left), ran(0, kind, **right)
    checks = list(
        compare_implementations(scenario(step), Evidence(steps=(ours,)), Evidence(steps=(theirs,), oracle=oracle))
    )
    assert [check.name for check in checks] == [f"both do step 0 ({kind})", "both meet the same faults"]
    return checks[0]


ALLOC = {"iova_alloc": {"device": "edu0", "as": "r", "buffer": "b", "size": 8192}}
MAP = {"stream_map": {"device": "edu0", "buffer": "b", "size": 8192}}
INFO = {"iova_info": {"range": "r"}}
EACH = {"iova_link_each": {"range": "r", "buffer": "b", "size": 4096, "count": 4}}


@pytest.mark.parametrize(
    ("step", "left", "right"),
    [
        (LINK, {"returns": -22, "error": "OutsideRange"}, {"returns": -98, "error": "KernelRefused"}),
        (LINK, {"returns": -22, "error": "NoRange"}, {"error": "StateWithoutRange"}),
        (ALLOC, {"returns": 1, "values": {"iova": 0x200234, "inside": 0x234}},
         {"returns": 1, "values": {"iova": 0xFFFFC234, "inside": 0x234}}),
        (MAP, {"returns": 0x200000, "values": {"iova": 0x200000, "inside": 0}},
         {"returns": 0xFFFFC000, "values": {"iova": 0xFFFFC000, "inside": 0}}),
        (INFO, {"values": {"counts": {"in_use": 1, "reserved": 4096, "links": 3}}},
         {"values": {"counts": {"in_use": 1, "reserved": 4096}}}),
        ({"open": {"device": "edu0"}}, {"values": {"address": "02:00.0", "iova_ranges": [[0, 9]]}},
         {"values": {"address": "02:00.0", "iova_ranges": None}}),
    ],
)  # fmt: skip
def test_what_is_the_same(step, left, right):
    assert compared(step, left, right).passed


@pytest.mark.parametrize(
    ("step", "left", "right", "what"),
    [
        (LINK, {"returns": 0}, {"returns": -5, "error": "KernelRefused"}, "failed"),
        (LINK, {"returns": 0}, {"returns": 1}, "returned"),
        (ALLOC, {"returns": 1}, {"returns": 0}, "returned"),
        (ALLOC, {"returns": 1, "values": {"inside": 0x234}}, {"returns": 1, "values": {"inside": 0}}, "inside"),
        (MAP, {"returns": 0x200000}, {"returns": 0}, "returned"),
        (INFO, {"values": {"counts": {"reserved": 4096}}}, {"values": {"counts": {"reserved": 8192}}}, "reserved"),
        (EACH, {"returns": 0, "values": {"done": 4}}, {"returns": 0, "values": {"done": 3}}, "done"),
        ({"merge_boundary": {"device": "edu0"}}, {"returns": 4095}, {"returns": 0}, "returned"),
    ],
)
def test_what_differs(step, left, right, what):
    found = compared(step, left, right)
    assert not found.passed
    assert what in found.message
    assert found.expected == "usdm and kernel do the same"


def test_the_ranges_of_a_container_are_compared_with_the_library():
    step = {"open": {"device": "edu0"}}
    assert not compared(step, {"values": {"iova_ranges": [[0, 9]]}}, {"values": {"iova_ranges": None}}, LIBRARY).passed


def test_a_known_difference_is_none_of_usdms():
    assert compared(KNOWN, {"error": "StillLinked"}, {}).passed
    assert compared(KNOWN, {"error": "StillLinked"}, {}).message.startswith("known as K9")
    found = judge_both(
        scenario(KNOWN), Evidence(steps=(ran(0, "iova_free"),)), Evidence(steps=(ran(0, "iova_free"),), oracle=KERNEL)
    )
    assert [check.name for check in found.checks if not check.passed] == ["usdm: step 0 (iova_free)"]
    assert "kernel: step 0 (iova_free), known as K9" in [check.name for check in found.checks]


# ---- faults

READ = {"dma_read": {"device": "edu0", "range": "r", "offset": 4096, "size": 16}, "id": "late"}
FAULT = {"device": "edu0", "access": "read", "range": "r", "offset": 4096, "reason": 6, "step": "late"}


def side(iova, place, oracle=None):
    """A range at an IOVA, and a read of it that is refused where `place` says."""
    trace = () if place is None else (f"vtd_dmar_fault sid 0x200 fault 6 addr 0x{place:x} write 0",)
    log = (
        ()
        if place is None
        else (
            "[    9.000000] DMAR: DRHD: handling fault status reg 2",
            f"[    9.000001] DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x{place & ~4095:x} "
            "[fault reason 0x06] words",
        )
    )
    alloc = ran(0, "iova_alloc", args={"as": "r"}, returns=1, values={"iova": iova, "inside": iova % 4096})
    args = {"device": "edu0", "range": "r", "offset": 4096, "size": 16}
    read = ran(1, "dma_read", args=args, values={"iova": iova + 4096, "completed": True}, trace=trace)
    return Evidence(steps=(alloc, read), devices={"edu0": "02:00.0"}, oracle=oracle, kernel_log=log)


def test_a_fault_is_known_by_its_range():
    one = scenario(ALLOC, READ, faults=[FAULT])
    found = judge_both(one, side(0x200000, 0x201000), side(0xFFFF0000, 0xFFFF1000, KERNEL))
    assert found.passed, [check.message for check in found.checks if not check.passed]


def test_a_fault_at_another_place_of_the_range_differs():
    one = scenario(ALLOC, READ, faults=[FAULT])
    found = judge_both(one, side(0x200000, 0x201000), side(0xFFFF0000, 0xFFFF0000, KERNEL))
    assert {check.name for check in found.checks if not check.passed} == {
        "kernel: faults",
        "both meet the same faults",
    }


def test_the_faults_of_the_kernel_instead():
    one = scenario(ALLOC, READ, faults=[FAULT], kernel={"differs": "K9", "faults": []})
    good = judge(one, side(0xFFFF0000, None, KERNEL))
    assert good.passed
    assert [(found.defect, found.step) for found in good.findings] == [("K9", None)]
    assert not judge(one, side(0xFFFF0000, 0xFFFF1000, KERNEL)).passed
    same = judge(
        scenario(ALLOC, READ, faults=[FAULT], kernel={"differs": "K9", "faults": [FAULT]}), side(0x1000, 0x2000, KERNEL)
    )
    assert (same.passed, same.findings) == (True, ()), "the scenario's own faults show no difference"
    assert judge(one, side(0x200000, 0x201000)).passed
    both = judge_both(one, side(0x200000, 0x201000), side(0xFFFF0000, None, KERNEL))
    assert both.passed
    (check,) = [check for check in both.checks if check.name == "both meet the same faults"]
    assert check.message.startswith("known as K9: usdm only: step 1")
