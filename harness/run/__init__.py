"""Cells to results: what must be there, parallel workers, deadlines, run folders."""

from harness.run.cells import list_scenarios
from harness.run.schedule import run_scenarios

__all__ = ["list_scenarios", "run_scenarios"]
