from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.agent import pci
from harness.agent.outcome import StepError


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    """A folder like /sys/bus/pci with one function."""
    for name in ("devices/0000:02:00.0", "drivers/other", "drivers/vfio-pci"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "devices/0000:02:00.0/driver_override").touch()
    (tmp_path / "drivers/other/unbind").touch()
    (tmp_path / "drivers_probe").touch()
    return tmp_path


def test_a_free_function_is_bound(bus: Path) -> None:
    pci.bind("02:00.0", str(bus))
    assert (bus / "devices/0000:02:00.0/driver_override").read_text() == "vfio-pci"
    assert (bus / "drivers_probe").read_text() == "0000:02:00.0"
    assert (bus / "drivers/other/unbind").read_text() == ""


def test_a_function_of_another_driver_is_taken_from_it(bus: Path) -> None:
    (bus / "devices/0000:02:00.0/driver").symlink_to("../../drivers/other")
    assert pci.driver_of("02:00.0", str(bus)) == "other"
    pci.bind("02:00.0", str(bus))
    assert (bus / "drivers/other/unbind").read_text() == "0000:02:00.0"
    assert (bus / "drivers_probe").read_text() == "0000:02:00.0"


def test_a_bound_function_is_left_alone(bus: Path) -> None:
    (bus / "devices/0000:02:00.0/driver").symlink_to("../../drivers/vfio-pci")
    pci.bind("02:00.0", str(bus))
    assert (bus / "drivers_probe").read_text() == ""


def test_a_refusal_is_left_to_the_open_that_follows(bus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pci.bind("07:00.0", str(bus))
    assert "0000:07:00.0: not bound to vfio-pci" in capsys.readouterr().err


class Sysfs:
    """A folder like /sys in which the kernel does what is written to it: what is plugged in appears with a scan."""

    def __init__(self, root: Path) -> None:
        self.root, self.bus = root, root / "bus/pci"
        self.writes: list[tuple[str, str]] = []
        self.plugged = {"0000:02:00.0"}
        (self.bus / "devices").mkdir(parents=True)
        for name in ("0000:00", "0000:02"):
            (root / "class/pci_bus" / name).mkdir(parents=True)
            (root / "class/pci_bus" / name / "rescan").touch()

    def know(self, name: str) -> None:
        (self.bus / "devices" / name).mkdir()
        (self.bus / "devices" / name / "remove").touch()

    def write(self, path: str, text: str) -> None:
        where = Path(path).resolve()
        where.write_text(text)
        self.writes.append((str(where.relative_to(self.root)), text))
        if where.name == "remove":
            where.unlink()
            where.parent.rmdir()
        for name in self.plugged if where.name == "rescan" else ():
            if name.startswith(f"{where.parent.name}:") and not (self.bus / "devices" / name).exists():
                self.know(name)


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    one = Sysfs(tmp_path)
    monkeypatch.setattr(pci, "write", one.write)
    return one


def test_a_function_is_found_by_a_scan_of_its_bus_alone(sysfs: Sysfs) -> None:
    pci.scan("02:00.0", False, str(sysfs.bus))
    assert sysfs.writes == [("class/pci_bus/0000:02/rescan", "1")]
    assert (sysfs.bus / "devices/0000:02:00.0").is_dir()


def test_the_device_of_the_template_is_removed_before_the_scan(sysfs: Sysfs) -> None:
    """Its memory and its driver would else be taken for those of the clone's own device."""
    sysfs.plugged = {"0000:00:05.0"}
    sysfs.know("0000:00:05.0")
    pci.scan("00:05.0", True, str(sysfs.bus))
    assert sysfs.writes == [("bus/pci/devices/0000:00:05.0/remove", "1"), ("class/pci_bus/0000:00/rescan", "1")]
    assert (sysfs.bus / "devices/0000:00:05.0").is_dir()


def test_a_function_that_is_already_known_stays(sysfs: Sysfs) -> None:
    """As in a guest that was booted with it."""
    sysfs.know("0000:02:00.0")
    pci.scan("02:00.0", False, str(sysfs.bus))
    assert [path for path, _ in sysfs.writes] == ["class/pci_bus/0000:02/rescan"]


@pytest.mark.parametrize(
    ("address", "message"),
    [("02:01.0", "no PCI function 0000:02:01.0"), ("07:00.0", "no PCI bus 0000:07")],
)
def test_what_is_not_there_is_named(sysfs: Sysfs, address: str, message: str) -> None:
    with pytest.raises(StepError, match=f"the guest has {message}"):
        pci.scan(address, False, str(sysfs.bus))


def test_a_device_that_the_clone_does_not_have_is_not_taken_for_that_of_the_template(sysfs: Sysfs) -> None:
    sysfs.plugged = set()
    sysfs.know("0000:00:05.0")
    with pytest.raises(StepError, match=r"no PCI function 0000:00:05\.0"):
        pci.scan("00:05.0", True, str(sysfs.bus))


def test_a_write_reaches_the_file_and_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "rescan").touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    pci.write(str(tmp_path / "rescan"), "1")
    with pytest.raises(FileNotFoundError):
        pci.write(str(tmp_path / "none"), "1")
    assert (tmp_path / "rescan").read_text() == "1"
    assert not (tmp_path / "none").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class Ports(Sysfs):
    """A folder like /sys with root ports, which get the bus that stands in their configuration when they are found."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.plugged = {"0000:00:10.0", "0000:00:13.0"}
        self.config: dict[str, bytes] = {}
        self.deaf = False
        for name in self.plugged:
            self.know(name)

    def know(self, name: str) -> None:
        super().know(name)
        kept = self.config.get(name, bytes(64))
        (self.bus / "devices" / name / "config").write_bytes(kept)
        if not self.deaf:
            (self.bus / "devices" / name / f"pci_bus/0000:{kept[0x19]:02x}").mkdir(parents=True)

    def write(self, path: str, text: str) -> None:
        where = Path(path).resolve()
        if where.name == "remove":
            self.config[where.parent.name] = (where.parent / "config").read_bytes()
            (where.parent / "config").unlink()
            shutil.rmtree(where.parent / "pci_bus", ignore_errors=True)
        super().write(path, text)


def test_ports_get_their_numbers_and_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs = Ports(tmp_path)
    monkeypatch.setattr(pci, "write", sysfs.write)
    pci.renumber({"00:10.0": 0x3D, "00:13.0": 4}, str(sysfs.bus))
    assert sysfs.config["0000:00:10.0"][0x18:0x1B] == b"\x00\x3d\x3d"
    assert sysfs.config["0000:00:13.0"][0x18:0x1B] == b"\x00\x04\x04"
    assert [path for path, _ in sysfs.writes] == [
        "bus/pci/devices/0000:00:10.0/remove",
        "bus/pci/devices/0000:00:13.0/remove",
        "class/pci_bus/0000:00/rescan",
    ]


def test_without_ports_to_number_nothing_is_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs = Ports(tmp_path)
    monkeypatch.setattr(pci, "write", sysfs.write)
    pci.renumber({}, str(sysfs.bus))
    assert sysfs.writes == []


def test_a_port_that_is_not_there_or_takes_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs = Ports(tmp_path)
    monkeypatch.setattr(pci, "write", sysfs.write)
    with pytest.raises(StepError, match=r"no root port 0000:00:17\.0"):
        pci.renumber({"00:17.0": 0x3D}, str(sysfs.bus))
    sysfs.deaf = True
    with pytest.raises(StepError, match=r"0000:00:10\.0 did not get the bus 3d"):
        pci.renumber({"00:10.0": 0x3D}, str(sysfs.bus))
