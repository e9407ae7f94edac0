"""What a run leaves: plain data that is written to and read from the run folder.

The guest layer fills evidence, the judge turns it into a verdict, reports read both. Nothing here acts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from harness.errors import FailureClass
from harness.oracle_traits import OracleName as OracleName


class Record(BaseModel):
    """Base of all result records: immutable, and strict about what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Implementation = Literal["usdm", "libusdm", "kernel", "both"]
"""What steps run on; ``both`` is usdm and its oracle, each in a guest of its own."""


class Oracle(Record):
    """What steps ran on that is not ``usdm``, and what ``usdm`` is compared with.

    Args:
        name: ``libusdm`` is Intel's C library, ``kernel`` are Linux's own ``dma_iova_*`` functions.
        version: the library's version, or the kernel's release.
    """

    name: OracleName
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class _WithOracle(Record):
    """A record that names the oracle that ran, where one did.

    Args:
        oracle: what ran instead of ``usdm``, or None.
    """

    oracle: Oracle | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_by_the_library(cls, data: Any) -> Any:
        """When the C library was the only oracle, its version stood here as ``libusdm``, empty without it."""
        if not isinstance(data, dict) or "libusdm" not in data:
            return data
        version = data["libusdm"]
        named = {"oracle": {"name": "libusdm", "version": version}} if version else {}
        return named | {key: item for key, item in data.items() if key != "libusdm"}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def libusdm(self) -> str:
        """The version of the C library; empty where it did not run. Readers of results know this name."""
        return self.oracle.version if self.oracle is not None and self.oracle.name == "libusdm" else ""


class Outcome(StrEnum):
    """What a cell came to."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    ERROR = "error"
    SKIP = "skip"


class StepError(Record):
    """An error that a step met inside the guest.

    Args:
        type: the class name of the error, e.g. ``AlreadyMapped``.
        message: its text.
    """

    type: str
    message: str


class Transfer(Record):
    """One DMA of a device whose model runs beside QEMU, as the model saw it.

    Args:
        access: ``read`` when the device read memory.
        iova: where.
        size: bytes.
        bus_master: whether the function was allowed to access memory at all.
        refused: first IOVA and bytes of each piece that was refused; a piece is a page where not all is mapped.
        error: name of the errno of the first refusal; empty without one.
        note: what was odd about it on purpose.
        cut: a reset, the connection's end, or bus mastering switched off came while it was under way.
    """

    access: Literal["read", "write"]
    iova: int
    size: int
    bus_master: bool
    refused: tuple[tuple[int, int], ...] = ()
    error: str = ""
    note: str = ""
    cut: bool = False


Run = tuple[int, int, str, int, int]
"""Equal ranges of IOVAs: the first one's first IOVA, bytes of each, ``r``, ``w`` or ``rw``, how many there are, and how
many bytes from one's start to the next one's; 0 where there is one."""


class Belief(Record):
    """What the guest's program believes that a device can reach.

    Args:
        runs: ascending.
        exact: whether that is everything; else it is what must be reachable at least.
        gone: what must not be reachable any more, where not everything is known. Of what is in ``runs`` too, that
            counts.
        translated: the IOMMU translates the device's DMA.
        unknown: why nothing is known; else empty.
        failure: why the program could not say; else empty.
    """

    runs: tuple[Run, ...] = ()
    exact: bool = True
    gone: tuple[Run, ...] = ()
    translated: bool = True
    unknown: str = ""
    failure: str = ""


class DeviceNews(Record):
    """What a device whose model runs beside QEMU saw during a step, and what the program believes after it.

    What has not changed is not repeated: there may be 65,535 mappings.

    Args:
        connected: QEMU and the model are connected.
        transfers: its DMAs, oldest first.
        more: how many further ones are not kept.
        ranges: what the IOMMU lets it reach after the step, ascending; None when that is as after the step before.
        believed: what the program believes; None when that is as after the step before.
        complaints: why the model's server lost its client, or turned others away.
        failure: what the model's own code raised; empty for nothing.
    """

    connected: bool
    transfers: tuple[Transfer, ...] = ()
    more: int = 0
    ranges: tuple[Run, ...] | None = None
    believed: Belief | None = None
    complaints: tuple[str, ...] = ()
    failure: str = ""


class StepEvidence(Record):
    """What one step did, as the worker in the guest answered, plus what the host's trace saw meanwhile.

    Args:
        index: 0-based position in the scenario.
        kind: the step's kind, e.g. ``dma_read``.
        args: the step's arguments as sent to the guest.
        returns: the C return value, or None for C's NULL and for steps without one.
        error: the error met, or None.
        values: what the step observed, by name (JSON values only).
        seconds: time in the guest.
        trace: the host trace's lines that appeared during the step.
        children: the results of nested steps (``fork``).
        devices: what the devices saw whose models run beside QEMU, by name.
    """

    index: int
    kind: str
    args: dict[str, Any]
    returns: int | None = None
    error: StepError | None = None
    values: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    trace: tuple[str, ...] = ()
    children: tuple[StepEvidence, ...] = ()
    devices: dict[str, DeviceNews] = Field(default_factory=dict)


class Evidence(_WithOracle):
    """Everything that the judge looks at.

    Args:
        steps: the steps that ran, in order; fewer than the scenario has when an error ended it.
        kernel_log: the guest's kernel log from readiness to the end, one line each, without priority prefixes:
            ``[    4.123456] DMAR: ...``.
        devices: device name to its address as the guest sees it (``02:00.0``).
        oracle: what the steps ran on; None for ``usdm``.
        trace: lines of QEMU's trace that belong to no step, because there was none.
    """

    steps: tuple[StepEvidence, ...] = ()
    kernel_log: tuple[str, ...] = ()
    devices: dict[str, str] = Field(default_factory=dict)
    trace: tuple[str, ...] = ()

    @property
    def served(self) -> tuple[str, ...]:
        """Names of the devices whose models run beside QEMU."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.devices))


Vendor = Literal["intel", "amd", "arm", "virtio", "xen", "freebsd"]
Access = Literal["read", "write", "interrupt"]


class FaultRecord(Record):
    """One refused DMA as one witness saw it.

    Args:
        witness: ``trace`` (QEMU on the host), ``kernel`` (the guest's log) or ``registers`` (the IOMMU's own).
        vendor: whose IOMMU it was, or whose form the line has: ``intel`` is VT-d as Linux prints it, ``xen`` and
            ``freebsd`` are VT-d in the words of those systems.
        requester: bus, device and function as ``02:00.0``; with a PCI domain only where the log prints one.
        access: ``read`` or ``write`` (as seen from the device), ``interrupt``, or None where not said.
        address: the IOVA; the kernel prints it page aligned. None where the log does not say.
        reason: the fault reason code: VT-d's; of another vendor's IOMMU its own.
        reason_text: the log's own words for it, or None.
        pasid: PASID, or None for requests without.
        count: how many equal lines this record stands for, >= 1.
        line: 1-based line of the first of them in its source, 0 where there is none.
        step: index of the step during which the fault happened, or None where the source cannot tell.
        time: the source's own clock in seconds (the kernel's since boot, the trace's wall clock), or None. The clocks
            of two witnesses must not be subtracted from each other.
        index: index into the interrupt remapping table for ``interrupt``, else None.
        flags: the flags of an AMD-Vi event, else None.
    """

    witness: Literal["trace", "kernel", "registers"]
    vendor: Vendor = "intel"
    requester: str
    access: Access | None
    address: int | None
    reason: int | None
    reason_text: str | None = None
    pasid: int | None = None
    count: int = 1
    line: int = 0
    step: int | None = None
    time: float | None = None
    index: int | None = None
    flags: int | None = None


class StatusLine(Record):
    """One ``DRHD: handling fault status reg N`` line: a fault interrupt came, whether or not its record was printed.

    Args:
        value: the fault status register.
        overflow: PFO, a fault came while the record of another device was pending, and was lost.
        pending: PPF, there is at least one record to read.
        index: FRI, the first record to read.
        line: 1-based line in the log.
        time: seconds since boot, or None.
    """

    value: int
    overflow: bool
    pending: bool
    index: int
    line: int
    time: float | None = None


class Explanation(Record):
    """A fault record, or several that are equal, in words.

    Args:
        fault: the first of them; ``count`` says how many there are.
        name: the reason in a few words, by the IOMMU's specification.
        facts: what the record says when it is decoded, one sentence each.
        causes: what usually leads to it, the likeliest first.
        checks: what to look at next.
        scenarios: ids of scenarios of the harness that show such a fault.
    """

    fault: FaultRecord
    name: str
    facts: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()


class LogExplanation(Record):
    """What a log says of faults, in words.

    Args:
        explanations: one for each kind of fault, in the order of the log.
        suppressed: how many messages the log says its rate limit has left out.
        notes: what the log says beside the records: status registers, records that were not kept.
    """

    explanations: tuple[Explanation, ...] = ()
    suppressed: int = 0
    notes: tuple[str, ...] = ()


class Check(Record):
    """One thing that was judged.

    Args:
        name: what was looked at, e.g. ``step 3 (map)`` or ``faults``.
        passed: whether it was as the scenario says.
        message: one line for people; for a failure: expected and observed.
        expected: the expectation in words or as JSON text.
        observed: what was seen.
        step: index of the step it belongs to, or None.
        known: id of the known difference of the oracle that was looked for instead, e.g. ``D1``; empty for none.
    """

    name: str
    passed: bool
    message: str
    expected: str = ""
    observed: str = ""
    step: int | None = None
    known: str = ""


class Finding(Record):
    """A known difference of the oracle that this cell's evidence shows.

    Args:
        defect: its id, ``D1`` of Intel's C library, ``K1`` of the kernel; ``policy`` or ``absent`` for one of the
            library that is no defect.
        step: index of the step that shows it, or None for the faults of the whole scenario.
        observed: what was seen.
        meaning: the difference as one sentence; empty in results from before there was one.
    """

    defect: str
    step: int | None
    observed: str
    meaning: str = ""


class Verdict(Record):
    """The judge's word on one cell's evidence.

    Args:
        passed: True when every check passed.
        checks: all of them, in the order of the scenario.
        faults: the faults of both witnesses, trace first.
        notes: explained differences between the witnesses, for people.
        findings: what of the oracle is known to differ, and was seen to.
    """

    passed: bool
    checks: tuple[Check, ...]
    faults: tuple[FaultRecord, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


class Versions(_WithOracle):
    """What ran; ``template`` is empty for a guest that was booted.

    Args:
        harness: version of the harness.
        python: version of the host's Python.
        qemu: version of QEMU, e.g. ``11.1.3``.
        qemu_build: which build it is, with its Debian version or its path.
        kernel: release of the guest's kernel; empty without a guest.
        image: name of the image; image_key: its key in the cache.
        accelerator: ``tcg`` or ``kvm``; accelerator_reason: why that one.
        payload: hash over the code that was sent into the guest.
        guest_python: version of the guest's Python.
        template: key of the template; empty for a guest that was booted.
    """

    harness: str
    python: str
    qemu: str
    qemu_build: str
    kernel: str
    image: str
    image_key: str
    accelerator: str
    accelerator_reason: str
    payload: str
    guest_python: str = ""
    template: str = ""


class CellResult(Record):
    """The whole result of one cell; ``verdict.json`` in its run folder.

    Args:
        scenario: id of the scenario: its path below the scenarios folder without ``.yaml``, e.g. ``dma/unmapped_read``.
        title: the scenario's title.
        source: the sentence of the specification that it covers.
        file: where the scenario was read from.
        outcome: pass, fail, error or skip.
        failure_class: why not, or None for a pass or a skip.
        message: one line that says why (failed check, error, skip reason); empty for a pass.
        hint: what to do about it, or None.
        seconds: wall time of the cell.
        stages: stage name (``boot``, ``connect``, ``steps``, ...) to seconds.
        start: ``clone`` of a template or ``boot``; empty when no guest was started.
        folder: the run folder of the cell, or empty when there is none.
        rerun: a command line that runs exactly this cell again.
        versions: what ran; None where nothing was started.
        verdict: what the judge found; None when it was not asked.
        evidence: what the steps and the witnesses left; None without a guest.
        console_tail: the console's last lines, for errors.
        implementation: what the steps ran on; with ``both``, ``evidence`` is usdm's and ``reference`` its oracle's.
        reference: the oracle's evidence of a cell that ran on both.
    """

    scenario: str
    title: str
    source: str
    file: str
    outcome: Outcome
    failure_class: FailureClass | None = None
    message: str = ""
    hint: str | None = None
    seconds: float = 0.0
    stages: dict[str, float] = Field(default_factory=dict)
    start: Literal["clone", "boot", ""] = ""
    folder: str = ""
    rerun: str = ""
    versions: Versions | None = None
    verdict: Verdict | None = None
    evidence: Evidence | None = None
    console_tail: tuple[str, ...] = ()
    implementation: Implementation = "usdm"
    reference: Evidence | None = None

    @property
    def oracle(self) -> Oracle | None:
        """What its steps ran on instead of ``usdm``, or beside it; None for ``usdm`` alone, or without evidence."""
        found = self.reference or self.evidence
        return None if found is None else found.oracle


class RunResult(Record):
    """A whole run; ``run.json`` in the run folder.

    Args:
        started: ISO 8601 time in UTC.
        argv: the command line.
        host: facts about the host by name (cores, memory, kernel).
        cells: results in the order of the scenarios.
        seconds: wall time.
        interrupted: True when the user stopped it.
        jobs: how many cells ran at once.
    """

    started: str
    argv: tuple[str, ...]
    host: dict[str, str] = Field(default_factory=dict)
    cells: tuple[CellResult, ...] = ()
    seconds: float = 0.0
    interrupted: bool = False
    jobs: int = 1


class Progress:
    """Receives what happens during a run; a report that shows it live overrides what it needs.

    Calls may come from several threads, but never two at once.
    """

    def run_started(self, total: int, jobs: int) -> None:
        """A run of ``total`` cells begins with ``jobs`` at once."""

    def cell_stage(self, scenario: str, stage: str) -> None:
        """A cell enters a stage (``boot``, ``connect``, ``steps``, ``judge``)."""

    def cell_finished(self, result: CellResult) -> None:
        """A cell is done."""

    def message(self, text: str) -> None:
        """Something that the user should know (``building image trixie ...``)."""

    def run_finished(self, result: RunResult) -> None:
        """The run is over."""
