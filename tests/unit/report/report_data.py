"""A run with a cell of every outcome."""

from __future__ import annotations

from harness.errors import FailureClass
from harness.results import (
    CellResult,
    Check,
    Evidence,
    FaultRecord,
    Outcome,
    RunResult,
    StepError,
    StepEvidence,
    Verdict,
    Versions,
)

VERSIONS = Versions(
    harness="0.1.0",
    python="3.11.2",
    qemu="11.1.3",
    qemu_build="debian",
    kernel="6.12.88",
    image="trixie",
    image_key="abc",
    accelerator="tcg",
    accelerator_reason="no /dev/kvm",
    payload="def",
)

EVIDENCE = Evidence(
    steps=(
        StepEvidence(index=0, kind="alloc", args={"as": "b", "size": 65536}, returns=0x7F0000000000, seconds=0.01,
                     values={"iova": 0x100000}),
        StepEvidence(index=1, kind="dma_read", args={"device": "edu0", "iova": 0x900000, "size": 16}, seconds=0.125,
                     values={"completed": True, "iova": 0x900000},
                     trace=("vtd_dmar_fault sid 0x200 fault 6 addr 0x900000 write 0",) * 4),
        StepEvidence(index=2, kind="fork", args={"steps": []}, seconds=0.5, children=(
            StepEvidence(index=0, kind="map", args={"buffer": "b", "size": 1}, returns=0, seconds=0.002,
                         error=StepError(type="NotAligned", message="size 1 is no multiple of 4096")),)),
    ),
    kernel_log=("[    1.000000] DMAR: IOMMU enabled",),
    devices={"edu0": "02:00.0"},
)  # fmt: skip

VERDICT = Verdict(
    passed=False,
    checks=(
        Check(name="step 0 (alloc)", passed=True, message="no error", step=0),
        Check(name="step 1 (dma_read)", passed=False, message="expected no error, observed the error X", step=1),
        Check(name="faults", passed=False, message="expected no faults, observed 1"),
        Check(name="witnesses", passed=True, message="the witnesses agree"),
    ),
    faults=(
        FaultRecord(witness="trace", requester="02:00.0", access="read", address=0x900000, reason=6, count=4, step=1),
        FaultRecord(
            witness="kernel", requester="02:00.0", access="read", address=0x900000, reason=6, reason_text="PTE Read",
            time=9.5, line=3,
        ),
    ),
    notes=("only the trace has something: compression",),
)  # fmt: skip


def cell(scenario, outcome=Outcome.PASS, **fields):
    fields = {
        "title": "A title",
        "source": "A sentence",
        "file": f"scenarios/{scenario}.yaml",
        "seconds": 2.25,
        "folder": f"/runs/1/{scenario}",
        "rerun": f"harness run {scenario}",
        **fields,
    }
    return CellResult(scenario=scenario, outcome=outcome, **fields)


PASSED = cell("dma/mapped_read", versions=VERSIONS, evidence=EVIDENCE, stages={"boot": 1.5, "steps": 0.75})
FAILED = cell(
    "dma/unmapped_read",
    Outcome.FAIL,
    failure_class=FailureClass.EXPECTATION,
    message="step 1 (dma_read): expected no error, observed the error X",
    hint="read the evidence",
    versions=VERSIONS,
    evidence=EVIDENCE,
    verdict=VERDICT,
)
CRASHED = cell(
    "usdm/edge/panics",
    Outcome.ERROR,
    failure_class=FailureClass.PANIC,
    message="the kernel panicked:\n\x1b[31mOops\x1b[0m \x07[no]markup",
    hint="see the console",
    console_tail=("first", "Kernel \x00panic - not syncing", "\x1b[2Jlast"),
)
SKIPPED = cell("usdm/needs_new", Outcome.SKIP, message="needs QEMU >=11.2, this is 11.1.3", folder="", seconds=0.0)

RUN = RunResult(
    started="2026-01-02T03:04:05Z",
    argv=("harness", "run"),
    host={"cores": "2"},
    cells=(PASSED, SKIPPED, FAILED, CRASHED),
    seconds=12.34,
    jobs=2,
)
