"""The guest's side of the control port; parent of the worker, and relay to the SSH server.

Started by init as `python3 -I -S supervisor.py SSH_PORT` with the control port as descriptor 3, after the payload was
unpacked. The protocol is in docs/architecture.md, "The guest". It must go on answering whatever the worker does, so it
is a process of its own that never waits for anything but the next event. It does not load what the worker needs.
"""

from __future__ import annotations

import base64
import os
import select
import socket
import sys

# -I leaves the script's folder out, and the packages are two folders up.
PAYLOAD = __file__.rsplit("/", 3)[0]
sys.path.insert(0, PAYLOAD)

from harness.agent.identity import adopt  # noqa: E402
from harness.agent.relay import Relay  # noqa: E402

CONTROL = 3
"""Descriptor of the control port."""
WORKER_PORT = 1
"""TCP port of the worker on the guest's loopback."""
WORKER_STDERR = "/run/worker.stderr"
NONCE = "/run/nonce"

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
        loaded: Descriptor that becomes readable when the worker has loaded everything, or has ended.
    """

    def __init__(self, ssh_port: str, worker: int, loaded: int) -> None:
        self._ssh_port = ssh_port
        self._worker = worker
        self._ended: int | None = None
        self._loaded = loaded
        self._preparing = False
        self._relay: Relay | None = None
        self._line = bytearray()

    def run(self) -> None:
        """Answer until the control port ends."""
        while True:
            poll = select.poll()
            poll.register(CONTROL, select.POLLIN)
            if self._preparing:
                poll.register(self._loaded, select.POLLIN)
            for fd, mask in self._relay.interests() if self._relay else ():
                poll.register(fd, mask)
            for fd, ready in poll.poll():
                if fd == CONTROL:
                    if not self._read_control():
                        return
                elif fd == self._loaded:
                    self._preparing = False
                    say("prepared" if os.read(fd, 1) else self._worker_state())
                elif self._relay and not self._relay.step(fd, ready):
                    self._relay.close()
                    self._relay = None
                    break  # its other descriptor may be in the list

    def _read_control(self) -> bool:
        data = os.read(CONTROL, 4096)
        self._line += data
        while b"\n" in self._line:
            line, _, rest = self._line.partition(b"\n")
            self._line = rest
            self._obey(line.decode("utf-8", "replace").split())
        return bool(data)

    def _obey(self, words: list[str]) -> None:
        match words:
            case ["ping", token]:
                say(f"pong {token}")
            case ["prepare"]:
                self._preparing = True
            case ["worker"]:
                say(self._worker_state())
            case ["identity", nonce, epoch, entropy, host_key, *client_key]:
                self._identify(nonce, epoch, entropy, host_key, " ".join(client_key))

    def _identify(self, nonce: str, epoch: str, entropy: str, host_key: str, client_key: str) -> None:
        adopt(epoch, entropy, host_key, client_key)
        with open(NONCE, "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs the guest time
            file.write(nonce)
        port = os.open(self._ssh_port, os.O_RDWR | os.O_CLOEXEC)
        server = socket.create_connection(_SSH)
        self._relay = Relay(port, server.detach())
        say(f"ready {nonce}")

    def _worker_state(self) -> str:
        """Whether the worker runs; else its exit status (negative for a signal) and the end of its stderr.

        The host asks when the worker's connection has ended, which is a moment before the process has.
        """
        if self._ended is None:
            pidfd = os.pidfd_open(self._worker)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            ended = poll.poll(_DEATH_MILLISECONDS)
            os.close(pidfd)
            if not ended:
                return "worker running"
            self._ended = os.waitstatus_to_exitcode(os.waitpid(self._worker, 0)[1])
        with open(WORKER_STDERR, "rb") as file:  # noqa: PTH123
            said = file.read()[-_STDERR_BYTES:]
        return f"worker ended {self._ended} {base64.b64encode(said).decode()}"


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
            from harness.agent.worker import run

            status = run(listener, tell, NONCE)
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
    say("up")
    Supervisor(sys.argv[1], worker, loaded).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
