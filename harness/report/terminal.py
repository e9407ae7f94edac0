"""A run on a terminal: live while it goes on, one line for each finished cell, the failures and a summary at the end.

Without a terminal, under CI, or with NO_COLOR there are only plain lines. Nothing is wrapped or cut where it would have
to be pasted (folders, commands), and text that came out of a guest is cleaned of control characters.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from harness.report.text import ORDER, counts, known, one_line, oracle_name, reasons, started, summary, variant
from harness.results import CellResult, Outcome, Progress, RunResult

_STYLES: Final = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.ERROR: "bold red", Outcome.SKIP: "yellow"}
_REASONS: Final = 5
_CONSOLE_LINES: Final = 8
_SHORT: Final = 120


class TerminalReport(Progress):
    """Shows a run on a terminal, or as plain lines.

    Args:
        console: where to write; standard output when left out.
        live: whether to show running cells; decided from the console and the environment when left out.
        environ: the environment to decide from; the process's own when left out.
    """

    def __init__(
        self, console: Console | None = None, *, live: bool | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self.console = console or Console(highlight=False)
        environ = os.environ if environ is None else environ
        self.live = wants_live(self.console, environ) if live is None else live
        self._shown: RichProgress | None = None
        self._all: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._total = 0
        self._done = 0

    def run_started(self, total: int, jobs: int) -> None:
        """Say how much there is to do, and begin the live display.

        Args:
            total: how many cells there are.
            jobs: how many of them run at once.
        """
        self.close()
        self._total, self._done = total, 0
        self._line(Text(f"{total} cell{'s' * (total != 1)}, {jobs} at once"))
        if self.live:
            self._shown = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.fields[name]}", markup=False),
                TextColumn("{task.fields[stage]}", style="dim", markup=False),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._shown.start()
            self._all = self._shown.add_task("", total=None, name="run", stage=f"0 of {total} done")

    def cell_stage(self, scenario: str, stage: str) -> None:
        """Show the stage that a cell is in; the time beside it is the cell's.

        Args:
            scenario: the scenario's id.
            stage: the stage, e.g. ``steps``.
        """
        if self._shown is None:
            return
        task = self._tasks.get(scenario)
        if task is None:
            name = one_line(scenario)
            self._tasks[scenario] = self._shown.add_task("", total=None, name=name, stage=one_line(stage))
        else:
            self._shown.update(task, stage=one_line(stage))

    def cell_finished(self, result: CellResult) -> None:
        """Print the cell's line and take it out of the live display.

        Args:
            result: the cell's result.
        """
        self._done += 1
        if self._shown is not None:
            task = self._tasks.pop(result.scenario, None)
            if task is not None:
                self._shown.remove_task(task)
            if self._all is not None:
                self._shown.update(self._all, stage=f"{self._done} of {self._total} done")
        line = _head(result)
        if result.outcome is not Outcome.PASS:
            line.append(f"  {_short(next(iter(reasons(result)), ''))}")
        elif known(result):
            line.append(f"  {oracle_name(result)}: {known(result)}", style="dim")
        self._line(line)

    def message(self, text: str) -> None:
        """Print a line between the others.

        Args:
            text: what to print; made one line.
        """
        self._line(Text(one_line(text), style="dim" if self.live else ""))

    def run_finished(self, result: RunResult) -> None:
        """End the live display; print the failures, the worst first, what was skipped and why, and the summary.

        Args:
            result: the result of the run.
        """
        self.close()
        for outcome in ORDER[:3]:
            for cell in result.cells:
                if cell.outcome is outcome:
                    self._cell(cell)
        number = counts(result.cells)
        bad = number[Outcome.FAIL] + number[Outcome.ERROR]
        style = "bold red" if bad else "bold yellow" if result.interrupted or not number[Outcome.PASS] else "bold green"
        self._line(Text())
        self._line(Text(summary(result), style=style))

    def close(self) -> None:
        """End the live display, if it is there; harmless when it is not."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None
        self._all = None
        self._tasks.clear()

    def _cell(self, cell: CellResult) -> None:
        """A cell that did not pass: why, what to do, where to look, how to run it again."""
        self._line(Text())
        line = _head(cell)
        if cell.failure_class is not None:
            line.append(f"  {cell.failure_class}")
        if variant(cell):
            line.append(f"  {variant(cell)}", style="dim")
        self._line(line)
        why = reasons(cell)
        for reason in why[:_REASONS]:
            self._fact("reason", reason)
        if len(why) > _REASONS:
            self._fact("reason", f"and {len(why) - _REASONS} more, see the folder")
        if cell.outcome is Outcome.SKIP:
            return
        if cell.outcome is Outcome.ERROR:
            for text in cell.console_tail[-_CONSOLE_LINES:]:
                self._fact("console", one_line(text))
        self._fact("hint", cell.hint)
        self._fact("guest", started(cell))
        self._fact("folder", cell.folder)
        self._fact("rerun", cell.rerun)

    def _fact(self, name: str, text: str | None) -> None:
        if text:
            self._line(Text.assemble("       ", (f"{name}: ", "dim"), one_line(text)))

    def _line(self, line: Text) -> None:
        self.console.print(line, soft_wrap=True, highlight=False)


def wants_live(console: Console, environ: Mapping[str, str]) -> bool:
    """Whether running cells are to be shown: on a terminal that can do it, if nobody asked for plain output."""
    if environ.get("NO_COLOR") or environ.get("CI"):
        return False
    return console.is_terminal and not console.is_dumb_terminal


def _short(reason: str) -> str:
    """The beginning of a reason: all of it stands at the end."""
    return reason if len(reason) <= _SHORT else f"{reason[: _SHORT - 3]}..."


def _head(cell: CellResult) -> Text:
    """``PASS   2.3 s  dma/unmapped_read``."""
    return Text.assemble(
        (f"{cell.outcome.upper():<5}", _STYLES[cell.outcome]), f" {cell.seconds:6.1f} s  {one_line(cell.scenario)}"
    )
