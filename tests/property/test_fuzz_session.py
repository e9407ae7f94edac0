"""A session of `tests/fuzz` with a simulated container in place of guests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sequences_native import Make, run_steps
from test_usdm_sequences import KeepsTranslations, WorksInChild
from usdm_fake_vfio import FakeVfio

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from fuzz_session import Fuzz, NoGuest

from harness.errors import FailureClass
from harness.results import CellResult, Outcome
from harness.scenario import load_scenario
from usdm.driver import Usdm

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Simulated:
    """Takes the place of `fuzz_guests.Guests`; `ran` is how many files it ran."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self.ran = 0

    def run(self, files: Sequence[Path], done: Callable[[int, CellResult], None]) -> None:
        for index, file in enumerate(files):
            self.ran += 1
            done(index, self.result(file))

    def result(self, file: Path) -> CellResult:
        verdict = run_steps(load_scenario(file), self._make)
        failed = [f"{check.name}: {check.message}" for check in verdict.checks if not check.passed]
        return CellResult(
            scenario=file.stem,
            title="",
            source="",
            file=str(file),
            outcome=Outcome.FAIL if failed else Outcome.PASS,
            failure_class=FailureClass.EXPECTATION if failed else None,
            message="".join(failed[:1]),
        )

    def rerun(self, file: Path) -> str:
        return f"harness run {file}"


def good(vfio: FakeVfio) -> Usdm:
    return Usdm(vfio.ioctl)


def session(guests: Simulated, folder: Path, steps: int = 300) -> tuple[int, Path]:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    out = folder / "failure.yaml"
    return Fuzz(guests, scratch, out, 1).run(steps), out


def test_what_is_right_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = session(Simulated(good), tmp_path)
    assert status == 0
    assert not out.exists()
    said = capsys.readouterr().out
    steps = int(said.splitlines()[1].split()[0])
    assert steps >= 300
    session(Simulated(good), tmp_path)
    again = capsys.readouterr().out.splitlines()
    assert again[2:] == said.splitlines()[2:], "the same seed draws the same sequences"


@pytest.mark.parametrize("broken", [KeepsTranslations, WorksInChild])
def test_a_failure_is_left_as_a_small_scenario(
    broken: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = session(Simulated(broken), tmp_path)
    assert status == 1
    assert f"harness run {out}" in capsys.readouterr().out
    assert len(load_scenario(out).steps) <= 12
    assert Simulated(broken).result(out).outcome is Outcome.FAIL
    assert Simulated(good).result(out).outcome is Outcome.PASS


def test_guests_that_do_not_work_are_no_finding(tmp_path: Path) -> None:
    class Unbootable(Simulated):
        def result(self, file: Path) -> CellResult:
            update = {"outcome": Outcome.ERROR, "failure_class": FailureClass.BOOT, "message": "not ready"}
            return super().result(file).model_copy(update=update)

    with pytest.raises(NoGuest, match="not ready") as caught:
        session(Unbootable(good), tmp_path)
    assert caught.value.failure_class is FailureClass.BOOT
    assert caught.value.exit_code == 3
