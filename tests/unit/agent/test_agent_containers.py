"""Containers of the worker: by name, by IOMMU type, and which one a device is in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.agent import edu, implementations, noted_container, nvme, pci, requests
from harness.agent.context import Context
from harness.agent.execute import execute
from harness.agent.implementations import UnknownImplementation, Usdm
from harness.agent.libusdm import NoLibrary
from usdm import vfio, vfio_uapi
from usdm.errors import DeviceError


class PretendedContainer:
    """A container that notes what was opened in it."""

    made: list[PretendedContainer]
    no_iommu = False

    def __init__(self, iommu_type: int) -> None:
        self.iommu_type = iommu_type
        self.fd = 100 + len(self.made)
        self.opened: list[str] = []
        self.tokens: list[bytes | None] = []
        self.left: list[str] = []
        self.classes: dict[str, int] = {}
        self.made.append(self)

    def open_device(self, address: str, vf_token: bytes | None = None) -> Any:
        self.opened.append(address)
        self.tokens.append(vf_token)
        device = SimpleNamespace(bdf=address, fd=self.fd + 50)
        device.read = lambda index, offset, size: self.classes.get(address, 0xFF00).to_bytes(size, "little")
        return device

    def leave(self, device: Any) -> None:
        self.left.append(device.bdf)

    def info(self) -> Any:
        return SimpleNamespace(iova_ranges=((0, 9), (20, 29)), dma_avail=self.fd)


class PretendedEdu:
    def __init__(self, device: Any) -> None:
        self.device = device
        self.closed = False

    def close(self) -> None:
        self.closed = True


class PretendedApi:
    """An implementation that registers everything, and notes it."""

    name = "pretended"
    api = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def call(self, function: str, *arguments: Any) -> tuple[int, None]:
        self.calls.append((function, *arguments))
        return 0, None


@pytest.fixture
def containers(monkeypatch: pytest.MonkeyPatch) -> list[PretendedContainer]:
    monkeypatch.setattr(PretendedContainer, "made", [], raising=False)
    monkeypatch.setattr(noted_container, "NotedContainer", PretendedContainer)
    monkeypatch.setattr(vfio, "iommu_group", lambda address: 7)
    monkeypatch.setattr(edu, "Edu", PretendedEdu)
    monkeypatch.setattr(pci, "bind", lambda address: None)
    return PretendedContainer.made


@pytest.fixture
def context(containers: list[PretendedContainer]) -> Context:
    context = Context()
    context.addresses.update(a="01:00.0", b="02:00.0")
    context.api = PretendedApi()  # type: ignore[assignment]
    return context


def run(context: Context, kind: str, **args: Any) -> dict[str, Any]:
    return execute(context, kind, args)


def test_devices_share_one_container_unless_it_is_said(context: Context, containers: list[PretendedContainer]) -> None:
    run(context, "open", device="a")
    run(context, "open", device="b")
    assert [one.opened for one in containers] == [["01:00.0", "02:00.0"]]
    assert containers[0].iommu_type == vfio_uapi.TYPE1_IOMMU
    assert context.container_of("a") is context.container_of("b") is context.container()


@pytest.mark.parametrize(
    ("told", "wanted"),
    [(None, vfio_uapi.TYPE1_IOMMU), ("type1", vfio_uapi.TYPE1_IOMMU), ("type1v2", vfio_uapi.TYPE1V2_IOMMU)],
)
@pytest.mark.parametrize("name", [None, "own"])
def test_a_container_has_the_type_that_was_asked_for(
    context: Context, containers: list[PretendedContainer], name: str | None, told: str | None, wanted: int
) -> None:
    args = {"device": "a"} | ({"container": name} if name else {}) | ({"type": told} if told else {})
    assert run(context, "open", **args)["values"] == {
        "address": "01:00.0",
        "group": 7,
        "iova_ranges": [[0, 9], [20, 29]],
    }
    assert [one.iommu_type for one in containers] == [wanted]


def test_a_container_of_its_own_is_what_a_device_is_registered_and_asked_by(
    context: Context, containers: list[PretendedContainer]
) -> None:
    run(context, "open", device="a")
    run(context, "open", device="b", container="other")
    run(context, "register", device="b")
    run(context, "register", device="a")
    run(context, "unregister", device="b")
    api = context.api
    assert isinstance(api, PretendedApi)
    assert api.calls == [("qaeRegisterDevice", 101), ("qaeRegisterDevice", 100), ("qaeUnregisterDevice", 101)]
    assert run(context, "container_info", device="b")["values"]["counts"] == {"mappings_left": 101}
    assert run(context, "container_info", device="a")["values"]["counts"] == {"mappings_left": 100}
    assert len(containers) == 2


def test_an_open_device_stays_where_it_is(context: Context, containers: list[PretendedContainer]) -> None:
    run(context, "open", device="a", container="first")
    run(context, "open", device="a", container="second")
    run(context, "register", device="a")
    assert [one.opened for one in containers] == [["01:00.0"]]
    assert context.container_of("a") is containers[0]


def test_a_closed_device_is_unregistered_by_the_container_that_it_was_in(
    context: Context, containers: list[PretendedContainer]
) -> None:
    run(context, "open", device="a", container="own")
    run(context, "close", device="a")
    run(context, "unregister", device="a")
    api = context.api
    assert isinstance(api, PretendedApi)
    assert api.calls == [("qaeUnregisterDevice", containers[0].fd)]
    # It can be opened again, elsewhere.
    run(context, "open", device="a", container="new")
    assert context.container_of("a") is containers[1]


def test_what_is_no_container_is_taken_from_the_open_device(context: Context) -> None:
    assert run(context, "register_fd", fd="device")["error"]["type"] == "DeviceNotOpen"
    run(context, "open", device="a", container="own")
    run(context, "register_fd", fd="device")
    api = context.api
    assert isinstance(api, PretendedApi)
    assert api.calls == [("qaeRegisterDevice", 150)]


# ---- which implementation


class Log:
    def mark(self) -> str:
        return "mark"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.KernelLog, "open", Log)


def test_the_steps_run_on_what_the_host_asks_for(log: None, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context()
    assert isinstance(context.api.api, Usdm)
    assert execute(context, "_begin", {"devices": {}, "replaced": []})["error"] is None
    assert isinstance(context.api.api, Usdm)
    chosen = PretendedApi()
    monkeypatch.setattr(implementations, "find", lambda name: chosen if name == "libusdm" else pytest.fail(name))
    assert execute(context, "_begin", {"devices": {}, "replaced": [], "implementation": "libusdm"})["error"] is None
    assert context.api.api is chosen


def test_an_implementation_that_cannot_be_had_is_told_before_the_first_step(log: None) -> None:
    for name, error in (("both", UnknownImplementation), ("libusdm", NoLibrary)):
        answer = execute(Context(), "_begin", {"devices": {}, "replaced": [], "implementation": name})
        assert answer["error"]["type"] == error.__name__


# ---- which driver, and VFs


class PretendedNvme(PretendedEdu):
    def __init__(self, device: Any, container: Any) -> None:
        super().__init__(device)
        self.container = container


def test_a_device_gets_the_driver_of_its_class(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvme, "Nvme", PretendedNvme)
    context.container("own").classes["02:00.0"] = nvme.CLASS_CODE  # type: ignore[attr-defined]
    run(context, "open", device="a")
    run(context, "open", device="b", container="own")
    assert type(context.device("a")) is PretendedEdu
    opened = context.device("b")
    assert isinstance(opened, PretendedNvme)
    assert opened.container is context.container("own")


@pytest.mark.parametrize("fails", [0, 9])
def test_a_device_that_cannot_be_read_is_closed(
    context: Context, containers: list[PretendedContainer], monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    closed: list[str] = []

    def read(index: int, offset: int, size: int) -> bytes:
        if offset == fails:
            raise DeviceError("device", "01:00.0", 5, "read")
        return bytes(size)

    device = SimpleNamespace(read=read, close=lambda: closed.append("device"))
    monkeypatch.setattr(PretendedContainer, "open_device", lambda self, address, token: device)
    assert run(context, "open", device="a")["error"]["type"] == "DeviceError"
    assert closed == ["device"]
    assert not context.devices


def test_a_vf_is_opened_with_the_token_of_its_pf(context: Context, containers: list[PretendedContainer]) -> None:
    context.pf_of["b"] = "a"
    context.vf_tokens["a"] = bytes(range(16))
    run(context, "open", device="a")
    run(context, "open", device="b")
    assert containers[0].tokens == [None, bytes(range(16))]


def test_a_device_that_goes_away_leaves_its_container(context: Context, containers: list[PretendedContainer]) -> None:
    run(context, "open", device="a")
    run(context, "open", device="b", container="own")
    gone: Any = context.device("b")
    context.give_back("b")
    assert gone.closed
    assert [one.left for one in containers] == [[], ["02:00.0"]]
    assert list(context.devices) == ["a"]


def test_a_container_without_an_iommu_has_no_ranges(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretendedContainer, "no_iommu", True)
    monkeypatch.setattr(PretendedContainer, "info", None)
    for kind in ("open", "register"):
        assert run(context, kind, device="a")["values"]["iova_ranges"] is None
