"""A real guest: readiness, identity, commands, and every way in which it can end badly, told apart.

Clones, where it makes no difference how the guest came to be: a boot is five times the work.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import adopt_orphans, adopted, processes_with

from harness.deadline import Deadline
from harness.errors import BootError, EmulatorCrash, GuestHang, GuestLost, GuestPanic, InfrastructureError
from harness.guest.control import ControlPort
from harness.guest.ssh import make_host_key, make_key, public_line
from harness.report import load_run


def test_commands_give_their_output_and_status(clone):
    with clone() as guest:
        done = guest.run("echo out; echo err >&2; exit 7", Deadline.after(30))
        assert (done.status, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
        # More than an SSH window in both directions.
        data = os.urandom(3 << 20)
        assert guest.run("cat", Deadline.after(60), data).stdout == data


def test_the_guest_answers_on_its_control_port_and_has_no_network(clone):
    with clone() as guest:
        assert guest.control.ping(Deadline.after(10))
        links = guest.run("ls /sys/class/net", Deadline.after(10)).stdout.split()
        assert links == [b"lo"]
        release = guest.run("uname -r", Deadline.after(10)).stdout.decode().strip()
        assert guest.identity.hello.split()[0] == release


def test_the_harness_listens_on_no_port(start):
    """Neither QEMU nor this process; what else the host does is nobody's business here."""

    def sockets(pid: int | str) -> set[str]:
        names = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
        return {name[8:-1] for name in names if name.startswith("socket:")}

    def tcp() -> dict[str, str]:
        """The state of each TCP socket, by its inode."""
        lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
        return {line.split()[9]: line.split()[3] for line in lines}

    with start() as guest, socket.create_server(("127.0.0.1", 0)):
        known = tcp()
        listening = [inode for inode in sockets("self") if known.get(inode) == "0A"]
        assert len(listening) == 1, "this test's own is seen, and no other"
        assert guest.emulator.running
        inodes = sockets(guest.emulator.pid)
        assert inodes
        assert not inodes & known.keys()


def test_every_run_leaves_a_command_line_that_qemu_accepts(start, tmp_path):
    with start():
        script = (tmp_path / "run/qemu.sh").read_text()
    assert "intel-iommu" in script
    assert "fd=" not in script
    checked = subprocess.run(
        ["sh", "-c", script.replace("exec env", "exec timeout -s KILL 0.5 env")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == -signal.SIGKILL or checked.returncode == 137, (
        checked.stderr
    )  # it ran until it was stopped


def test_a_panic_is_told_with_its_console(clone):
    with clone() as guest, pytest.raises(GuestPanic) as caught:
        guest.run("echo c > /proc/sysrq-trigger", Deadline.after(60))
    assert "sysrq triggered crash" in caught.value.message
    assert "Kernel panic" in caught.value.context["console"]


def test_an_emulator_that_is_killed_is_a_crash_of_the_emulator(clone):
    with clone() as guest:
        os.kill(guest.emulator.pid, signal.SIGSEGV)
        with pytest.raises(EmulatorCrash, match="signal 11"):
            guest.run("sleep 60", Deadline.after(60))


def test_a_guest_that_stops_answering_hangs(clone):
    with clone() as guest:
        guest.emulator.execute("stop", deadline=Deadline.after(10))
        with pytest.raises(GuestHang, match="does not answer"):
            guest.run("true", Deadline.after(2))


def test_a_slow_command_in_a_live_guest_is_told_apart_from_a_dead_guest(clone):
    with clone() as guest, pytest.raises(GuestHang, match="still answers"):
        guest.run("sleep 100", Deadline.after(2))


def test_a_guest_that_drops_the_connection_is_lost(clone):
    with clone() as guest, pytest.raises(GuestLost):
        guest.run("killall dropbear", Deadline.after(30))


def test_a_guest_that_switches_itself_off_is_lost(clone):
    with clone() as guest, pytest.raises(GuestLost, match="switched itself off"):
        guest.run("poweroff -f", Deadline.after(30))


def test_a_guest_that_is_not_ready_in_time_is_a_boot_error(start):
    with pytest.raises(BootError, match="not ready in time"), start(boot_seconds=0.7):
        pytest.fail("a guest cannot boot in 0.7 s")


def test_a_panic_while_booting_is_a_panic(start):
    with pytest.raises(GuestPanic), start(kernel_args=("rdinit=/nothing", "root=/dev/nothing")):
        pytest.fail("there is nothing to boot")


def test_a_guest_boots_on_a_host_that_has_no_time_for_it(start, tmp_path):
    """The kernel's own test of its timer panics when QEMU is held up while it runs."""
    booted = threading.Event()

    def hold_up():
        while not (pids := processes_with(str(tmp_path))):
            if booted.is_set():
                return
        for _ in range(60):
            try:
                os.kill(pids[0], signal.SIGSTOP)
                time.sleep(0.06)
                os.kill(pids[0], signal.SIGCONT)
                time.sleep(0.03)
            except ProcessLookupError:
                return

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        with start() as guest:
            assert guest.run("true", Deadline.after(60)).status == 0
    finally:
        booted.set()
        thread.join()


def test_a_machine_that_qemu_refuses_says_what_qemu_said(start):
    with pytest.raises(InfrastructureError, match="QEMU did not start"), start(cpus=100_000):
        pytest.fail("QEMU has no such machine")


def test_another_host_key_is_refused(clone, monkeypatch):
    """The pinned key is compared with what the server shows, not with what it says it shows."""
    honest = ControlPort.identify

    def swapped(self, *args):
        return dataclasses.replace(honest(self, *args), host_key=public_line(make_key()))

    monkeypatch.setattr(ControlPort, "identify", swapped)
    with pytest.raises(InfrastructureError, match="another host key"), clone():
        pytest.fail("logged in to a server with another key")


def test_a_stale_guest_is_refused():
    """A guest that repeats an older nonce is not taken for the one that was started."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"ready 00000000000000000000000000000000\n")
        with pytest.raises(InfrastructureError, match="nonce"):
            ControlPort(ours).identify("hello", make_host_key(), "ssh-ed25519 AAAA", Deadline.after(5))


@pytest.mark.parametrize("moment", ["launching", "booting"])
def test_qemu_does_not_outlive_a_killed_harness(tmp_path, moment):
    """kill -9 of the harness in the middle of a run leaves no process and no file in the temporary folders."""
    out = tmp_path / "out"
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    adopt_orphans()
    harness = subprocess.Popen(
        [sys.executable, "-m", "harness", "run", "scenarios/usdm/plain_memory.yaml", "--out", str(out)],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        give_up = Deadline.after(60)
        while not set(processes_with(str(out))) - {harness.pid}:
            assert not give_up.expired, "no QEMU was started"
            assert harness.poll() is None, "the harness ended by itself"
        while moment == "booting" and not any(log.stat().st_size for log in out.rglob("qmp.log")):
            assert not give_up.expired, "QEMU said nothing"
            assert harness.poll() is None, "the harness ended by itself"
    finally:
        harness.kill()
        harness.wait()
    # What the harness left is a child of this process now. /proc/PID/cmdline would not do: it is empty while the
    # launcher becomes QEMU.
    give_up = Deadline.after(10)
    while orphans := adopted():
        assert not give_up.expired, f"QEMU outlived the harness: {orphans}"
    assert list(scratch.iterdir()) == []


def test_ctrl_c_ends_the_run_and_keeps_what_was_done(tmp_path):
    """An interrupted run ends its guests, says so, and leaves a readable run folder."""
    out = tmp_path / "out"
    # A test runner in the background has SIGINT ignored, and a child inherits that.
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-m",
        "harness",
        "run",
        "scenarios/dma",
        "--out",
        str(out),
    ]
    harness = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        give_up = Deadline.after(60)
        while not set(processes_with(str(out))) - {harness.pid}:
            assert not give_up.expired, "no QEMU was started"
            assert harness.poll() is None, "the harness ended by itself"
        harness.send_signal(signal.SIGINT)
        said, _ = harness.communicate(timeout=60)
    finally:
        harness.kill()
        harness.wait()
    assert harness.returncode == 130, said
    assert "Traceback" not in said
    assert load_run(out).interrupted
    assert not processes_with(str(out))
