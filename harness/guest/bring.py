"""What a running guest is given beside its payload: Intel's C library, or the test module for its kernel.

Nothing of either is in the image or in a template, so clones of one template serve runs with and without. Each is some
40 KB and takes a few hundredths of a second.
"""

from __future__ import annotations

import base64
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.guest.guest import Guest
from harness.image.library import Library
from harness.image.module import NAME, Module


def bring_library(guest: Guest, library: Library, deadline: Deadline) -> None:
    """Send the C library to where the worker looks for it; it is loaded when the steps are to run on it.

    Args:
        guest: a guest whose worker was started.
        library: the library.
        deadline: until when it must be there.

    Raises:
        InfrastructureError: the guest has no room for it.
        GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
    """
    guest.ask("sending the C library", "_library", {"data": _text(library.file)}, deadline)


def load_module(guest: Guest, module: Module, deadline: Deadline) -> None:
    """Send the test module and load it.

    Args:
        guest: a guest whose worker was started, with the kernel that the module is for.
        module: the module.
        deadline: until when it must be loaded.

    Raises:
        InfrastructureError: the kernel does not take it; the message has what it said.
        GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead.
    """
    answer = guest.request("loading the test module", "_module", {"name": NAME, "data": _text(module.file)}, deadline)
    if answer.get("error"):
        raise InfrastructureError(
            f"the guest's kernel does not take the test module for {module.release}: {answer['error']['message']}",
            hint="the image and the module belong together: harness fetch --module KERNEL",
        )


def _text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
