"""What makes a clone a guest of its own: nothing of the template's rehearsal or of other clones is in it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest
from conftest import said

from harness.deadline import Deadline
from harness.errors import BootError, InfrastructureError
from harness.guest import control, freeze
from harness.guest import guest as guest_module
from harness.guest.control import HostKey
from harness.guest.freeze import get_template
from harness.guest.guest import Guest, running_guest
from harness.guest.payload import Payload
from harness.guest.ssh import SshConnection
from harness.machine.spec import MachineSpec
from harness.machine.template import Template
from harness.run.resources import Resources

Clone = Callable[..., AbstractContextManager[Guest]]
SUPERVISOR, IDENTITY, REQUESTS = (f"harness/agent/{name}.py" for name in ("supervisor", "identity", "requests"))
HOST_KEY_FILE = "/etc/dropbear/dropbear_ed25519_host_key"
# The supervisor draws numbers just before and just after it takes on the identity, and the worker when it is asked.
# What the kernel would mix in by itself now and then (RDRAND, interrupts) is kept out: the generator takes its last
# new key just before the freeze, and the next one would be due only after half of the guest's uptime.
PROBE = (
    (
        SUPERVISOR,
        "        adopt(epoch, entropy, host_key, client_key)\n",
        "        before = draw()\n"
        "        adopt(epoch, entropy, host_key, client_key)\n"
        "        write_secret('/run/drawn', ' '.join(before + draw()).encode())\n",
    ),
    (
        SUPERVISOR,
        "                settle()\n",
        "                settle()\n"
        "                import fcntl\n"
        "                fd = os.open('/dev/urandom', os.O_WRONLY)\n"
        "                fcntl.ioctl(fd, 0x5207)\n"
        "                os.close(fd)\n",
    ),
    (
        SUPERVISOR,
        "def settle()",
        "def draw():\n"
        "    with open('/proc/sys/kernel/random/uuid') as file:\n"
        "        return [os.getrandom(16).hex(), os.urandom(16).hex(), file.read().strip()]\n\n\n"
        "def settle()",
    ),
    (
        REQUESTS,
        "    if context.kernel_log is None:\n",
        "    if 'drawn' in _args:\n"
        "        import os\n"
        "        return Outcome(values={'drawn': [os.getrandom(16).hex(), os.urandom(16).hex()]})\n"
        "    if context.kernel_log is None:\n",
    ),
)
PAUSE = "                __import__('time').sleep"
# A clone that is given a single byte is not reseeded, so both halves are clones of one template.
SEED = (
    IDENTITY,
    "    reseed(bytes.fromhex(entropy))\n",
    "    if len(entropy) > 2:\n        reseed(bytes.fromhex(entropy))\n",
)


def changed(resources: Resources, *changes: tuple[str, str, str]) -> Resources:
    """The same with other code in the payload: file, text that is there once, what stands there instead."""
    files = {}
    with tarfile.open(fileobj=io.BytesIO(resources.payload.data)) as archive:
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None
            files[entry.name] = file.read().decode()
    for name, old, new in changes:
        assert files[name].count(old) == 1, f"{old!r} stands {files[name].count(old)} times in {name}"
        files[name] = files[name].replace(old, new)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return replace(resources, payload=Payload(out.getvalue(), hashlib.sha256(out.getvalue()).hexdigest()))


def drawn(clone: Clone, resources: Resources) -> list[tuple[str, ...]]:
    """What two clones drew, number by number: three before the identity, three after it, the worker's two, boot id."""
    both = []
    for _ in range(2):
        with clone(resources) as guest:
            worker = guest.start_worker(Deadline.after(60))
            asked = worker.request("_end", {"drawn": True}, Deadline.after(60))["values"]["drawn"]
            boot_id = said(guest, "cat /proc/sys/kernel/random/boot_id")
            both.append([*said(guest, "cat /run/drawn").split(), *asked, boot_id])
    return list(zip(*both, strict=True))


@pytest.mark.usefixtures("own_cache")
def test_the_seed_and_nothing_else_makes_two_clones_draw_different_numbers(
    resources: Resources, clone: Clone, monkeypatch: pytest.MonkeyPatch
):
    """getrandom, /dev/urandom's, and the kernel's own (UUIDs); without the seed all would be those of the template.

    The second half needs a template in which the kernel's own next key is not due just when a clone draws: a key asked
    for does not put off one that is scheduled, so the moment is shifted until there is one.
    """
    for pause in (0.0, 0.9, 1.7, 2.6, 0.4, 1.3, 2.2, 3.1):
        waiting = (SUPERVISOR, "                settle()\n", f"                settle()\n{PAUSE}({pause})\n")
        payload = changed(resources, waiting, *PROBE, SEED)
        seeded = equal(drawn(clone, payload))
        assert seeded[3:] == [False] * 6, pause
        with monkeypatch.context() as patch:
            patch.setattr(control, "_ENTROPY_BYTES", 1)
            unseeded = equal(drawn(clone, payload))
        if seeded[:3] == [True] * 3 and unseeded == [True] * 9:
            return
    pytest.fail(f"no template's numbers were drawn twice: {seeded}, without the seed {unseeded}")


def equal(pairs: list[tuple[str, ...]]) -> list[bool]:
    return [one == other for one, other in pairs]


def test_a_guest_whose_generator_cannot_be_reseeded_is_not_used(resources: Resources, tmp_path: Path):
    broken = changed(
        resources, (IDENTITY, "        fcntl.ioctl(fd, _RNDRESEEDCRNG)\n", "        raise OSError('no')\n")
    )
    plan = broken.plan(MachineSpec(), "11.1", "6.12", tmp_path)
    with pytest.raises(BootError, match="taking on its identity"), running_guest(plan, 60, lambda stage: None):
        pytest.fail("it made itself ready")


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a template that is made meanwhile rehearsed with."""
    known: dict[str, object] = {}
    make_key, make_host_key, identify = freeze.make_key, freeze.make_host_key, freeze.ControlPort.identify

    def key() -> paramiko.PKey:
        known["key"] = make_key()
        return known["key"]

    def host_key() -> HostKey:
        known["host key"] = make_host_key()
        return known["host key"]

    def identity(*args):
        found = identify(*args)
        known.setdefault("identity", found)
        return found

    monkeypatch.setattr(freeze, "make_key", key)
    monkeypatch.setattr(freeze, "make_host_key", host_key)
    monkeypatch.setattr(freeze.ControlPort, "identify", identity)
    return known


@pytest.mark.usefixtures("own_cache")
def test_clones_have_everything_of_their_own_and_nothing_of_the_rehearsal(
    clone: Clone, rehearsed: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    with ExitStack() as stack:
        guests = [stack.enter_context(clone()) for _ in range(2)]
        identities = [rehearsed["identity"], *(guest.identity for guest in guests)]
        assert len({identity.nonce for identity in identities}) == 3
        assert len({identity.host_key for identity in identities}) == 3
        assert len({guest.ssh._transport.session_id for guest in guests}) == 2
        keys = [said(guest, "cat /root/.ssh/authorized_keys") for guest in guests]
        assert len({*keys, freeze.public_line(rehearsed["key"])}) == 3
        files = [said(guest, f"sha256sum {HOST_KEY_FILE}") for guest in guests]
        assert len(set(files)) == 2
        for guest, key in zip(guests, keys, strict=True):
            assert said(guest, "cat /run/nonce") == guest.identity.nonce
            assert len(key.splitlines()) == 1
            # One server that listens, one that serves this connection: the rehearsal's is gone.
            assert len(said(guest, "pidof dropbear").split()) == 2

    def with_the_old_key(sock, _key, host_key, deadline):
        return SshConnection(sock, rehearsed["key"], host_key, deadline)

    monkeypatch.setattr(guest_module, "SshConnection", with_the_old_key)
    with pytest.raises(InfrastructureError, match="does not accept the key"), clone():
        pytest.fail("logged in with the rehearsal's key")


def digests(template: Template) -> list[str]:
    assert template.ram is not None
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in (template.ram.file, template.state)]


def test_what_a_clone_writes_is_seen_by_no_other_and_not_in_the_template(
    clone: Clone, resources: Resources, tmp_path: Path
):
    """Files, memory, kernel log, the worker's buffers; another clone that runs already, and one that starts later."""
    template = get_template(resources.plan(MachineSpec(), "11.1", "6.12", tmp_path), 120, print)
    before = digests(template)
    buffer = {"buffer": "a", "offset": 0, "size": 4096, "pattern": "random", "seed": 7}
    looks = "ls /run/trace /tmp/trace /root/trace 2>/dev/null; dmesg | grep -c trace-in-the-log; hostname"
    with clone() as meanwhile:
        assert f"mem-path={template.folder}" in Path(f"/proc/{meanwhile.emulator.pid}/cmdline").read_text()
        with clone() as guest:
            worker = guest.start_worker(Deadline.after(60))
            worker.request("buffer", {"as": "a", "size": 4096, "backing": "anonymous"}, Deadline.after(60))
            assert worker.request("fill", buffer, Deadline.after(60))["error"] is None
            said(guest, "touch /run/trace /tmp/trace /root/trace; echo trace-in-the-log >/dev/kmsg; hostname trace")
            assert len(said(guest, looks).split()) == 5
        with clone() as later:
            for other in (meanwhile, later):
                assert said(other, f"{looks}; true").split() == ["0", "guest"]
                worker = other.start_worker(Deadline.after(60))
                answer = worker.request("check", buffer, Deadline.after(60))
                assert answer["error"]["type"] == "UnknownBuffer"
    assert digests(template) == before
