"""The test module put into a running guest: nothing of it is in the image or in a template, which serve others too."""

from __future__ import annotations

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.guest import Guest
from harness.image.module import NAME, Module

_FILE = f"/run/{NAME}.ko"
# The kernel says why in its log; insmod only that the format is not right.
_LOAD = f"cat >{_FILE} && insmod {_FILE} || {{ dmesg | grep -F -e {NAME} -e module: | tail -n 3 >&2; false; }}"


def load_module(guest: Guest, module: Module, deadline: Deadline) -> None:
    """Send the module into a guest and load it.

    Args:
        guest: a guest with the kernel that the module is for.
        module: the module.
        deadline: until when it must be loaded.

    Raises:
        InfrastructureError: the kernel does not take it; the message has what it said.
        GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
    """
    done = guest.run(_LOAD, deadline, module.file.read_bytes())
    if done.status:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise InfrastructureError(
            f"the guest's kernel does not take the test module for {module.release}: {said}",
            hint="the image and the module belong together: harness fetch --module KERNEL",
        )
