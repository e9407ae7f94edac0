"""Steps that the host does; the guest and the devices' process are played by recorders."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import ConfigurationError, InfrastructureError
from harness.machine.device_server import RequestRefusedError
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.run import device_steps
from harness.run.device_steps import do_step

ANSWER = {"error": None, "values": {"counts": {"asked": 1, "closed": 1}}, "seconds": 99.0}
DEADLINE = Deadline.after(600)


class Player:
    """A guest with a process of device models, which notes what is asked of either."""

    def __init__(self, *, served: bool = True, refuses: bool = False) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.refuses = refuses
        self.spec = MachineSpec(devices=(DeviceSpec("d", "qat", "03:00.0"),), hot_plug=(3,))
        self.emulator = SimpleNamespace(devices=SimpleNamespace(ask=self._ask) if served else None)

    def _ask(self, do: str, function: str, deadline: Deadline, **more: Any) -> dict[str, Any]:
        self.asked.append((do, function, more))
        if deadline.remaining <= 0:
            raise TimeoutError
        if self.refuses:
            raise RequestRefusedError("the device model refused release: no request came that would be held")
        return {}

    def request(self, doing: str, kind: str, args: dict[str, Any], _deadline: Deadline) -> dict[str, Any]:
        self.asked.append((kind, args))
        assert doing == "the surprise removal of d"
        return {**ANSWER, "error": {"type": "NotTaken", "message": "not there"}} if self.refuses else ANSWER

    def do(self, kind: str, deadline: Deadline = DEADLINE, **args: Any) -> dict[str, Any]:
        return do_step(self, kind, {"device": "d", **args}, deadline)  # type: ignore[arg-type]


def test_a_device_in_no_slot_is_not_pulled_out() -> None:
    player = Player()
    player.spec = replace(player.spec, hot_plug=())
    with pytest.raises(ConfigurationError, match="d is in no slot"):
        player.do("surprise_removal")
    assert player.asked == []


@pytest.mark.parametrize(
    ("kind", "args", "asked"),
    [
        ("misbehave", {"how": "delay", "milliseconds": 5, "times": 2}, ("misbehave", "d")),
        ("misbehave", {"how": "wrong_requester", "through": "e", "milliseconds": 0, "times": 1}, ("misbehave", "d")),
        ("resume", {}, ("release", "d")),
        ("vanish", {}, ("vanish", "d")),
    ],
)
def test_the_process_of_the_models_is_told(kind: str, args: dict[str, Any], asked: tuple[str, str]) -> None:
    player = Player()
    answer = player.do(kind, **args)
    assert player.asked == [(*asked, args)]
    assert answer["values"] == {}


def test_what_the_model_will_not_do_is_an_error_of_the_step() -> None:
    answer = Player(refuses=True).do("resume")
    assert answer["error"]["type"] == "NotDone"
    assert answer["error"]["message"].endswith("no request came that would be held")


def test_a_deadline_that_is_over_is_told_with_the_step() -> None:
    with pytest.raises(InfrastructureError, match="the step resume was not done before the scenario's deadline"):
        Player().do("resume", Deadline.after(0))


@pytest.mark.parametrize("kind", ["misbehave", "resume", "vanish"])
def test_without_such_a_process_that_is_told(kind: str) -> None:
    with pytest.raises(InfrastructureError, match=f"no device for {kind}"):
        Player(served=False).do(kind)


def test_a_card_is_pulled_between_the_guests_two_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    player = Player()
    monkeypatch.setattr(
        device_steps, "pull_out", lambda _emulator, spec, bus, _: player.asked.append(("pull", spec, bus))
    )
    answer = player.do("surprise_removal", keep=True)
    assert player.asked == [
        ("_watch_removal", {"device": "d"}),
        ("pull", player.spec, 3),
        ("_removed", {"device": "d", "keep": True}),
    ]
    assert answer["values"] == ANSWER["values"]
    assert answer["seconds"] < ANSWER["seconds"], "the whole step's, not the guest's half"


def test_nothing_is_pulled_when_the_guest_says_that_the_device_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    player = Player(refuses=True)
    monkeypatch.setattr(device_steps, "pull_out", lambda *_: pytest.fail("pulled"))
    assert player.do("surprise_removal")["error"]["type"] == "NotTaken"
    assert len(player.asked) == 1
