"""The kernel's own driver, its disk and its tracing: what goes wrong, on folders like those of the kernel."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.agent import disk, kernel_driver, steps_kernel, tracefs
from harness.agent.context import Context
from harness.agent.execute import execute
from harness.agent.outcome import NotSet, NotTaken
from harness.agent.tracefs import Recording

# ---- pieces of memory


def test_pieces_lie_a_stride_apart_and_scattered_ones_in_another_order() -> None:
    shape = disk.Shape(512, 4, 4096, offset=8)
    assert shape.places() == [8, 4104, 8200, 12296]
    assert shape.size == 8 + 3 * 4096 + 512
    other = disk.Shape(512, 4, 4096, offset=8, scattered=True).places()
    assert other != shape.places()
    assert sorted(other) == shape.places()
    assert disk.Shape(512, 4).places() == [0, 512, 1024, 1536]


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of a disk: a file system need not know O_DIRECT."""
    monkeypatch.setattr(os, "O_DIRECT", 0)
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


def test_what_was_written_is_read_back(plain: Path) -> None:
    shape = disk.Shape(512, 8, 4096, offset=4, scattered=True)
    assert disk.transfer(str(plain), 4096, shape, 3, read=True, write=True) is None
    # The same bytes by another shape: the order is the disk's.
    assert disk.transfer(str(plain), 4096, disk.Shape(4096), 3, read=True, write=False) is None
    assert disk.transfer(str(plain), 4096, disk.Shape(4096), 4, read=True, write=False) == 0
    data = bytearray(plain.read_bytes())
    data[4096 + 700] ^= 1
    plain.write_bytes(data)
    assert disk.transfer(str(plain), 4096, disk.Shape(4096, offset=8), 3, read=True, write=False) == 708


def test_a_disk_that_ends_too_early(plain: Path) -> None:
    with pytest.raises(disk.DiskError, match="512 bytes read of 4096"):
        disk.transfer(str(plain), (1 << 20) - 512, disk.Shape(4096), 0, read=True, write=False)


def test_a_refusal_of_the_kernel(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "pwritev", refuse)
    with pytest.raises(disk.DiskError, match="1 pieces of 4096 bytes not written: I/O error"):
        disk.transfer(str(plain), 0, disk.Shape(4096), 0, read=False, write=True)


# ---- the driver


def test_more_is_told_of_devices_than_the_socket_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvme(tmp_path, multipath=False)
    (tmp_path / "bus/pci/drivers/nvme").mkdir(parents=True)
    monkeypatch.setattr(kernel_driver, "_bind", lambda *_: None)
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    numbers = [errno.ENOBUFS]

    class Events:
        """Lost what it was told; the disk is there when it is looked at again."""

        def __enter__(self) -> Events:
            return self

        def __exit__(self, *_: object) -> None:
            mine.close()
            other.close()

        def bind(self, _address: object) -> None:
            other.send(b"add")

        def fileno(self) -> int:
            return mine.fileno()

        def recv(self, _size: int) -> bytes:
            (tmp_path / "block/nvme0n1").mkdir(parents=True)
            raise OSError(numbers[0], "told too much")

    monkeypatch.setattr(kernel_driver.socket, "socket", lambda *_: Events())
    assert kernel_driver.give("02:00.0", "nvme", str(tmp_path)) == "nvme0n1"


def nvme(sys: Path, *, multipath: bool) -> None:
    controller = sys / "bus/pci/devices/0000:02:00.0/nvme/nvme0"
    controller.mkdir(parents=True)
    (controller / ("nvme0c0n1" if multipath else "nvme0n1")).mkdir()
    if multipath:
        subsystem = sys / "class/nvme-subsystem/nvme-subsys0"
        (subsystem / "nvme0n1").mkdir(parents=True)
        (subsystem / "nvme0").mkdir()
        (sys / "class/nvme-subsystem/nvme-subsys1/nvme1n1").mkdir(parents=True)


@pytest.mark.parametrize("multipath", [False, True])
def test_the_disk_of_a_controller(tmp_path: Path, multipath: bool) -> None:
    assert kernel_driver.disk("02:00.0", str(tmp_path)) is None
    nvme(tmp_path, multipath=multipath)
    assert kernel_driver.disk("02:00.0", str(tmp_path)) is None, "it is not among the block devices yet"
    (tmp_path / "block/nvme0n1/queue").mkdir(parents=True)
    assert kernel_driver.disk("02:00.0", str(tmp_path)) == "nvme0n1"
    for name, text in (("max_sectors_kb", "128\n"), ("max_segments", "33\n"), ("dma_alignment", "3\n")):
        (tmp_path / "block/nvme0n1/queue" / name).write_text(text)
    found = kernel_driver.limits("nvme0n1", str(tmp_path))
    assert found == {"max_bytes": 131072, "max_segments": 33, "alignment": 4}


def test_a_kernel_without_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=1, stderr=b"modprobe: module nvme not found\n")
    monkeypatch.setattr(kernel_driver.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(NotSet, match="no driver 'nvme', and its image no such module: modprobe: module nvme not found"):
        kernel_driver.give("02:00.0", "nvme", str(tmp_path))


def test_a_function_that_the_driver_does_not_take(tmp_path: Path) -> None:
    (tmp_path / "bus/pci/drivers/nvme").mkdir(parents=True)
    with pytest.raises(NotTaken, match="not bound to nvme: No such file"):
        kernel_driver.give("02:00.0", "nvme", str(tmp_path))
    (tmp_path / "bus/pci/devices/0000:02:00.0").mkdir(parents=True)
    for name in ("devices/0000:02:00.0/driver_override", "drivers_probe"):
        (tmp_path / "bus/pci" / name).touch()
    with pytest.raises(NotTaken, match="the driver nvme did not take it"):
        kernel_driver.give("02:00.0", "nvme", str(tmp_path))
    assert (tmp_path / "bus/pci/drivers_probe").read_text() == "0000:02:00.0"


def test_steps_that_come_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context()
    context.addresses["nvme0"] = "ff:1f.7"
    assert execute(context, "trace_end", {"name": "t"})["error"]["type"] == "NotSet"
    io = {
        "device": "nvme0",
        "at": 0,
        "piece": 4096,
        "pieces": 1,
        "offset": 0,
        "order": "ascending",
        "op": "both",
        "seed": 0,
    }
    assert execute(context, "disk_io", io)["error"]["type"] == "NotTaken"
    context.devices["nvme0"] = SimpleNamespace()  # type: ignore[assignment]
    found = execute(context, "kernel_driver", {"device": "nvme0", "driver": "nvme"})
    assert found["error"]["type"] == "DeviceBusy"
    with pytest.raises(NotSet, match="no recording 't'"):
        steps_kernel.told("t")
    monkeypatch.setitem(steps_kernel._recordings, "t", SimpleNamespace())  # type: ignore[arg-type]
    assert "'t' is being recorded" in execute(context, "trace", {"name": "u"})["error"]["message"]


# ---- tracing


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A folder like tracefs; the kernel would make what is in an instance."""
    (tmp_path / "dynamic_events").touch()
    return tmp_path


def test_a_kernel_without_dynamic_events(tmp_path: Path) -> None:
    with pytest.raises(NotSet, match="no dynamic events"):
        Recording((), (), str(tmp_path))


def test_an_event_that_the_kernel_refuses_leaves_nothing_behind(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []

    def write(path: str, text: str, flags: int = 0) -> None:
        written.append((path.removeprefix(f"{kernel}/"), text))
        if text.startswith("f:harness/bad"):
            raise OSError(errno.EINVAL, "Invalid argument")

    (kernel / "instances").mkdir()
    monkeypatch.setattr(tracefs, "_write", write)
    with pytest.raises(NotSet, match=r"refuses the event 'f:harness/bad x': Invalid argument"):
        Recording(("f:harness/good x", "f:harness/bad x"), ("iommu/map",), str(kernel))
    assert written[-1] == ("dynamic_events", "-:harness/good")
    assert list((kernel / "instances").iterdir()) == []


@pytest.mark.parametrize(
    ("symbols", "said"),
    [
        (
            "ffff0 T dma_iova\nffff1 T dma_iova_link_not\n",
            "has no function dma_iova_link to record; the kernel refuses",
        ),
        ("ffff0 T other\nffff1 T dma_iova_link\n", "the kernel refuses the event"),
    ],
)
def test_a_function_that_the_kernel_lacks_is_named(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, symbols: str, said: str
) -> None:
    def write(path: str, text: str, flags: int = 0) -> None:
        if text.startswith("f:"):
            raise OSError(errno.EINVAL, "Invalid argument")

    (kernel / "instances").mkdir()
    (kernel / "kallsyms").write_text(symbols)
    monkeypatch.setattr(tracefs, "_write", write)
    monkeypatch.setattr(tracefs, "KALLSYMS", str(kernel / "kallsyms"))
    with pytest.raises(NotSet) as caught:
        Recording(("f:harness/x dma_iova_link%return state=$arg2:x64",), (), str(kernel))
    assert said in str(caught.value)
    assert str(caught.value).startswith("the kernel refuses") == said.startswith("the kernel refuses")


def test_an_instance_that_is_there_already(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another recording's, which goes on."""
    instance = kernel / "instances" / "harness"
    instance.mkdir(parents=True)
    written: list[str] = []
    monkeypatch.setattr(tracefs, "_write", lambda path, text, flags=0: written.append(text))
    with pytest.raises(NotSet, match=f"a recording runs already: there is {instance}"):
        Recording(("f:harness/a x",), ("iommu/map",), str(kernel))
    assert instance.is_dir()
    assert written == []


def test_a_kernel_without_instances(kernel: Path) -> None:
    with pytest.raises(NotSet, match=r"does not record that: .*harness: No such file"):
        Recording((), (), str(kernel))


def test_a_recording_that_somebody_else_has_taken_away(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kernel / "instances").mkdir()
    write = tracefs._write
    monkeypatch.setattr(tracefs, "_write", lambda path, text, flags=0: None)
    recording = Recording(("f:harness/a x",), (), str(kernel))
    (kernel / "instances/harness").rmdir()
    (kernel / "dynamic_events").unlink()
    monkeypatch.setattr(tracefs, "_write", write)
    monkeypatch.setitem(steps_kernel._recordings, "t", recording)
    answer = execute(Context(), "trace_end", {"name": "t"})["error"]
    assert answer["type"] == "NotSet"
    assert "the recording is gone" in answer["message"]


def test_what_was_lost_is_counted_and_everything_is_taken_away(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kernel / "instances").mkdir()
    gone: list[str] = []
    monkeypatch.setattr(tracefs, "_write", lambda path, text, flags=0: gone.append(f"{Path(path).name} {text}"))
    monkeypatch.setattr(os, "rmdir", lambda path: gone.append("rmdir"))
    recording = Recording(("f:harness/a x",), ("iommu/map",), str(kernel))
    instance = kernel / "instances" / "harness"
    for cpu, lost in ((0, 3), (1, 4)):
        (instance / f"per_cpu/cpu{cpu}").mkdir(parents=True)
        stats = f"entries: 9\noverrun: {lost}\ncommit overrun: 10\nbytes: 7\ndropped events: 100\n"
        (instance / f"per_cpu/cpu{cpu}/stats").write_text(stats)
    (instance / "trace").write_text("text")
    gone.clear()
    assert recording.end() == ("text", 227)
    assert gone == ["tracing_on 0", "rmdir", "dynamic_events -:harness/a"]
