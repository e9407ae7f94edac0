"""Boot QEMU guests with a vIOMMU, run USDM in them, and judge DMA and DMA faults."""

__version__ = "0.1.0"
