"""``python -m harness.device``: mistakes are told in a line, and the socket is there as long as the server."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from sample import BREAK, GO, STUBBORN

from harness.device import wire
from harness.device.__main__ import load, main
from harness.device.wire import Command

Server = subprocess.Popen[str]
SAMPLE = f"{Path(__file__).with_name('sample.py')}:Sample"
BROKEN = """
from harness.device.config import Identity, Msix
from harness.device.model import Model

NOTHING = 5

class Plain:
    pass

class Nameless(Model):
    pass

class Wrong(Model):
    identity = Identity(1, 2, 3, capabilities=(Msix(4),))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some_models.py"
    path.write_text(BROKEN)
    return path


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("{}/none.py:X", "there is no file"),
        ("{}/some_models.py", "write FILE.py:CLASS"),
        ("{}/some_models.py:", "write FILE.py:CLASS"),
        (":X", "write FILE.py:CLASS"),
        ("{}/some_models.py:Missing", "has no class Missing; its device models are: Nameless, Wrong"),
        ("{}/some_models.py:NOTHING", "is no device model"),
        ("{}/some_models.py:Plain", "is no device model"),
        ("{}/some_models.py:Model", "is no device model"),
        ("{}/some_models.py:Nameless", "has no identity"),
        ("{}/some_models.py:Wrong", r"cannot be made: ValueError: the MSI-X table cannot be"),
        ("{}/other.txt:X", "is no Python file"),
        ("{}/raises.py:X", r"cannot be loaded: ZeroDivisionError: division by zero \(.*raises.py:2\)"),
        ("{}/syntax.py:X", r"cannot be loaded: SyntaxError: .* \(.*/syntax.py:2\)"),
        ("{}/exits.py:X", r"cannot be loaded: SystemExit: 7 \(.*exits.py:1\)"),
        ("x" * 300 + ".py:X", "cannot be read: File name too long"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    model: str, why: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text("x")
    (tmp_path / "raises.py").write_text("\n1 / 0\n")
    (tmp_path / "syntax.py").write_text("\ndef\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(7)\n")
    assert main([model.format(tmp_path), "--socket", str(tmp_path / "s")]) == 2
    said = capsys.readouterr().err
    assert re.search(why, said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_file_may_be_called_as_a_module_is(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass D:\n    x: 'int'\n" + BROKEN
    )
    assert load(f"{tmp_path}/json.py:Wrong").__name__ == "Wrong"
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("taken", "by what is no socket\n"),
        ("another's", "remove it"),
        ("x" * 120, "too long"),
        ("no/such", "No such file"),
        ("", "has no name"),
    ],
)
def test_a_socket_that_cannot_be(
    path: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("another's")
        assert main([SAMPLE, "--socket", path]) == 2
    assert why in capsys.readouterr().err
    assert Path("taken").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["another's", "taken"]


def test_a_folder_that_may_not_be_entered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Locked(socket.socket):
        def bind(self, _address: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def locked(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("harness.device.__main__.socket.socket", Locked)
    for look in ("exists", "is_socket"):
        monkeypatch.setattr(Path, look, locked)
    assert main([SAMPLE, "--socket", "locked/s"]) == 2
    assert capsys.readouterr().err.endswith("locked/s: Permission denied\n")
    monkeypatch.setattr(Path, "is_file", locked)
    assert main(["locked/model.py:Model", "--socket", "s"]) == 2
    assert capsys.readouterr().err.endswith("locked/model.py cannot be read: Permission denied\n")


@contextlib.contextmanager
def serving(folder: Path, stderr: IO[str] | int = subprocess.PIPE, **options: Any) -> Iterator[tuple[Server, str]]:
    """A server, and the line that it has printed."""
    words = [sys.executable, "-m", "harness.device", SAMPLE, "--socket", "s", "--name", "one"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=folder, env=env, **options
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    with serving(tmp_path) as started:
        yield started


def said_version(path: Path) -> socket.socket:
    """A client that has been taken."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(path))
    sock.sendall(wire.message(1, Command.VERSION, bytes(4)))
    assert wire.header(sock.recv(4096)[:16]).error == 0
    return sock


def test_one_client_after_the_other_and_an_end(server: tuple[Server, str], tmp_path: Path) -> None:
    process, line = server
    assert line.startswith("one listens; give QEMU: -device ")
    device = json.loads(shlex.split(line)[-1])
    assert device["driver"] == "vfio-user-pci"
    path = tmp_path / "s"
    assert device["socket"] == {"type": "unix", "path": str(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        said_version(path).close()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert not path.exists()


def test_a_socket_of_somebody_else_is_left_alone(server: tuple[Server, str], tmp_path: Path) -> None:
    process, _ = server
    path = tmp_path / "s"
    path.unlink()
    path.write_text("somebody else's")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert path.read_text() == "somebody else's"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_task_that_does_not_end_keeps_nothing_running(
    number: signal.Signals, server: tuple[Server, str], tmp_path: Path
) -> None:
    process, _ = server
    with said_version(tmp_path / "s") as sock:
        sock.sendall(
            wire.message(2, Command.REGION_WRITE, wire.REGION_ACCESS.pack(GO, 0, 4) + bytes([STUBBORN, 0, 0, 0]))
        )
        assert wire.header(sock.recv(4096)[:16]).error == 0
        sock.sendall(wire.message(3, Command.REGION_READ, wire.REGION_ACCESS.pack(GO, 0, 4)))
        sock.recv(4096)  # the write has been done, too
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, "a task of the model does not end" in err) == (1, True)
    assert not (tmp_path / "s").exists()


def test_who_has_hangups_ignored_keeps_them_so(tmp_path: Path) -> None:
    ignore = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with serving(tmp_path) as (process, _):
            process.send_signal(signal.SIGHUP)
            said_version(tmp_path / "s").close()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
    finally:
        signal.signal(signal.SIGHUP, ignore)
    assert process.returncode == 0


def test_a_full_disk_below_standard_error_ends_nothing(tmp_path: Path) -> None:
    ask = wire.message(2, Command.REGION_READ, wire.REGION_ACCESS.pack(BREAK, 0, 4))
    with Path("/dev/full").open("w") as full, serving(tmp_path, stderr=full) as (process, _):
        for _ in range(3):
            with said_version(tmp_path / "s") as sock:
                sock.sendall(ask)
                assert wire.header(sock.recv(4096)[:16]).error == errno.EIO
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0
