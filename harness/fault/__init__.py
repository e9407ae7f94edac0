"""Faults as two witnesses saw them: the guest's kernel log and QEMU's trace; and the two compared."""

from harness.fault.compare import Comparison, compare
from harness.fault.kernel_log import KernelFaults, StatusLine, parse_kernel_log
from harness.fault.reasons import describe, reason_name
from harness.fault.trace import clamped_lines, collapse, evidence_faults, parse_trace
from harness.fault.viommu_trace import without_translations

__all__ = [
    "Comparison",
    "KernelFaults",
    "StatusLine",
    "clamped_lines",
    "collapse",
    "compare",
    "describe",
    "evidence_faults",
    "parse_kernel_log",
    "parse_trace",
    "reason_name",
    "without_translations",
]
