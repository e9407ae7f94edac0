"""One session: sequences drawn, run in guests, and a failure made small."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.append(str(Path(__file__).parents[1] / "property"))
from sequences import Program, programs

from harness.errors import FailureClass, HarnessError
from harness.results import CellResult, Outcome

MOST = 1000  # sequences that are drawn at most; one has about 30 steps
# What can be a mistake of the code under test. All else says that guests do not work here.
FINDINGS = (FailureClass.EXPECTATION, FailureClass.PANIC, FailureClass.HANG, FailureClass.LOST_GUEST)


class Runs(Protocol):
    """Runs scenario files; see `fuzz_guests.Guests`."""

    def run(self, files: Sequence[Path], done: Callable[[int, CellResult], None]) -> None: ...

    def rerun(self, file: Path) -> str: ...


class Failed(Exception):
    """A sequence did not pass."""

    def __init__(self, program: Program, result: CellResult) -> None:
        super().__init__(result.message)
        self.program = program
        self.result = result


class Enough(Exception):
    """No more sequences are needed: the only way to stop hypothesis."""


class NoGuest(HarnessError):
    """A guest did not work, so nothing was learned."""

    def __init__(self, result: CellResult) -> None:
        super().__init__(result.message, hint=result.hint)
        self.failure_class = result.failure_class or FailureClass.INFRASTRUCTURE  # type: ignore[misc]


class Tally:
    """Steps that ran, by kind and by the error that was expected of them."""

    def __init__(self) -> None:
        self.steps = 0
        self.sequences = 0
        self._kinds: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def add(self, program: Program) -> None:
        """Count a sequence's steps, those of its children too."""
        self.sequences += 1
        for kind, error in each_step(program.steps):
            self.steps += 1
            self._kinds[kind] += 1
            self._refused[error] += error != ""

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in counts.most_common() if count)

        return f"  steps: {listed(self._kinds)}\n  refused: {listed(self._refused)}"


def each_step(steps: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Kind and expected error of each step and each step of a child."""
    found = []
    for step in steps:
        kind = next(key for key in step if key not in ("expect", "id"))
        found.append((kind, step.get("expect", {}).get("error") or ""))
        if kind == "fork":
            found += each_step(step["fork"]["steps"])
    return found


def way(result: CellResult) -> tuple[FailureClass | None, str]:
    """How a sequence failed: the class, and the kind of step whose check failed first."""
    if result.outcome is not Outcome.FAIL:
        return result.failure_class, ""
    return result.failure_class, re.sub(r"[0-9.]+", "", result.message.partition(":")[0])


def draw(number: int, test: Callable[[Program], None], *phases: Phase, has_statistics: bool) -> None:
    """Have hypothesis draw programs: with the same seed the same ones, as long as `test` passes.

    Args:
        number: the seed.
        test: called with each.
        phases: what hypothesis does.
        has_statistics: usdm's own counts are looked at.
    """

    @seed(number)
    @settings(
        max_examples=MOST,
        deadline=None,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(program=programs(has_statistics))
    def drawn(program: Program) -> None:
        test(program)

    drawn()


class Fuzz:
    """A session.

    Args:
        guests: runs scenario files.
        scratch: an existing folder for these files.
        out: the file that the smallest failure is left in.
        number: the seed.
        shrink: seconds for making a failure small.
        has_statistics: usdm's own counts are looked at; the C library has none.
    """

    def __init__(
        self, guests: Runs, scratch: Path, out: Path, number: int, shrink: float = 120.0, has_statistics: bool = True
    ) -> None:
        self._guests = guests
        self._scratch = scratch
        self._out = out.absolute()
        self._seed = number
        self._shrink_seconds = shrink
        self._has_statistics = has_statistics
        self._attempts: dict[str, CellResult] = {}

    def run(self, steps: int) -> int:
        """Run at least so many steps; give the exit code."""
        print(f"seed {self._seed}: {steps} steps", flush=True)
        began = time.monotonic()
        chosen = self._choose(steps)
        tally = Tally()
        told = began

        def done(index: int, result: CellResult) -> None:
            nonlocal told
            tally.add(chosen[index])
            if result.outcome is not Outcome.PASS:
                raise Failed(chosen[index], result) if result.failure_class in FINDINGS else NoGuest(result)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"  {tally.steps} steps, {told - began:.0f} s", flush=True)

        failed = None
        try:
            self._guests.run([self._write(program) for program in chosen], done)
        except Failed as caught:
            failed = caught
        seconds = time.monotonic() - began
        print(f"{tally.steps} steps in {tally.sequences} sequences, {seconds:.0f} s\n{tally}", flush=True)
        return 0 if failed is None else self._report(failed)

    def _choose(self, wanted: int) -> list[Program]:
        """The first sequences of this seed that have enough steps together."""
        chosen: list[Program] = []
        steps = 0

        def choose(program: Program) -> None:
            nonlocal steps
            if steps >= wanted:
                raise Enough
            steps += len(each_step(program.steps))
            chosen.append(program)

        with contextlib.suppress(Enough):
            draw(self._seed, choose, Phase.generate, has_statistics=self._has_statistics)
        return chosen

    def _write(self, program: Program) -> Path:
        file = self._scratch / f"fuzz_{self._seed}_{len(list(self._scratch.glob('*.yaml')))}.yaml"
        file.write_text(program.text(), encoding="utf-8")
        return file

    def _report(self, failed: Failed) -> int:
        """Make a failure small, leave it as a scenario file, and run that file once more."""
        print(f"failed after {len(failed.program.steps)} steps: {failed.result.message}", flush=True)
        smallest = self._shrink(failed)
        where = f"It was found with seed {self._seed}: {smallest.result.message}"
        self._out.write_text(smallest.program.text(description=where), encoding="utf-8")
        again: list[CellResult] = []
        self._guests.run([self._out], lambda _, result: again.append(result))
        print(f"{self._out}: {len(smallest.program.steps)} steps, {again[0].outcome}: {again[0].message}")
        print(self._guests.rerun(self._out), flush=True)
        return FailureClass.EXPECTATION.exit_code

    def _shrink(self, failed: Failed) -> Failed:
        """Have hypothesis look for the simplest sequence that fails in the same way, a guest for each attempt."""
        first, smallest = failed.program.text(), failed
        self._attempts[first] = failed.result
        searching = True
        end = time.monotonic() + self._shrink_seconds

        def attempt(program: Program) -> None:
            nonlocal searching, smallest
            text = program.text()
            searching = searching and text != first
            # Those drawn before it have passed; what is not tried any more is taken for no simpler failure.
            if searching or (text not in self._attempts and time.monotonic() > end):
                return
            result = self._result(program, text)
            if way(result) == way(failed.result):
                smallest = Failed(program, result)
                raise smallest

        try:
            draw(self._seed, attempt, Phase.generate, Phase.shrink, has_statistics=self._has_statistics)
        except Failed as found:
            smallest = found
        return smallest

    def _result(self, program: Program, text: str) -> CellResult:
        """The result of a sequence; of one that ran already, the same: the failure must not come and go."""
        if text not in self._attempts:
            self._guests.run([self._write(program)], lambda _, result: self._attempts.update({text: result}))
            result = self._attempts[text]
            if result.outcome is Outcome.ERROR and result.failure_class not in FINDINGS:
                raise NoGuest(result)
            print(f"  attempt {len(self._attempts)}: {len(program.steps)} steps, {result.outcome}", flush=True)
        return self._attempts[text]
