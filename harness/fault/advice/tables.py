"""Faults of VT-d's tables: root, context, PASID and page tables that are missing, wrong or out of reach."""

from __future__ import annotations

from typing import Final

from harness.fault.advice.model import Advice

NO_DOMAIN: Final = Advice(
    causes=(
        "The function is in no domain: no driver has it, or its driver was unbound while it still did DMA.",
        "The requester ID is not the function's: behind a bridge that is not PCIe, or a device with a quirk (alias).",
        "A VF was switched on, or a device hotplugged, and its DMA began before a driver had set it up.",
        "The device was left running by firmware or by the kernel before (kexec, kdump).",
    ),
    checks=(
        "See that the function exists: lspci -D -s {device}",
        "See whether it has a domain: ls -l /sys/bus/pci/devices/{device}/iommu_group",
        "See who drives it: ls -l /sys/bus/pci/devices/{device}/driver",
        "List what is on its bus: lspci -t; lspci -s {bus}:",
        "After kexec: look for 'Translation is enabled prior to OS' in the log's beginning.",
    ),
    scenarios=("dma/after_unregister", "sriov/requester"),
)

BAD_ENTRY: Final = Advice(
    causes=(
        "The IOMMU's driver set an entry up that this hardware does not take: a width or a type that it lacks.",
        "Memory that holds the tables was overwritten, or an IOMMU that is emulated reads them otherwise.",
        "The tables were changed while in use, without the invalidation that belongs to it.",
    ),
    checks=(
        "Compare the widths: dmesg | grep -iE 'host address width|cap .* ecap'",
        "Read the entry itself: /sys/kernel/debug/iommu/intel/dmar_translation_struct (CONFIG_INTEL_IOMMU_DEBUGFS)",
        "Try another kernel, or another emulator: usdm and its user can neither cause nor mend this.",
    ),
)

NO_ACCESS: Final = Advice(
    causes=(
        "A table lies where the IOMMU cannot read: its address is wrong, or its memory has gone.",
        "Memory that holds the tables was overwritten.",
    ),
    checks=(
        "Look for machine checks and memory errors in the log around it: dmesg | grep -iE 'mce|hardware error|edac'",
        "Read the tables: /sys/kernel/debug/iommu/intel/dmar_translation_struct (CONFIG_INTEL_IOMMU_DEBUGFS)",
    ),
)

BLOCKED: Final = Advice(
    causes=(
        "The function's entry blocks what it asked for: translation requests (ATS), PASIDs, or page requests.",
        "ATS, PASID or PRI is enabled in the device and not in the IOMMU, or the device uses it uninvited.",
    ),
    checks=(
        "See what the device has enabled: lspci -vvv -s {device} | grep -E 'ATS|PASID|PRI|Page Request'",
        "Try without ATS: the kernel's option pci=noats",
    ),
)

PASID: Final = Advice(
    causes=(
        "The device used a PASID that is bound to no process, or no more: the process ended, or was unbound.",
        "A shared work queue took a descriptor of a process that has no binding to this device.",
    ),
    checks=(
        "See which PASIDs there are: /sys/kernel/debug/iommu/intel/dmar_translation_struct",
        "Look for the end of the process right before the fault.",
        "See whether the device may use PASIDs: lspci -vvv -s {device} | grep PASID",
    ),
)

DIRTY: Final = Advice(
    causes=("The IOMMU was to note in an entry that a page was used, and could not write or snoop the tables.",),
    checks=(
        "See the IOMMU's capabilities (ECAP: SMPWC, FLTS, SLADS): dmesg | grep -i ecap",
        "Try another kernel: the driver must not ask for it on hardware that lacks it.",
    ),
)

EXECUTE: Final = Advice(
    causes=("The device asked to execute, or as supervisor, where its process may not.",),
    checks=("See what the device has enabled: lspci -vvv -s {device} | grep -A3 PASID",),
)
