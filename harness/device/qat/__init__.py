"""A stub with Intel QAT's IDs, transport rings in QAT's style, and operations of its own: no imitation of its firmware.

docs/qat-device.md is the reference of registers and rings; :mod:`harness.device.qat.layout` has its numbers.
"""
