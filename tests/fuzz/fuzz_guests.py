"""Scenario files run in guests: many at once, or one to see whether it fails as another did."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import stopping
from harness.results import CellResult
from harness.run.cell import run_cell
from harness.run.cells import Cell
from harness.run.crew import Crew
from harness.run.jobs import default_jobs
from harness.run.options import RunOptions
from harness.run.resources import prepare
from harness.scenario import load_scenario

Say = Callable[[str], None]


class Guests:
    """What the guests of a session share.

    Args:
        options: what is under test; the first QEMU build and kernel are used.
        scratch: an existing folder for what guests leave.
        say: told what takes long.
    """

    def __init__(self, options: RunOptions, scratch: Path, say: Say) -> None:
        self._options = options
        self._scratch = scratch
        self._say = _once(say)
        self._resources = prepare(options, say)
        self._started = 0

    def rerun(self, file: Path) -> str:
        """The command that runs a scenario file on the same; errors as `run`."""
        return self._cell(file).rerun

    def _cell(self, file: Path) -> Cell:
        scenario, options = load_scenario(file), self._options
        library = "" if options.implementation == "usdm" else options.libusdm
        return Cell(
            *(scenario, options.qemu[0], options.kernels[0], scenario.id, options.usdm),
            implementation=options.implementation,
            libusdm=library,
        )

    def run(self, files: Sequence[Path], done: Callable[[int, CellResult], None]) -> None:
        """Run scenario files, several guests at once.

        Args:
            files: the scenario files.
            done: told the position of each and its result, as they come and never two at once; what it raises ends
                the run.

        Raises:
            ScenarioError: A file is wrong.
            KeyboardInterrupt: Ctrl-C.
        """
        cells = [self._cell(file) for file in files]
        folders = [self._folder() for _ in files]
        lock = threading.Lock()

        def run_one(index: int) -> CellResult:
            result = run_cell(
                *(cells[index], self._resources, self._options, folders[index]), lambda _: stopping.check(), self._say
            )
            stopping.check()
            with lock:
                done(index, result)
            return result

        crew = Crew(run_one)
        crew.run(range(len(cells)), min(len(cells), default_jobs(self._options.start)))
        if crew.interrupted:
            raise KeyboardInterrupt

    def _folder(self) -> Path:
        self._started += 1
        return self._scratch / f"guest-{self._started}"


def _once(say: Say) -> Say:
    """Say the same thing, which several guests wait for, once."""
    said: set[str] = set()

    def told(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return told
