"""What the devices whose models run beside QEMU saw during a step, beside what the guest's program believes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.agent.ranges import pack
from harness.deadline import Deadline
from harness.guest.guest import Guest
from harness.machine.device_server import DeviceServer
from harness.results import Belief, DeviceNews, Run, Transfer
from harness.run.in_time import in_time

_LONG = 2000  # of an error's text


class DeviceWatch:
    """Asks after each step."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._reached: dict[str, tuple[Run, ...]] = {}  # as the model has last said
        self._ranges: dict[str, tuple[Run, ...]] = {}  # as the news have last said
        self._believed: dict[str, Belief] = {}

    def news(self, deadline: Deadline) -> dict[str, DeviceNews]:
        """What happened since it was last asked, by device; empty for a machine without such devices.

        Args:
            deadline: until when everybody must have answered.

        Raises:
            GuestPanic, GuestHang, GuestLost, EmulatorCrash: what happened instead in the guest.
            InfrastructureError: the process of the models ended, or took too long.
        """
        server = self._guest.emulator.devices
        if server is None:
            return {}
        believed = self._ask_program(server.names, deadline)
        found = {}
        for name in server.names:
            said, transfers = self._ask_model(server, name, deadline)
            ranges = self._reached.get(name)
            found[name] = DeviceNews(
                connected=said["connected"],
                transfers=transfers,
                more=said["more"],
                ranges=None if ranges == self._ranges.get(name) else ranges,
                believed=None if believed[name] == self._believed.get(name) else believed[name],
                complaints=tuple(said["clients"]),
                failure=said["failure"],
            )
            self._ranges[name] = ranges or ()
            self._believed[name] = believed[name]
        return found

    def late(self, deadline: Deadline, last: Mapping[str, DeviceNews]) -> dict[str, DeviceNews]:
        """The news of the last step, with what the devices transferred behind its answer.

        Raises:
            InfrastructureError: the process of the models ended, or took too long.
        """
        server = self._guest.emulator.devices
        if server is None:
            return dict(last)
        found = {}
        for name, news in last.items():
            said, transfers = self._ask_model(server, name, deadline)
            update = {"transfers": (*news.transfers, *transfers), "more": news.more + said["more"]}
            found[name] = news.model_copy(update=update)
        return found

    def _ask_model(
        self, server: DeviceServer, name: str, deadline: Deadline
    ) -> tuple[dict[str, Any], tuple[Transfer, ...]]:
        """What a model says, and its transfers. What it can reach it says once, for whichever step is next."""
        with in_time(f"asking the model of {name}"):
            said = server.ask("news", name, deadline)
        if "ranges" in said:
            self._reached[name] = tuple(pack(tuple(one) for one in said["ranges"]))
        return said, tuple(Transfer.model_validate(one) for one in said["transfers"])

    def _ask_program(self, names: tuple[str, ...], deadline: Deadline) -> dict[str, Belief]:
        """What the program believes; what is wrong with its answer is the program's failure, not the harness's."""
        answer = self._guest.request("asking what is mapped", "_believed", {"devices": list(names)}, deadline)
        error: dict[str, Any] | None = answer.get("error")
        if error:
            failed = Belief(failure=f"{error['type']}: {error['message']}"[-_LONG:])
            return dict.fromkeys(names, failed)
        devices = answer["values"]["devices"]
        return {name: Belief.model_validate(devices[name]) for name in names}
