"""The guest's side of a card that is pulled out: the kernel finds that it has gone, and asks its user to let go."""

from __future__ import annotations

import os
import select
import socket
import time

from harness.agent import pci
from harness.agent.outcome import NotTaken, Outcome
from usdm import vfio_uapi as uapi
from usdm.vfio import full_bdf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step

_KOBJECT_EVENTS = 15  # the netlink family by which the kernel tells of devices that come and go
_KERNEL_GROUP = 1
_SECONDS = 60.0
_LONGEST = 8192

_watched: dict[str, _Watch] = {}


class _Watch:
    """What tells that a function goes away.

    Attributes:
        asked: An eventfd that vfio-pci signals when the open device must be given back; -1 when it is not open.
    """

    def __init__(self, context: Context, name: str) -> None:
        self.asked = -1
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _KOBJECT_EVENTS)
        self._events.bind((0, _KERNEL_GROUP))
        self._path = f"/{full_bdf(context.address(name))}"
        self._end = time.monotonic() + _SECONDS
        if name in context.devices:
            self.asked = os.eventfd(0, os.EFD_CLOEXEC)
            context.devices[name].device.set_irqs(uapi.PCI_REQ_IRQ, [self.asked])

    def wait_asked(self) -> None:
        """Wait until the kernel asks for the device; raises `NotTaken`."""
        self._wait(self.asked, "the kernel did not ask for the device")

    def wait_removed(self) -> None:
        """Wait until the kernel has removed the function; raises `NotTaken`."""
        while True:
            self._wait(self._events.fileno(), "the kernel did not remove the function")
            words = self._events.recv(_LONGEST).split(b"\0")
            action, _, path = words[0].decode(errors="replace").partition("@")
            if action == "remove" and path.endswith(self._path):
                return

    def _wait(self, fd: int, why: str) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(0.0, self._end - time.monotonic()) * 1000):
            raise NotTaken(f"{self._path[1:]}: {why} in {_SECONDS:g} s")

    def close(self) -> None:
        self._events.close()
        if self.asked >= 0:
            os.close(self.asked)
            self.asked = -1


def watch_removal(context: Context, args: dict[str, Any]) -> Outcome:
    """Look out for the removal of a function; the card is pulled when this has returned.

    Raises:
        NotTaken: The function is not there.
    """
    name = args["device"]
    if not os.access(pci.folder(context.address(name)), os.F_OK):
        raise NotTaken(f"{full_bdf(context.address(name))} is not there")
    _watched[name] = _Watch(context, name)
    return Outcome()


def removed(context: Context, args: dict[str, Any]) -> Outcome:
    """Wait until the kernel has noticed; close the device when it asks, but not with `keep`.

    Values: counts (asked, closed).

    Raises:
        NotTaken: The kernel did not notice, or not remove the function, in a minute.
    """
    name = args["device"]
    watch = _watched.pop(name)
    asked = closed = 0
    try:
        if watch.asked >= 0:
            watch.wait_asked()
            asked = 1
        if asked and not args["keep"]:
            context.give_back(name)
            closed = 1
        if not asked or closed:
            watch.wait_removed()
    finally:
        watch.close()
    return Outcome(values={"counts": {"asked": asked, "closed": closed}})


STEPS: dict[str, Step] = {"_watch_removal": watch_removal, "_removed": removed}
