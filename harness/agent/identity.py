"""Makes this guest a guest of its own: random generator, clock and keys, in this order.

A clone starts with the same memory as every other clone of its template, the kernel's random generator included. So
nothing that must be secret or unique may be made before `adopt`.
"""

from __future__ import annotations

import base64
import fcntl
import os
import struct
import time

HOST_KEY = "/etc/dropbear/dropbear_ed25519_host_key"
"""Where dropbear looks for the key that it was started without (-R)."""
AUTHORIZED_KEYS = "/root/.ssh/authorized_keys"

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


def adopt(epoch: str, entropy: str, host_key: str, client_key: str) -> None:
    """Take on an identity.

    Args:
        epoch: The time, in seconds since 1970, a decimal fraction.
        entropy: Random bytes from the host, in hexadecimal.
        host_key: The SSH server's private key in dropbear's format, base64.
        client_key: The public key that may log in, `ssh-ed25519 BASE64`.

    Raises:
        OSError: The kernel refused it; the guest must not be used then.
    """
    reseed(bytes.fromhex(entropy))
    time.clock_settime(time.CLOCK_REALTIME, float(epoch))
    write_secret(HOST_KEY, base64.b64decode(host_key))
    write_secret(AUTHORIZED_KEYS, client_key.encode() + b"\n")


def reseed(entropy: bytes) -> None:
    """Mix bytes into the kernel's random generator, credit them in full, and have it take a new key from them at once.

    Without the second request the generator would go on with its old key for up to a minute.
    """
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", 8 * len(entropy), len(entropy)) + entropy)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def write_secret(path: str, data: bytes) -> None:
    """Write a file that only root can read, and its folder if that is missing; raises `OSError`."""
    folder = path.rpartition("/")[0]
    os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103 - pathlib costs the guest time
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
