"""``python -m harness.device``: mistakes are told in a line, and the socket is there as long as the server."""

from __future__ import annotations

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

import pytest

from harness.device import wire
from harness.device.__main__ import load, main
from harness.device.wire import Command

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
        ("{}/syntax.py:X", "cannot be loaded: SyntaxError"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    model: str, why: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text("x")
    (tmp_path / "raises.py").write_text("\n1 / 0\n")
    (tmp_path / "syntax.py").write_text("def\n")
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
    ("path", "why"), [("taken", "remove it"), ("x" * 120, "too long"), ("no/such", "No such file")]
)
def test_a_socket_that_cannot_be(path: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("mine")
    assert main([SAMPLE, "--socket", str(tmp_path / path)]) == 2
    assert why in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and the line that it has printed."""
    words = [sys.executable, "-m", "harness.device", SAMPLE, "--socket", "s", "--name", "one"]
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def test_one_client_after_the_other_and_an_end(server: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    process, line = server
    assert line.startswith("one listens; give QEMU: -device ")
    device = json.loads(shlex.split(line)[-1])
    assert device["driver"] == "vfio-user-pci"
    path = tmp_path / "s"
    assert device["socket"] == {"type": "unix", "path": str(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(wire.message(1, Command.VERSION, bytes(4)))
            assert wire.header(sock.recv(4096)[:16]).error == 0
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert not path.exists()


def test_a_socket_of_somebody_else_is_left_alone(server: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    process, _ = server
    path = tmp_path / "s"
    path.unlink()
    path.write_text("somebody else's")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert path.read_text() == "somebody else's"
