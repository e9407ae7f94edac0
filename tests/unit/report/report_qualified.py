"""A qualification with a cell of every standing, and parts to make others of."""

from __future__ import annotations

from datetime import date

from report_data import EVIDENCE, VERDICT, VERSIONS, cell

from harness.errors import FailureClass
from harness.qualified.records import KnownFailure, NotRun, Qualification, QualifiedCell
from harness.results import Outcome

AXES = {"qemu": ("11.1", "7.2"), "kernel": ("6.12", "6.1"), "viommu": ("intel", "virtio")}
KNOWN = KnownFailure(
    scenario="dma/*",
    when={"kernel": ("6.1",)},
    signature="twice",
    reason="6.1 tells it twice",
    link="docs/known.md",
    until=date(2027, 3, 1),
    place="known-failures.yaml:3",
)


def qualified(scenario, qemu="11.1", kernel="6.12", viommu="intel", outcome=Outcome.PASS, **more):
    point = {"qemu": qemu, "kernel": kernel, "viommu": viommu}
    fields = {"versions": VERSIONS, "stages": {"steps": 0.5}, **more.pop("fields", {})}
    if outcome is Outcome.FAIL:
        fields = {
            "failure_class": FailureClass.EXPECTATION,
            "message": "expected one fault, observed two",
            "evidence": EVIDENCE,
            "verdict": VERDICT,
            **fields,
        }
    if outcome is Outcome.ERROR:
        fields = {"failure_class": FailureClass.BOOT, "message": "not ready after 120 s", **fields}
    attempts = (*more.pop("before", ()), cell(scenario, outcome, **fields))
    name = f"{scenario} [qemu {qemu}, kernel {kernel}, viommu {viommu}]"
    return QualifiedCell(name=name, scenario=scenario, point=point, attempts=attempts, **more)


def qualification(*cells, **more):
    axes = {
        axis: tuple(value for value in values if any(one.point.get(axis) == value for one in cells))
        for axis, values in AXES.items()
    }
    fields = {"axes": axes, "planned": len(cells), "started": "2026-01-02T03:04:05+00:00", **more}
    return Qualification(cells=cells, **fields)


BROKEN = cell("usdm/late", Outcome.ERROR, failure_class=FailureClass.INFRASTRUCTURE, message="no space left")
EVERY = qualification(
    qualified("dma/a"),
    qualified("dma/b", outcome=Outcome.FAIL),
    qualified("dma/a", kernel="6.1", outcome=Outcome.FAIL, known=KNOWN),
    qualified("dma/b", qemu="7.2", viommu="virtio"),
    qualified("usdm/late", outcome=Outcome.ERROR, before=(BROKEN,), note="it was odd"),
    title="release 1",
    matrix="scenarios/release.yaml",
    host={"cores": "2"},
    not_run=(
        NotRun(scenario="dma/a", point={"qemu": "7.2", "kernel": "6.12", "viommu": "virtio"}, reason="about intel"),
        NotRun(scenario="dma/c", point={"kernel": "6.1"}, reason="needs 6.12", points=2),
    ),
    stale=(KNOWN,),
    notes=("the clock jumped",),
)
