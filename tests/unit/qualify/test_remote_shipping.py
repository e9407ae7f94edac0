"""What workers lack is sent once, and again when it arrives damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client
from remote_rig import Rig, passed

from harness.errors import InfrastructureError
from harness.guest.payload import Payload
from harness.image import cache
from harness.qualify.remote import calls, shipping
from harness.qualify.remote.orders import Entry, source_key
from harness.qualify.remote.shipping import Shipping, UnfitWorkerError, call

PAYLOAD = Payload(b"data", "p" * 64)
IMAGE = Entry("image", "1" * 64)


class Ship:
    """Two workers, one client, and a cache that has an image; the workers say of themselves what they are told to."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.said: list[str] = []
        self.facts: list = []

    def __call__(self, do: Callable[[Shipping], Awaitable[None]]) -> None:
        async def main() -> None:
            async with (
                self.rig.cluster({"one": {}, "two": {}}),
                Client(self.rig.address, asynchronous=True, set_as_default=False) as client,
            ):
                addresses = [worker.address for worker in self.rig.workers.values()]
                self.facts = [await call(client, one, calls.join, "test", source_key()) for one in addresses]
                made = Shipping(client, "test", self.said.append)
                try:
                    await do(made)
                finally:
                    made.close()
                    for one in addresses:
                        await call(client, one, calls.leave, "test")

        asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ship:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calls, "measure_kvm", lambda: (False, "no /dev/kvm"))
    monkeypatch.setattr(calls, "system_version", lambda: None)
    monkeypatch.setattr(shipping, "CHUNK_BYTES", 1000)

    def fill(folder: Path) -> dict[str, object]:
        # Not to be compressed, so that it takes several chunks.
        (folder / "initrd.img").write_bytes(bytes((n * n * 7919 >> 5) & 0xFF for n in range(5000)))
        return {"name": "it"}

    cache.store(IMAGE.kind, IMAGE.key, fill)
    return Ship(Rig(tmp_path, lambda one, *more: passed(one)))


def lacking(monkeypatch: pytest.MonkeyPatch, times: int) -> list[Entry]:
    """Workers say so many times that they lack what they are asked for."""
    asked: list[Entry] = []

    def found(entry: Entry) -> bool:
        asked.append(entry)
        return len(asked) > times

    monkeypatch.setattr(calls, "_found", found)
    return asked


def test_what_is_there_is_not_sent(ship: Ship):
    async def do(made: Shipping) -> None:
        await made.supply(ship.facts[0], [IMAGE], PAYLOAD)
        assert made.sent == []

    ship(do)
    assert ship.said == []


def test_a_cache_gets_it_once_however_many_ask(ship: Ship, monkeypatch: pytest.MonkeyPatch):
    lacking(monkeypatch, 1)

    async def do(made: Shipping) -> None:
        await asyncio.gather(*(made.supply(facts, [IMAGE], PAYLOAD) for facts in ship.facts * 3))
        assert [entry for _, entry in made.sent] == [IMAGE]

    ship(do)
    assert len(ship.said) == 1


def test_another_cache_gets_its_own(ship: Ship, monkeypatch: pytest.MonkeyPatch):
    lacking(monkeypatch, 2)

    async def do(made: Shipping) -> None:
        one, two = ship.facts[0], replace(ship.facts[1], cache="elsewhere")
        await asyncio.gather(made.supply(one, [IMAGE], PAYLOAD), made.supply(two, [IMAGE], PAYLOAD))
        assert sorted(name for name, _ in made.sent) == ["one", "two"]

    ship(do)


def damage(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    real, seen = shipping._chunk, []

    def chunk(file, offset: int) -> bytes:
        data = real(file, offset)
        seen.append(offset)
        return b"?" + data[1:] if offset == 1000 and seen.count(1000) <= times else data

    monkeypatch.setattr(shipping, "_chunk", chunk)


def test_what_arrives_damaged_is_sent_again(ship: Ship, monkeypatch: pytest.MonkeyPatch):
    lacking(monkeypatch, 2)
    damage(monkeypatch, 1)

    async def do(made: Shipping) -> None:
        await made.supply(ship.facts[0], [IMAGE], PAYLOAD)
        assert len(made.sent) == 2

    ship(do)
    assert "damaged on its way" in ship.said[1]
    assert ship.said[1].endswith("sending it again")


def test_what_always_arrives_damaged_is_given_up(ship: Ship, monkeypatch: pytest.MonkeyPatch):
    lacking(monkeypatch, 9)
    damage(monkeypatch, 9)

    async def do(made: Shipping) -> None:
        with pytest.raises(UnfitWorkerError, match=r"damaged on its way.*, 3 times"):
            await made.supply(ship.facts[0], [IMAGE], PAYLOAD)

    ship(do)


def test_what_this_machine_lacks_is_its_own_error(ship: Ship):
    async def do(made: Shipping) -> None:
        with pytest.raises(InfrastructureError, match="has no image 2222") as caught:
            await made.supply(ship.facts[0], [Entry("image", "2" * 64)], PAYLOAD)
        assert not isinstance(caught.value, UnfitWorkerError)

    ship(do)


def test_who_fails_does_not_fail_the_others(ship: Ship, monkeypatch: pytest.MonkeyPatch):
    lacking(monkeypatch, 2)
    real, tried = shipping.call, []

    async def broken(client, address, function, *args, **more):
        if function is calls.take_parcel:
            tried.append(address)
            if len(tried) == 1:
                raise ConnectionError("the worker is gone")
        return await real(client, address, function, *args, **more)

    monkeypatch.setattr(shipping, "call", broken)

    async def do(made: Shipping) -> None:
        # Both share a cache; the one that was sent to goes away meanwhile.
        ended = await asyncio.gather(
            *(made.supply(facts, [IMAGE], PAYLOAD) for facts in ship.facts), return_exceptions=True
        )
        assert sorted(map(type, ended), key=str) == [ConnectionError, type(None)]
        assert len(set(tried)) == 2

    ship(do)
