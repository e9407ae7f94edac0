"""The virtual machine inside the guest, without a guest: sockets whose other ends the test holds."""

from __future__ import annotations

import json
import socket
import stat
import threading
from pathlib import Path

import pytest

from harness.agent import inner, steps_vm, vm
from harness.agent.context import Context

_OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def sockets():
    yield
    while _OPEN:
        _OPEN.pop().close()


def pair(what: str = "the other end") -> tuple[vm.Lines, socket.socket]:
    ours, theirs = socket.socketpair()
    _OPEN.extend((ours, theirs))
    return vm.Lines(ours, what), theirs


def machine() -> tuple[vm.Vm, socket.socket, socket.socket]:
    """A machine whose QEMU and whose worker are the test."""
    one = vm.Vm.__new__(vm.Vm)
    one._qmp, qmp = pair("QEMU in the guest")
    one._worker, worker = pair("the worker in the virtual machine")
    one._passed = {}
    return one, qmp, worker


def answering(sock: socket.socket, *answers: dict[str, object]) -> list[dict[str, object]]:
    """Take one line for each answer, in a thread; gives the list that the lines come into."""
    heard: list[dict[str, object]] = []

    def run() -> None:
        with sock.makefile("rwb") as file:
            for answer in answers:
                heard.append(json.loads(file.readline()))
                file.write(json.dumps(answer).encode() + b"\n")
                file.flush()

    threading.Thread(target=run, daemon=True).start()
    return heard


def test_lines_come_whole_in_whatever_pieces():
    lines, other = pair()
    other.sendall(b'{"a": 1}\n{"b"')
    assert lines.receive(5) == {"a": 1}
    other.sendall(b": 2}\n")
    assert lines.receive(5) == {"b": 2}


def test_an_end_and_a_silence_are_told_apart():
    lines, other = pair("QEMU in the guest")
    with pytest.raises(vm.VmLost, match="QEMU in the guest did not answer in 0 s"):
        lines.receive(0)
    other.close()
    with pytest.raises(vm.VmLost, match="QEMU in the guest has ended"):
        lines.receive(5)
    with pytest.raises(vm.VmLost, match="QEMU in the guest is gone"):
        lines.send({"a": 1})


def test_the_end_of_the_console_is_in_the_message(tmp_path, monkeypatch):
    monkeypatch.setattr(vm, "FOLDER", str(tmp_path))
    (tmp_path / "console").write_bytes(b"x" * 5000 + b"Kernel panic - not syncing")
    lines, other = pair()
    other.close()
    with pytest.raises(vm.VmLost, match=r"its console ends: x+Kernel panic"):
        lines.receive(5)


def test_events_of_qemu_are_no_answers():
    one, qmp, _ = machine()
    qmp.sendall(b'{"event": "DEVICE_DELETED"}\n{"return": 7}\n')
    assert one.command("query") == 7
    qmp.sendall(b'{"error": {"class": "GenericError", "desc": "no such bus"}}\n')
    with pytest.raises(vm.VmRefused, match="device_add: no such bus"):
        one.command("device_add")


def test_a_device_is_plugged_in_and_then_looked_for_inside():
    one, qmp, worker = machine()
    told = answering(qmp, {"return": {}})
    asked = answering(worker, {"error": None, "values": {}})
    assert one.pass_through("vf1", "0000:02:00.1", **{"vf-token": "t"}) == "01:00.0"
    assert told[0]["arguments"] == {
        "driver": "vfio-pci",
        "id": "vf1",
        "bus": "port1",
        "host": "0000:02:00.1",
        "vf-token": "t",
    }
    assert asked == [{"kind": "_begin", "args": {"devices": {"vf1": "01:00.0"}, "replaced": []}}]


def test_a_device_that_does_not_appear_inside_is_refused():
    one, qmp, worker = machine()
    answering(qmp, {"return": {}})
    answering(worker, {"error": {"type": "StepError", "message": "no PCI function"}, "values": {}})
    with pytest.raises(vm.VmRefused, match="'edu0' was not found in the virtual machine: no PCI function"):
        one.pass_through("edu0", "0000:02:00.0")


def test_ports_run_out():
    one, _, _ = machine()
    one._passed = {str(number): "" for number in range(vm.PORTS)}
    with pytest.raises(vm.VmRefused, match="4 ports, and all are taken"):
        one.pass_through("e", "0000:02:00.0")


def test_without_a_machine_the_steps_say_what_to_write(monkeypatch):
    monkeypatch.setattr(vm, "_machines", [])
    with pytest.raises(vm.NoVm, match="vm: true"):
        steps_vm.in_vm(Context(), {"steps": []})


def test_a_device_that_is_open_is_not_given_away(monkeypatch):
    context = Context()
    context.addresses["edu0"] = "02:00.0"
    context.devices["edu0"] = object()  # type: ignore[assignment]
    with pytest.raises(steps_vm.StillOpen, match="close it first"):
        steps_vm.pass_through(context, {"device": "edu0"})


def test_an_image_without_a_machine_is_an_error_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(vm, "BUNDLE", str(tmp_path))
    with pytest.raises(vm.NoVm, match="the guest's image has no"):
        vm.Vm(256)


def entries(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to mode and content of a newc archive."""
    found = {}
    at = 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + 110 + fields[11]
        start += -start % 4
        found[name] = fields[1], data[start : start + fields[6]]
        at = start + fields[6]
        at += -at % 4
    return found


def test_behind_the_root_file_system_is_the_payload_with_compiled_sources(tmp_path, monkeypatch):
    payload = tmp_path / "payload"
    (payload / "usdm").mkdir(parents=True)
    (payload / "usdm" / "a.py").write_text("value = 5\n")
    (payload / "harness" / "agent").mkdir(parents=True)
    (payload / "harness" / "agent" / "data").write_bytes(b"\x7fELF")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "initrd.img").write_bytes(b"base")
    monkeypatch.setattr(vm, "BUNDLE", str(tmp_path / "bundle"))
    monkeypatch.setattr(vm, "FOLDER", str(tmp_path))
    monkeypatch.setattr(vm, "_PAYLOAD", str(payload))
    vm._write_initrd(str(tmp_path / "out"))
    data = (tmp_path / "out").read_bytes()
    assert data[:512] == b"base" + b"\0" * 508
    found = entries(data[512:])
    where = str(payload).strip("/")
    assert stat.S_IMODE(found["vm-init"][0]) == 0o755
    assert f"{payload}/harness/agent/inner.py".encode() in found["vm-init"][1]
    assert found[f"{where}/usdm/a.py"][1] == b"value = 5\n"
    assert found[f"{where}/harness/agent/data"][1] == b"\x7fELF"
    compiled = [name for name in found if name.startswith(f"{where}/usdm/__pycache__/a.")]
    # Bits 1 and 0 of the flags: by hash, and not checked against the source, whose times the archive does not keep.
    assert len(compiled) == 1
    assert found[compiled[0]][1][4:8] == b"\x01\0\0\0"
    # Every folder comes before what is in it, from the root on.
    names = list(found)
    for name in names:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    assert names[-1] == "TRAILER!!!"


def test_the_worker_inside_finds_its_port(tmp_path):
    for name, text in (("vport1p1", "other"), ("vport1p2", "wanted")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(text + "\n")
    assert inner.find_port("wanted", str(tmp_path)) == "/dev/vport1p2"


def test_a_port_that_never_comes_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(inner, "_TRIES", 1)
    with pytest.raises(FileNotFoundError, match="no port the name wanted"):
        inner.find_port("wanted", str(tmp_path / "none"))
