"""A plan carried out: its scenario run, and the fault that happened put beside the wanted one."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from harness.errors import ConfigurationError, InfrastructureError
from harness.paths import state_dir
from harness.repro.compare import Aspect, aspects, best
from harness.repro.line import linux_line
from harness.repro.plan import Plan
from harness.results import CellResult, FaultRecord, Outcome, Progress, Record
from harness.run import run_scenarios
from harness.run.options import RunOptions


class Reproduction(Record):
    """What came of a try to make a fault happen again.

    Args:
        line: the given line.
        wanted: its fault.
        planned: the same, without what the emulated machine cannot have; the remarks say what that is.
        seen: the fault that happened and is most like it, or None.
        seen_line: the line that the guest's kernel printed for that one; where it did not, the line that Linux would.
        printed: whether the guest's kernel printed it.
        aspects: the two faults, field by field.
        tier: ``guest``, or ``bare`` where no system ran.
        state: what state of the IOMMU gives the fault, in words.
        remarks: what cannot be the same, and why.
        scenario: the scenario file that was run.
        cell: the result of its run.
    """

    line: str
    wanted: FaultRecord
    planned: FaultRecord
    seen: FaultRecord | None
    seen_line: str
    printed: bool
    aspects: tuple[Aspect, ...]
    tier: str
    state: str
    remarks: tuple[str, ...]
    scenario: str
    cell: CellResult

    @property
    def same(self) -> bool:
        """Whether the scenario passed, and what happened is what was planned."""
        if self.cell.outcome is not Outcome.PASS or self.seen is None:
            return False
        return all(aspect.equal is not False for aspect in aspects(self.planned, self.seen))


def reproduce(plan: Plan, record: FaultRecord, line: str, options: RunOptions, progress: Progress) -> Reproduction:
    """Run a plan's scenario.

    Args:
        plan: the plan.
        record: the fault as the line says it.
        line: the line.
        options: on what to run it; its paths are replaced.
        progress: told what goes on.

    Raises:
        ScenarioError, ConfigurationError, InfrastructureError: nothing was run.
        KeyboardInterrupt: the user stopped it.
    """
    file = state_dir() / "repro" / f"{_name(plan.wanted)}.yaml"
    write_whole(file, plan.text)
    run = run_scenarios(replace(options, paths=(file,), jobs=1), progress)
    if run.interrupted:
        raise KeyboardInterrupt
    (cell,) = run.cells
    faults = cell.verdict.faults if cell.verdict else ()
    seen = best(plan.wanted, faults)
    printed = seen is not None and seen.witness == "kernel"
    return Reproduction(
        line=line,
        wanted=record,
        planned=plan.wanted,
        seen=seen,
        seen_line=_printed_line(cell, seen) if printed else linux_line(seen) if seen else "",
        printed=printed,
        aspects=aspects(record, seen) if seen else (),
        tier=plan.tier.value,
        state=plan.words,
        remarks=plan.remarks,
        scenario=str(file),
        cell=cell,
    )


def write_whole(file: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it.

    Raises:
        InfrastructureError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}.", delete=False
        ) as unfinished:
            unfinished.write(text)
        whole = Path(unfinished.name)
        whole.chmod(0o644)
        whole.replace(file)
    except OSError as error:
        raise InfrastructureError(f"{file} cannot be written: {error.strerror}") from error


def keep(plan: Plan, file: Path) -> None:
    """Write a plan's scenario where the user wants it.

    Raises:
        ConfigurationError: the name is no scenario's, or there is a file already.
        InfrastructureError: it cannot be written.
    """
    check_name(file)
    write_whole(file, plan.text)


def check_name(file: Path) -> None:
    """Whether a scenario may be written there, asked before anything is run.

    Raises:
        ConfigurationError: the name is no scenario's, there is something already, or there is no such folder.
    """
    if file.suffix != ".yaml":
        raise ConfigurationError(f"--write {file}: a scenario's name ends in .yaml")
    if file.exists():
        raise ConfigurationError(f"--write {file}: there is such a file", hint="remove it, or name another")
    if not file.absolute().parent.is_dir():
        raise ConfigurationError(f"--write {file}: there is no folder {file.parent}")


def _name(fault: FaultRecord) -> str:
    """A file name for a fault."""
    place = fault.requester.replace(":", "-").replace(".", "-")
    return f"{place}_{fault.access}_{fault.address or 0:x}_reason_{fault.reason or 0:02x}"


def _printed_line(cell: CellResult, seen: FaultRecord | None) -> str:
    log = cell.evidence.kernel_log if cell.evidence else ()
    return log[seen.line - 1].strip() if seen is not None and 0 < seen.line <= len(log) else ""
