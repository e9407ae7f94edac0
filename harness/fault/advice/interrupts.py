"""Faults of interrupt remapping: an interrupt whose entry is missing, foreign, or of the wrong format."""

from __future__ import annotations

from typing import Final

from harness.fault.advice.model import Advice

_VECTORS: Final = "See the device's vectors: ls /sys/bus/pci/devices/{device}/msi_irqs; grep {device} /proc/interrupts"

ENTRY: Final = Advice(
    causes=(
        "The device sent an interrupt after its vector was freed: the driver was unbound, or the irq freed, too early.",
        "MSI address or data in the device are old ones: after a reset, a resume, or a driver that restored them.",
        "A DMA write went into the MSI window by mistake, and was taken for an interrupt.",
    ),
    checks=(_VECTORS, "Compare address and data of the capability: lspci -vvv -s {device} | grep -A3 MSI"),
)

FORMAT: Final = Advice(
    causes=(
        "The device sent an interrupt in the format without remapping: its MSI was set up before remapping was on.",
        "A DMA write went into the MSI window by mistake, and was taken for an interrupt.",
        "In a virtual machine: the device is driven past the IOMMU's interrupt remapping.",
    ),
    checks=(
        _VECTORS,
        "See whether remapping is on: dmesg | grep -i 'DMAR-IR'",
        "Look at the address: remapped ones have bit 4 set. lspci -vvv -s {device} | grep -A3 MSI",
    ),
)

SOURCE: Final = Advice(
    causes=(
        "Another function used this one's vector: a bridge that hides the requester ID, or a device with an alias.",
        "Firmware names a wrong requester ID for the I/O APIC or the HPET.",
    ),
    checks=(
        "See the path to the device: lspci -t",
        "See what owns the vector: /sys/kernel/debug/iommu/intel/ir_translation_struct (CONFIG_INTEL_IOMMU_DEBUGFS)",
    ),
)

TABLE: Final = Advice(
    causes=("The interrupt remapping table, or a posted-interrupt descriptor, is out of reach or damaged.",),
    checks=(
        "Read the table: /sys/kernel/debug/iommu/intel/ir_translation_struct (CONFIG_INTEL_IOMMU_DEBUGFS)",
        "Look for machine checks and memory errors: dmesg | grep -iE 'mce|hardware error|edac'",
    ),
)
