"""Where the cells of a qualification run: what an executor is given and gives back, and the one of this machine.

An executor knows nothing of matrices, stores and known failures. It is given cells, and for each attempt at one a
folder; it gives each result to :attr:`Work.again`, which keeps it and says whether to try once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from harness.errors import ConfigurationError
from harness.results import CellResult, Progress
from harness.run.cells import Cell
from harness.run.crew import Crew
from harness.run.options import RunOptions
from harness.run.resources import Resources
from harness.run.schedule import run_and_write
from harness.scenario.problems import suggest


@dataclass(frozen=True, slots=True)
class Work:
    """What an executor is given.

    Args:
        cells: all cells of the qualification; indices below are positions in it.
        order: the cells to run, in the order in which they should be started.
        resources: builds, images and payload that they need, as they are on this machine.
        options: deadlines and the way guests are started.
        jobs: how many at once on this machine, >= 1.
        folder: gives the folder for the next attempt at a cell. It does not exist yet, its parent does.
        again: takes a result, keeps it, and says whether the cell is to be run once more. Never call it twice at once.
            What it raises ends the executor's run, which raises it too.
    """

    cells: Sequence[Cell]
    order: Sequence[int]
    resources: Resources
    options: RunOptions
    jobs: int
    folder: Callable[[int], Path]
    again: Callable[[int, CellResult], bool]


@dataclass(frozen=True, slots=True)
class Ended:
    """How an executor ended.

    Args:
        interrupted: Ctrl-C ended it.
        left: indices of cells that did not stop in time and were left behind.
        notes: what a reader of the qualification should know (a worker was lost), one line each.
    """

    interrupted: bool = False
    left: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())


class Executor(Protocol):
    """Runs cells somewhere. For one use."""

    @property
    def name(self) -> str:
        """How the report names it: ``local``, ``dask tcp://10.0.0.1:8786``."""

    def run(self, work: Work, progress: Progress) -> Ended:
        """Run the cells and hand over their results.

        In the main thread Ctrl-C ends it soon; every result that is there has been handed over then.

        Args:
            work: the cells and what they need.
            progress: told of stages, of finished attempts (after ``again``), and of what else a user should know.

        Raises:
            ConfigurationError, InfrastructureError: the executor cannot do its part.
            Exception: what ``again`` raised.
        """


class LocalExecutor:
    """Runs cells on this machine: the crew of ``harness run``."""

    @property
    def name(self) -> str:
        """``local``."""
        return "local"

    def run(self, work: Work, progress: Progress) -> Ended:
        """As :meth:`Executor.run`."""
        one_at_a_time = threading.Lock()

        def run_one(index: int) -> CellResult:
            while True:
                result = run_and_write(work.cells[index], work.resources, work.options, work.folder(index), progress)
                with one_at_a_time:
                    again = work.again(index, result)
                progress.cell_finished(result)
                if not again:
                    # It has been kept; a thousand cells' evidence need not stay in memory.
                    return result.model_copy(update={"evidence": None, "reference": None})

        crew = Crew(run_one)
        crew.run(work.order, work.jobs)
        return Ended(interrupted=crew.interrupted, left=tuple(crew.left))


Factory = Callable[[str | None], Executor]
"""Makes an executor from the scheduler's address that the user named, or None."""


def _local(scheduler: str | None) -> Executor:
    if scheduler is not None:
        raise ConfigurationError(
            "--scheduler is of no use with --executor local", hint="write --executor dask, or leave --scheduler out"
        )
    return LocalExecutor()


def _dask(scheduler: str | None) -> Executor:
    if scheduler is None:
        raise ConfigurationError(
            "--executor dask needs the scheduler's address", hint="name it: --scheduler tcp://HOST:8786"
        )
    try:
        from harness.qualify.remote.executor import DaskExecutor
    except ModuleNotFoundError as error:
        raise no_extra("--executor dask", error) from error
    return DaskExecutor(scheduler)


def no_extra(what: str, error: ModuleNotFoundError) -> Exception:
    """What to say where the extra with Dask is not installed; the error itself where another module is missing."""
    if (error.name or "").partition(".")[0] not in ("dask", "distributed"):
        return error
    return ConfigurationError(
        f"{what} needs Dask, which is not installed here",
        hint="in a checkout of usdm-harness: pip install -e '.[dask]'",
    )


EXECUTORS: Final[Mapping[str, Factory]] = {"local": _local, "dask": _dask}
"""The executors by the name that ``--executor`` takes."""


def make_executor(name: str, scheduler: str | None) -> Executor:
    """The executor of a name.

    Args:
        name: a key of :data:`EXECUTORS`.
        scheduler: the scheduler's address, or None.

    Raises:
        ConfigurationError: there is none of that name, or it cannot be used so.
    """
    if name not in EXECUTORS:
        raise ConfigurationError(f"--executor: there is no '{name}'", hint=suggest(name, tuple(EXECUTORS)))
    return EXECUTORS[name](scheduler)
