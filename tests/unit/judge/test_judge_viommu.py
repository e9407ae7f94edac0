"""Scenarios behind virtio-iommu and AMD's IOMMU, judged."""

from __future__ import annotations

import pytest

from harness.judge import judge
from harness.results import Evidence, StepEvidence, Verdict
from harness.scenario.model import Scenario

DEVICES = {"edu0": {"model": "edu", "at": "02:00.0"}}


def judged(iommu: str, reason: str, trace: list[str], log: list[str], *, access: str = "read") -> Verdict:
    fault = {"device": "edu0", "access": access, "address": 0x900000, "reason": reason}
    scenario = Scenario.model_validate(
        {
            "title": "t",
            "source": "s",
            "machine": {"iommu": iommu, "devices": DEVICES},
            "steps": [{"dma_read": {"device": "edu0", "iova": 0x900000, "size": 4}}],
            "expect": {"faults": [fault]},
        }
    )
    step = StepEvidence(index=0, kind="dma_read", args={}, values={"completed": True}, trace=tuple(trace))
    return judge(scenario, Evidence(steps=(step,), kernel_log=tuple(log), devices={"edu0": "02:00.0"}))


def virtio(*, reason: int = 2, flag: int = 1, rid: int = 512) -> list[str]:
    return [
        f"virtio_iommu_translate mr=x rid={rid} addr=0x900000 flag={flag}",
        f"virtio_iommu_report_fault FAULT reason={reason} flags=256 endpoint={rid} address =0x900000",
    ]


AMD = [
    "amdvi_page_fault error: page fault accessing guest physical address 0x900000",
    "amdvi_translation_result devid: 02:00.0 gpa 0x900000 hpa 0x0",
]
VIRTIO_LOG = ["[    1.000000] virtio_iommu virtio0: page fault from EP 512 at 0x900000 []"]
AMD_LOG = [
    "[    1.000000] pci 0000:00:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0x0 flags=0x0009]"
]


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_virtio() -> None:
    verdict = judged("virtio", "mapping", virtio(), VIRTIO_LOG)
    assert verdict.passed
    assert [(fault.witness, fault.vendor) for fault in verdict.faults] == [("trace", "virtio"), ("kernel", "virtio")]


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        (virtio(reason=1), "missing: edu0 (02:00.0) read 0x900000, reason 0x02 (no mapping that allows the access)"),
        (virtio(flag=2), "unexpected: edu0 (02:00.0) write 0x900000"),
        (virtio(rid=768), "unexpected: 03:00.0 read 0x900000"),
        (
            ["vtd_dmar_fault sid 0x200 fault 2 addr 0x900000 write 0"],
            "unexpected: edu0 (02:00.0) read 0x900000, reason 0x02",
        ),
        ([], "missing: edu0"),
    ],
)
def test_virtio_another_fault_is_not_the_expected_one(trace: list[str], said: str) -> None:
    verdict = judged("virtio", "mapping", trace, [])
    assert "faults" in failed(verdict)
    (check,) = [one for one in verdict.checks if one.name == "faults"]
    assert said in check.message


@pytest.mark.parametrize("access", ["read", "write"])
def test_amds_trace_does_not_say_the_access_and_everything_else_counts(access: str) -> None:
    verdict = judged("amd", "io_page_fault", AMD, AMD_LOG, access=access)
    assert verdict.passed
    assert len(verdict.notes) == 1
    assert failed(judged("amd", "io_page_fault", [line.replace("02:00.0", "03:00.0") for line in AMD], AMD_LOG)) == [
        "faults"
    ]
    assert failed(judged("amd", "io_page_fault", AMD, [])) == ["witnesses"]
    assert "faults" in failed(judged("amd", "io_page_fault", AMD[:1], AMD_LOG))


def test_a_line_of_the_kernel_alone_fails_a_scenario() -> None:
    assert failed(judged("virtio", "mapping", virtio(), [*VIRTIO_LOG, *VIRTIO_LOG])) == ["witnesses"]
