"""USDM, the user space DMA-able memory of Intel QAT, in VFIO mode.

`usdm.driver.Usdm` is the interface for Python, `usdm.qae_mem` the one with the names and return values of C, and
`usdm.vfio` opens containers, groups and devices. The package imports nothing by itself, so that it starts fast.
"""
