"""QEMU builds and what they can do, accelerator, topology to argv, process, QMP."""
