"""The host key that is made for a guest, read as dropbear and paramiko read it."""

from __future__ import annotations

import base64
import struct

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from harness.guest.control import HostKey
from harness.guest.ssh import make_host_key, public_line


def strings(data: bytes) -> list[bytes]:
    """SSH strings, one after the other, to the last byte."""
    found = []
    while data:
        (length,) = struct.unpack_from(">I", data)
        assert len(data) >= 4 + length
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def secret_of(key: HostKey) -> tuple[bytes, bytes]:
    """Seed and public key from dropbear's file: a name, then one string that has both."""
    name, both = strings(base64.b64decode(key.secret, validate=True))
    assert name == b"ssh-ed25519"
    assert len(both) == 64
    return both[:32], both[32:]


def test_the_secret_gives_the_public_key() -> None:
    key = make_host_key()
    seed, public = secret_of(key)
    name, _, shown = key.public.partition(" ")
    assert name == "ssh-ed25519"
    assert strings(base64.b64decode(shown, validate=True)) == [b"ssh-ed25519", public]
    computed = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert computed == public


def test_what_the_secret_signs_the_public_key_verifies() -> None:
    key = make_host_key()
    seed, _ = secret_of(key)
    (_, raw) = strings(base64.b64decode(key.public.split(" ")[1]))
    signed = Ed25519PrivateKey.from_private_bytes(seed).sign(b"exchange hash")
    Ed25519PublicKey.from_public_bytes(raw).verify(signed, b"exchange hash")


def test_paramiko_shows_the_same_line() -> None:
    key = make_host_key()
    known = paramiko.Ed25519Key(data=base64.b64decode(key.public.split(" ")[1]))
    assert public_line(known) == key.public


def test_no_two_guests_have_the_same() -> None:
    made = [make_host_key() for _ in range(10)]
    assert len({key.public for key in made}) == len({secret_of(key)[0] for key in made}) == 10


def test_both_are_single_words_of_the_control_port() -> None:
    key = make_host_key()
    assert len(key.secret.split()) == 1
    assert len(key.public.split()) == 2
