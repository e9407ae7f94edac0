"""Faults of the other IOMMUs, beside those of an address, which are in ``mappings``."""

from __future__ import annotations

from typing import Final

from harness.fault.advice.model import Advice

NO_ENTRY: Final = Advice(
    causes=(
        "The function is in no domain: no driver has it, or its driver was unbound while it still did DMA.",
        "The IOMMU's entry for it is damaged, or has bits set that this hardware does not take.",
        "Firmware names another requester ID for it (IVRS, IORT, VIOT).",
    ),
    checks=(
        "See whether it has a domain: ls -l /sys/bus/pci/devices/{device}/iommu_group",
        "See who drives it: ls -l /sys/bus/pci/devices/{device}/driver",
        "See that the function exists: lspci -D -s {device}",
    ),
)

TABLE: Final = Advice(
    causes=("The IOMMU could not read one of its tables: memory errors, or an address that is no memory.",),
    checks=("Look for machine checks and memory errors: dmesg | grep -iE 'mce|hardware error|edac'",),
)

REQUEST: Final = Advice(
    causes=(
        "The device made a request that it may not make: translation (ATS), a page request (PRI), or of a process.",
        "A DMA write went into the interrupt window by mistake.",
    ),
    checks=(
        "See what the device has enabled: lspci -vvv -s {device} | grep -E 'ATS|PASID|PRI|Page Request'",
        "Try without ATS: the kernel's option pci=noats",
    ),
)

TIMEOUT: Final = Advice(
    causes=("The device no longer answers: it hangs, is in reset, asleep, or was pulled out.",),
    checks=(
        "See whether it still answers: lspci -s {device} (all ff: it is gone)",
        "Look for AER messages: dmesg | grep -i aer",
        "Try without ATS: the kernel's option pci=noats",
    ),
)

RMP: Final = Advice(
    causes=("SEV-SNP forbids the page to the device: the guest has not shared it, or its owner has changed.",),
    checks=("See that the buffer is in shared (decrypted) memory: swiotlb, or set_memory_decrypted in the guest.",),
)

UNKNOWN: Final = Advice(
    causes=("The code is not one of those that the specification defines, or the log does not say it.",),
    checks=("Paste the lines around it too: the reason of an old kernel stands on the next line.",),
)
