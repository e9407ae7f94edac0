"""What is asked after each step, and what of the answers becomes evidence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.results import Belief
from harness.run.device_news import DeviceWatch

BELIEF = {"runs": [[4096, 4096, "rw", 1, 0]], "gone": [], "exact": True, "unknown": "", "translated": True}


class Pretended:
    """A guest and the process of its models, which give what they are told to."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.said: dict[str, Any] = {"ranges": [[4096, 4096, "rw"]]}
        self.answer: dict[str, Any] = {"values": {"devices": {"qat0": BELIEF}}}
        self.guest: Any = SimpleNamespace(request=self.request)
        self.guest.emulator = SimpleNamespace(devices=SimpleNamespace(names=("qat0",), ask=self.ask))

    def request(self, doing: str, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        assert (kind, args) == ("_believed", {"devices": ["qat0"]})
        self.order.append("program")
        return self.answer

    def ask(self, do: str, name: str, deadline: Deadline) -> dict[str, Any]:
        assert (do, name) == ("news", "qat0")
        self.order.append("device")
        if deadline.remaining <= 0:
            raise TimeoutError
        return {"connected": True, "transfers": [], "more": 0, "clients": [], "failure": "", **self.said}


def test_what_has_not_changed_is_not_repeated() -> None:
    pretended = Pretended()
    watch, deadline = DeviceWatch(pretended.guest), Deadline.after(5)
    first = watch.news(deadline)["qat0"]
    assert first.ranges == ((4096, 4096, "rw", 1, 0),)
    assert first.believed == Belief(runs=((4096, 4096, "rw", 1, 0),))
    assert pretended.order == ["program", "device"]
    second = watch.news(deadline)["qat0"]
    assert (second.ranges, second.believed) == (None, None)
    pretended.said = {}  # as the process does when nothing has changed
    assert watch.news(deadline)["qat0"].ranges is None
    pretended.said = {"ranges": []}
    assert watch.news(deadline)["qat0"].ranges == ()


def test_what_comes_behind_the_last_answer_is_the_last_steps() -> None:
    pretended = Pretended()
    watch, deadline = DeviceWatch(pretended.guest), Deadline.after(5)
    one = {"access": "read", "iova": 4096, "size": 8, "bus_master": True}
    pretended.said |= {"transfers": [one], "more": 2}
    last = watch.news(deadline)
    pretended.said |= {"transfers": [one | {"iova": 8192}], "more": 1, "connected": False, "ranges": []}
    late = watch.late(deadline, last)["qat0"]
    assert [transfer.iova for transfer in late.transfers] == [4096, 8192]
    assert late.more == 3
    assert (late.connected, late.ranges) == (True, last["qat0"].ranges), "as they were after the step"
    pretended.said = {}  # it says that once; a further step has it
    assert watch.news(deadline)["qat0"].ranges == ()
    pretended.guest.emulator.devices = None
    assert watch.late(deadline, {}) == {}


def test_thousands_of_mappings_are_small_evidence() -> None:
    pretended = Pretended()
    pretended.said = {"ranges": [[n << 21, 4096, "rw"] for n in range(65_000)]}
    (run,) = DeviceWatch(pretended.guest).news(Deadline.after(5))["qat0"].ranges or ()
    assert run == (0, 4096, "rw", 65_000, 2 << 20)


def test_a_program_that_cannot_say_is_no_error_of_the_harness() -> None:
    pretended = Pretended()
    pretended.answer = {"error": {"type": "InternalError", "message": "Traceback\nKeyError: 5"}}
    believed = DeviceWatch(pretended.guest).news(Deadline.after(5))["qat0"].believed
    assert believed is not None
    assert believed.failure.endswith("KeyError: 5")


def test_nobody_is_asked_where_there_is_no_such_device() -> None:
    assert DeviceWatch(SimpleNamespace(emulator=SimpleNamespace(devices=None))).news(Deadline.after(5)) == {}  # type: ignore[arg-type]


def test_what_the_server_complains_of_and_what_the_model_raised_is_kept() -> None:
    pretended = Pretended()
    pretended.said = {"clients": ["another client is connected"], "failure": "ValueError('x')"}
    news = DeviceWatch(pretended.guest).news(Deadline.after(5))["qat0"]
    assert (news.complaints, news.failure) == (("another client is connected",), "ValueError('x')")


def test_a_deadline_that_is_over_is_told_with_what_was_asked() -> None:
    with pytest.raises(InfrastructureError, match=r"asking the model of qat0 was not done before .*deadline"):
        DeviceWatch(Pretended().guest).news(Deadline.after(0))
