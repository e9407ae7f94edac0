"""What runs in a virtual machine inside the guest: the worker, on a virtio-serial port instead of a socket.

Started by the machine's first program as `python3 -I -S inner.py`; never ends, since it is process 1.
"""

from __future__ import annotations

import gc
import os
import sys
import time

PAYLOAD = __file__.rsplit("/", 3)[0]
PORTS = "/sys/class/virtio-ports"
_TRIES = 200


def find_port(wanted: str, folder: str = PORTS) -> str:
    """Return the device of the virtio-serial port that QEMU gave a name; the driver finds ports in the background.

    Raises:
        FileNotFoundError: It does not appear.
    """
    for _ in range(_TRIES):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():  # noqa: PTH112, PTH208
            try:
                with open(f"{folder}/{name}/name") as file:
                    if file.read().strip() == wanted:
                        return f"/dev/{name}"
            except FileNotFoundError:
                continue  # the name comes a moment after the port
        time.sleep(0.1)
    raise FileNotFoundError(f"QEMU gave no port the name {wanted}")


def main() -> None:
    """Serve the one client there is, the worker of the guest outside."""
    sys.path.insert(0, PAYLOAD)
    from harness.agent import worker
    from harness.agent.vm import PORT

    worker.load()
    gc.collect()
    gc.freeze()
    worker.serve(os.open(find_port(PORT), os.O_RDWR | os.O_CLOEXEC), "vm")


if __name__ == "__main__":
    main()
