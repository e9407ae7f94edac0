"""Known failures: what they excuse, and what they do not."""

from __future__ import annotations

from datetime import date

from harness.errors import FailureClass
from harness.qualified.known import excused, stale
from harness.qualified.records import KnownFailure
from harness.results import CellResult, Check, Outcome, Verdict

DAY = date(2026, 6, 1)
ENTRY = KnownFailure(
    scenario="dma/*",
    when={"kernel": ("6.1", "6.12")},
    signature=r"reason 0x0\d",
    reason="the kernel's",
    link="https://example.org",
    until=date(2026, 6, 1),
    place="known.yaml:2",
)
POINT = {"kernel": "6.12", "qemu": "11.1"}


def failed(message: str, other: str | None = None) -> CellResult:
    checks = (
        Check(name="faults", passed=False, message=message if other is None else other),
        Check(name="x", passed=True, message="reason 0x05"),
    )
    verdict = Verdict(passed=False, checks=checks)
    return CellResult(
        scenario="dma/a", title="t", source="s", file="f", outcome=Outcome.FAIL,
        failure_class=FailureClass.EXPECTATION, message=message, verdict=verdict,
    )  # fmt: skip


PASSED = CellResult(scenario="dma/a", title="t", source="s", file="f", outcome=Outcome.PASS)


def test_what_is_excused() -> None:
    assert excused([ENTRY], "dma/a", POINT, failed("something", "reason 0x06"), DAY) == (ENTRY, "")


def test_what_passed_needs_no_excuse() -> None:
    assert excused([ENTRY], "dma/a", POINT, PASSED, DAY) == (None, "")


def test_another_scenario_or_point_is_not_excused() -> None:
    assert excused([ENTRY], "usdm/a", POINT, failed("reason 0x06"), DAY) == (None, "")
    assert excused([ENTRY], "dma/a", {"kernel": "7.2"}, failed("reason 0x06"), DAY) == (None, "")
    assert excused([ENTRY], "dma/a", {}, failed("reason 0x06"), DAY) == (None, "")


def test_a_passed_check_is_no_signature() -> None:
    found, note = excused([ENTRY], "dma/a", POINT, failed("hang"), DAY)
    assert found is None
    assert "fails otherwise than known" in note
    assert "known.yaml:2" in note


def test_the_day_after_the_last_day() -> None:
    found, note = excused([ENTRY], "dma/a", POINT, failed("reason 0x06"), date(2026, 6, 2))
    assert found is None
    assert note == "known until 2026-06-01 and not any more: the kernel's (known.yaml:2)"


def test_the_first_entry_that_has_not_expired_counts() -> None:
    later = ENTRY.model_copy(update={"until": date(2027, 1, 1), "place": "known.yaml:9"})
    assert excused([ENTRY, later], "dma/a", POINT, failed("reason 0x06"), date(2026, 6, 2)) == (later, "")


def test_stale_is_what_could_have_been_seen_and_was_not() -> None:
    bad = failed("reason 0x06")
    assert stale([ENTRY], [("dma/a", POINT, PASSED)]) == (ENTRY,)
    assert stale([ENTRY], [("dma/a", POINT, PASSED), ("dma/b", POINT, bad)]) == ()
    assert stale([ENTRY], [("usdm/a", POINT, PASSED)]) == ()


def test_a_check_that_fails_beside_the_known_one_is_not_excused() -> None:
    result = failed("reason 0x06")
    assert result.verdict is not None
    new = Check(name="step 3", passed=False, message="expected 1, observed 2")
    verdict = result.verdict.model_copy(update={"checks": (*result.verdict.checks, new)})
    found, note = excused([ENTRY], "dma/a", POINT, result.model_copy(update={"verdict": verdict}), DAY)
    assert found is None
    assert "fails otherwise than known" in note


def test_an_error_is_excused_by_an_entry_of_its_class_only() -> None:
    facts = {"outcome": Outcome.ERROR, "failure_class": FailureClass.PANIC, "verdict": None}
    panic = failed("reason 0x06").model_copy(update=facts)
    found, note = excused([ENTRY], "dma/a", POINT, panic, DAY)
    assert found is None
    assert "known is a failed expectation" in note
    of_panic = ENTRY.model_copy(update={"failure_class": "panic"})
    assert excused([of_panic], "dma/a", POINT, panic, DAY) == (of_panic, "")
    hang = panic.model_copy(update={"failure_class": FailureClass.HANG})
    assert excused([of_panic], "dma/a", POINT, hang, DAY)[0] is None
    assert excused([of_panic], "dma/a", POINT, failed("reason 0x06"), DAY)[0] is None
    assert excused([of_panic], "dma/a", POINT, panic.model_copy(update={"message": "other"}), DAY)[0] is None
