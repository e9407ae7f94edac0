"""What runs in the guest: the worker, the steps and a user-space driver for QEMU's edu device.

It is started as `python3 -I -S`, mostly under TCG, so modules import little and late, and know `usdm` and the standard
library only.
"""
