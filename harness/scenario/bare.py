"""A bare scenario: tables in memory, steps at the IOMMU's and the devices' registers, and what must be seen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.scenario.bare_machine import BareMachine, BareNeeds
from harness.scenario.bare_steps import BareFault, BareStep
from harness.scenario.bare_tables import Tables
from harness.scenario.base import FileModel, Model
from harness.scenario.values import Seconds, Text, satisfies


class BareScenarioExpect(Model):
    """What must be seen of the whole scenario. Without it: no fault happens."""

    faults: tuple[BareFault, ...] = Field(
        default=(), strict=False, description="Every fault that happens; none may be missing, none may be beside them."
    )


class BareScenario(FileModel):
    """One scenario file of the bare tier."""

    tier: Literal["bare"] = Field(description="bare: no guest system; the steps program the IOMMU and the devices.")
    title: Text = Field(description="One sentence that says what holds.")
    source: Text = Field(description="Where that is specified: the document and its sentence, quoted.")
    description: Text | None = Field(default=None, description="What a reader should know besides.")
    machine: BareMachine = Field(description="The IOMMU and the devices.")
    needs: BareNeeds = Field(default_factory=BareNeeds, description="Versions without which it is skipped.")
    timeout: Seconds | None = Field(
        default=None, description="How long the whole scenario may take: 60s, 2m. Default: the run's."
    )
    tables: Tables = Field(default_factory=Tables, description="What is in memory before the first step.")
    steps: tuple[BareStep, ...] = Field(strict=False, min_length=1, description="What is done, in order.")
    expect: BareScenarioExpect = Field(default_factory=BareScenarioExpect, description="What must be seen in the end.")

    def on(self, qemu: str) -> BareScenario:
        """This scenario as it is on a version of QEMU: without the steps and the faults that are of other ones."""
        steps = tuple(step for step in self.steps if step.runs_on(qemu))
        faults = tuple(one for one in self.expect.faults if one.qemu is None or satisfies(qemu, one.qemu))
        expect = self.expect.model_copy(update={"faults": faults})
        return self.model_copy(update={"steps": steps, "expect": expect})

    def steps_by_id(self) -> dict[str, int]:
        """The ids of steps and their positions."""
        return {step.id: index for index, step in enumerate(self.steps) if step.id is not None}
