"""The guest's side of the control port; parent of the worker, and relay to the SSH server.

Started by init as `python3 -I -S supervisor.py SSH_PORT` with the control port as descriptor 3, after the payload was
unpacked. The protocol is in docs/architecture.md, "The guest". It must go on answering whatever the worker does, so it
is a process of its own that never waits for anything but the next event. It does not load what the worker needs.
"""

from __future__ import annotations

import base64
import gc
import os
import select
import socket
import sys
import time

# -I leaves the script's folder out, and the packages are two folders up.
PAYLOAD = __file__.rsplit("/", 3)[0]
sys.path.insert(0, PAYLOAD)

from harness.agent.identity import adopt, write_secret  # noqa: E402
from harness.agent.relay import Relay  # noqa: E402

CONTROL = 3
"""Descriptor of the control port."""
WORKER_PORT = 1
"""TCP port of the worker on the guest's loopback."""
WORKER_STDERR = "/run/worker.stderr"
NONCE = "/run/nonce"
RUNNING = "worker running"

_SSH = ("127.0.0.1", 22)
# Keys only, on the loopback only, no forwarding to the host. Without -F it returns when it listens. -R: without a key;
# it looks for one when the first client has come.
_DROPBEAR = ("dropbear", "-R", "-s", "-k", "-p", "127.0.0.1:22")
_STDERR_BYTES = 16 * 1024
_DEATH_MILLISECONDS = 1000


class Supervisor:
    """State of the supervisor.

    Args:
        ssh_port: Path of the SSH port's device.
        worker: Process id of the worker.
        loaded: Descriptor of a pipe; a byte comes when the worker has loaded everything, and it ends with the worker.
    """

    def __init__(self, ssh_port: str, worker: int, loaded: int) -> None:
        self._ssh_port = ssh_port
        self._worker = worker
        self._ended: int | None = None
        self._loaded = loaded
        self._load_done = self._loaded_all = False
        self._preparing = False
        self._relay: Relay | None = None
        self._line = b""

    def run(self) -> None:
        """Answer until the control port ends."""
        while True:
            poll = select.poll()
            poll.register(CONTROL, select.POLLIN)
            if not self._load_done:
                poll.register(self._loaded, select.POLLIN)
            for fd, mask in self._relay.interests() if self._relay else ():
                poll.register(fd, mask)
            for fd, ready in poll.poll():
                if fd == CONTROL:
                    if not self._read_control():
                        return
                elif fd == self._loaded:
                    # One byte, or the end of the pipe when the worker has ended.
                    self._load_done, self._loaded_all = True, bool(os.read(fd, 1))
                elif self._relay and not self._relay.step(fd, ready):
                    self._relay.close()
                    self._relay = None
                    break  # its other descriptor may be in the list
            if self._preparing and self._load_done and not self._relay:
                self._preparing = False
                settle()
                state = self._worker_state(0 if self._loaded_all else _DEATH_MILLISECONDS)
                say("prepared" if state == RUNNING else state)

    def _read_control(self) -> bool:
        data = os.read(CONTROL, 4096)
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._obey(line.decode("utf-8", "replace").split())
        return bool(data)

    def _obey(self, words: list[str]) -> None:
        match words:
            case ["ping", token]:
                say(f"pong {token}")
            case ["prepare"]:
                self._preparing = True
            case ["worker"]:
                say(self._worker_state(_DEATH_MILLISECONDS))
            case ["identity", nonce, epoch, entropy, host_key, *client_key]:
                self._identify(nonce, epoch, entropy, host_key, " ".join(client_key))

    def _identify(self, nonce: str, epoch: str, entropy: str, host_key: str, client_key: str) -> None:
        adopt(epoch, entropy, host_key, client_key)
        write_secret(NONCE, nonce.encode())
        port = os.open(self._ssh_port, os.O_RDWR | os.O_CLOEXEC)
        server = socket.create_connection(_SSH)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._relay = Relay(port, server)
        say(f"ready {nonce}")

    def _worker_state(self, milliseconds: int) -> str:
        """Whether the worker runs; else its exit status (negative for a signal) and the end of its stderr.

        Args:
            milliseconds: How long to wait for its end. The host asks when the worker's connection has ended, which is
                a moment before the process has.
        """
        if self._ended is None:
            pidfd = os.pidfd_open(self._worker)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            ended = poll.poll(milliseconds)
            os.close(pidfd)
            if not ended:
                return RUNNING
            self._ended = os.waitstatus_to_exitcode(os.waitpid(self._worker, 0)[1])
        with open(WORKER_STDERR, "rb") as file:
            said = file.read()[-_STDERR_BYTES:]
        return f"worker ended {self._ended} {base64.b64encode(said).decode()}"


def set_priority(nice: int) -> None:
    """Set this process's own, and that of its session, which the kernel schedules as one."""
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    try:
        fd = os.open("/proc/self/autogroup", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a kernel without
        return
    try:
        os.write(fd, str(nice).encode())
    finally:
        os.close(fd)


def settle() -> None:
    """Wait until the guest has had nothing to do for a while, two seconds at most.

    What the kernel has put off (processes that have ended, memory to be given back) would else be done in every clone.
    """
    quiet = 0
    for _ in range(40):
        before = _idle()
        time.sleep(0.05)
        quiet = quiet + 1 if _idle() - before >= 5 else 0
        if quiet == 6:
            return


def _idle() -> int:
    """Hundredths of a second for which the CPUs were idle."""
    fd = os.open("/proc/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 256).split(None, 5)[4])
    finally:
        os.close(fd)


def say(line: str) -> None:
    """Send one line to the host."""
    os.write(CONTROL, line.encode() + b"\n")


def start_worker() -> tuple[int, int]:
    """Fork the worker; returns its process id and the descriptor that tells when it has loaded everything."""
    listener = socket.create_server(("127.0.0.1", WORKER_PORT))
    loaded, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            os.close(CONTROL)
            os.close(loaded)
            stderr = os.open(WORKER_STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(stderr, 1)
            os.dup2(stderr, 2)
            os.chdir(PAYLOAD)
            # It loads while the guest goes on to its first SSH connection, and shall not be in its way.
            set_priority(19)
            from harness.agent.worker import run

            run(listener, tell, NONCE, lambda: set_priority(0))
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    listener.close()
    os.close(tell)
    return pid, loaded


def main() -> int:
    """Run the supervisor; returns the exit status."""
    worker, loaded = start_worker()
    os.set_inheritable(CONTROL, False)
    if os.waitstatus_to_exitcode(os.waitpid(os.posix_spawnp(_DROPBEAR[0], _DROPBEAR, os.environ), 0)[1]):
        say("failed the SSH server did not start")
        return 1
    gc.collect()
    gc.freeze()
    gc.disable()
    say("up")
    Supervisor(sys.argv[1], worker, loaded).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
