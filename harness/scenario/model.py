"""A scenario: a machine, steps, and what must be seen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.scenario.base import FileModel
from harness.scenario.expect import ScenarioExpect
from harness.scenario.machine import Machine, Needs
from harness.scenario.steps import Step
from harness.scenario.values import Seconds, Text


class Scenario(FileModel):
    """One scenario file."""

    tier: Literal["guest"] = Field(
        default="guest",
        description="guest (default); bare scenarios have other keys (docs/bare-tier.md).",
    )
    title: Text = Field(description="One sentence that says what holds.")
    source: Text = Field(description="Where that is specified: the document and its sentence, quoted.")
    description: Text | None = Field(default=None, description="What a reader should know besides.")
    machine: Machine = Field(description="What the guest runs on.")
    needs: Needs = Field(default_factory=Needs, description="Versions without which the scenario is skipped.")
    timeout: Seconds | None = Field(
        default=None, description="How long the whole scenario may take: 60s, 2m. Default: the run's."
    )
    steps: tuple[Step, ...] = Field(strict=False, min_length=1, description="What is done in the guest, in order.")
    expect: ScenarioExpect = Field(default_factory=ScenarioExpect, description="What must be seen in the end.")

    def uses(self, kind: str) -> bool:
        """Whether a step, or a child's of a fork, is of this kind."""
        return any(one.kind == kind for step in self.steps for one in (step, *getattr(step.args, "steps", ())))

    def steps_by_id(self) -> dict[str, int]:
        """The ids of steps and the positions of these steps; a step inside ``fork`` has the position of the fork."""
        found: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            for one in (step, *getattr(step.args, "steps", ())):
                if one.id is not None:
                    found[one.id] = index
        return found
