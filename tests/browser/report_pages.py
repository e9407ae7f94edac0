"""A qualification as a page of tests has it: several points, every standing, faults, mappings, changes."""

from __future__ import annotations

from report_data import EVIDENCE, VERDICT, VERSIONS
from report_qualified import EVERY, KNOWN, qualification, qualified

from harness.qualified.compare import compare
from harness.qualified.records import Qualification
from harness.results import Evidence, Outcome, StepEvidence

POINTS = [
    (qemu, kernel, viommu) for qemu in ("11.1", "7.2") for kernel in ("6.12", "6.1") for viommu in ("intel", "virtio")
]


def sample() -> Qualification:
    """64 cells on eight points: two that fail, one error after a retry, one that is known."""
    cells = []
    for number in range(8):
        for qemu, kernel, viommu in POINTS:
            name = f"{'dma' if number < 5 else 'usdm'}/scenario_{number}"
            bad = number == 1 and (kernel, viommu) == ("6.1", "virtio")
            known = KNOWN if number == 2 and kernel == "6.1" and qemu == "7.2" and viommu == "intel" else None
            outcome = Outcome.FAIL if bad or known else Outcome.PASS
            fields = {
                "versions": VERSIONS,
                "evidence": evidence(number),
                "stages": {"boot": 1.5, "steps": 0.2 * number},
            }
            if outcome is Outcome.PASS:
                fields["verdict"] = VERDICT.model_copy(update={"passed": True, "checks": VERDICT.checks[:1]})
            else:
                fields["verdict"] = VERDICT
            cells.append(qualified(name, qemu, kernel, viommu, outcome, known=known, fields=fields))
    cells.append(EVERY.cells[-1])
    before = qualification(*(cell.model_copy(update={"known": None}) for cell in cells[10:]))
    shared = {name: getattr(EVERY, name) for name in ("title", "matrix", "host", "not_run", "stale", "notes")}
    made = qualification(*cells, **shared)
    return made.model_copy(update={"comparison": compare(before, made, 1.5, "/earlier")})


def evidence(number: int) -> Evidence:
    """Steps with a mapping, its end, and DMAs before and after."""
    iova = 0x200000 * (number + 1)
    told = [
        ("register", {"device": "edu0"}, 0, {}),
        ("map", {"buffer": "a", "offset": 0, "size": 0x4000}, iova, {"iova": iova}),
        ("dma_read", {"device": "edu0", "buffer": "a", "size": 64}, None, {"iova": iova}),
        ("unmap", {"buffer": "a", "offset": 0, "size": 0x4000}, 0, {}),
        ("dma_read", {"device": "edu0", "buffer": "a", "size": 64}, None, {"iova": iova}),
    ]
    steps = tuple(
        StepEvidence(index=index, kind=kind, args=args, returns=returns, values=values, seconds=0.01 * (index + 1))
        for index, (kind, args, returns, values) in enumerate(told)
    )
    return EVIDENCE.model_copy(update={"steps": steps})
