"""Device models that run on the host beside QEMU, which speaks vfio-user with them.

Standard library only, and nothing of the rest of the harness but its errors: the models run in a process of their own.
"""
