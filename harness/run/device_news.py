"""What the devices whose models run beside QEMU saw during a step, beside what the guest's program believes."""

from __future__ import annotations

from harness.deadline import Deadline
from harness.guest.guest import Guest
from harness.results import DeviceNews, Range, Transfer


class DeviceWatch:
    """Asks after each step."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._ranges: dict[str, tuple[Range, ...]] = {}

    def news(self, deadline: Deadline) -> dict[str, DeviceNews]:
        """What happened since it was last asked, by device; empty for a machine without such devices."""
        server = self._guest.emulator.devices
        if server is None:
            return {}
        found = {}
        for name in server.names:
            said = server.ask("news", name, deadline)
            if "ranges" in said:
                self._ranges[name] = tuple((iova, size, access) for iova, size, access in said["ranges"])
            found[name] = DeviceNews(
                connected=said["connected"],
                transfers=tuple(Transfer.model_validate(one) for one in said["transfers"]),
                more=said["more"],
                ranges=self._ranges.get(name, ()) if said["connected"] else None,
            )
        return found
