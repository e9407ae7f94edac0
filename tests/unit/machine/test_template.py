"""Templates in the cache: what their key depends on, damage, failures while one is made, and which ones stay."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import EmulatorCrash, InfrastructureError
from harness.image import cache
from harness.machine import template
from harness.machine.argv import Boot
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.machine.snapshot import Method
from harness.machine.spec import DeviceSpec, MachineSpec
from harness.machine.template import Ingredients, find_template, list_templates, prune_templates, store_template

HELLO = "6.1.0-40-amd64 1.52"
DAY = 86_400.0
BEHIND_PORT = DeviceSpec("edu0", "edu", "02:00.0")
ON_BUS_0 = DeviceSpec("edu1", "edu", "00:05.0")

PLAIN = Ingredients(
    spec=MachineSpec(),
    boot=Boot(Path("/k/vmlinux"), Path("/k/initrd.img"), "image-key"),
    build=QemuBuild("11.1", "11.1.0", "build-key", ("/q/qemu",), {}, Path("/q")),
    capabilities=Capabilities(
        "pc-q35-11.1",
        True,
        {"intel-iommu": frozenset({"intremap", "caching-mode", "aw-bits", "scalable-mode"})},
        frozenset({"x-ignore-shared"}),
    ),
    accelerator="tcg",
    payload="payload-hash",
    method=Method.FILE,
    code="code-hash",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "usdm-harness"


@pytest.fixture
def said() -> list[str]:
    return []


def make(folder: Path, ram: Path | None) -> str:
    (folder / "state").write_bytes(b"s" * 500)
    if ram is not None:
        ram.write_bytes(b"r" * 4096)
    return HELLO


def never(folder: Path, ram: Path | None) -> str:
    pytest.fail("it is made again")


def nth(number: int) -> Ingredients:
    return replace(PLAIN, code=f"code-{number}")


def used_ago(key: str, seconds: float) -> None:
    """Set when a template was last used."""
    when = time.time() - seconds
    os.utime(cache.cache_dir() / "template" / key / "manifest.json", (when, when))


def keys() -> set[str]:
    return {found.key for found in list_templates()}


# ---- key

SPECS = {
    "iommu": MachineSpec(iommu="none"),
    "aw_bits": MachineSpec(aw_bits=39),
    "scalable": MachineSpec(scalable=True),
    "memory": MachineSpec(memory=1 << 30),
    "cpus": MachineSpec(cpus=2),
    "kernel_args": MachineSpec(kernel_args=("nokaslr",)),
    "devices": MachineSpec(devices=(ON_BUS_0,)),
    "buses": MachineSpec(buses=5),
    "vm": MachineSpec(vm=True),
    "any_function": MachineSpec(any_function=True),
    "hot_plug": MachineSpec(hot_plug=(2,), devices=(BEHIND_PORT,)),
}
OTHERS = {
    **{f"spec.{name}": replace(PLAIN, spec=spec.frozen) for name, spec in SPECS.items()},
    "boot": replace(PLAIN, boot=replace(PLAIN.boot, key="other")),
    "build": replace(PLAIN, build=replace(PLAIN.build, key="other")),
    "machine_type": replace(PLAIN, capabilities=replace(PLAIN.capabilities, machine_type="pc-q35-10.0")),
    "sandbox": replace(PLAIN, capabilities=replace(PLAIN.capabilities, sandbox=False)),
    "accelerator": replace(PLAIN, accelerator="kvm"),
    "payload": replace(PLAIN, payload="other"),
    "method": replace(PLAIN, method=Method.STREAM),
    "code": replace(PLAIN, code="other"),
}


def test_every_field_of_a_machine_is_tried() -> None:
    assert set(SPECS) == set(MachineSpec.__dataclass_fields__)
    assert {name.split(".")[0] for name in OTHERS} >= set(Ingredients.__dataclass_fields__) - {"capabilities"}


@pytest.mark.parametrize("name", OTHERS)
def test_the_key_changes_with(name: str) -> None:
    assert OTHERS[name].key != PLAIN.key


def test_no_two_of_them_share_a_key() -> None:
    assert len({one.key for one in OTHERS.values()}) == len(OTHERS)


def test_the_key_is_a_hash_that_is_always_the_same() -> None:
    assert PLAIN.key == replace(PLAIN).key
    assert len(bytes.fromhex(PLAIN.key)) == 32


def test_the_key_does_not_change_with_devices_behind_ports() -> None:
    spec = MachineSpec(devices=(BEHIND_PORT,))
    assert spec.frozen.devices == ()
    assert replace(PLAIN, spec=spec.frozen).key == PLAIN.key
    elsewhere = MachineSpec(devices=(replace(BEHIND_PORT, at="3d:00.0"), replace(BEHIND_PORT, name="b", at="fe:00.0")))
    assert replace(PLAIN, spec=elsewhere.frozen).key == PLAIN.key
    both = MachineSpec(devices=(BEHIND_PORT, ON_BUS_0))
    assert both.fixed_devices == (ON_BUS_0,)
    assert [one.at for one in both.frozen.devices] == [ON_BUS_0.at]
    assert replace(PLAIN, spec=both.frozen).key == OTHERS["spec.devices"].key


@pytest.mark.parametrize("changed", [{"name": "other"}, {"model": "qat"}, {"model": "qat_vf"}], ids=str)
def test_devices_on_bus_0_share_a_template_whatever_their_names_and_models(changed: dict[str, Any]) -> None:
    """QEMU freezes no machine with a device that a process serves; an edu keeps its place."""
    other = MachineSpec(devices=(replace(ON_BUS_0, **changed),))
    assert replace(PLAIN, spec=other.frozen).key == OTHERS["spec.devices"].key
    assert [one.model for one in other.frozen.devices] == ["edu"]


def test_the_key_does_not_change_with_paths() -> None:
    moved = replace(
        PLAIN,
        boot=Boot(Path("/elsewhere/vmlinux"), Path("/elsewhere/initrd"), PLAIN.boot.key),
        build=replace(PLAIN.build, argv_prefix=("/elsewhere/qemu",), folder=Path("/elsewhere")),
    )
    assert moved.key == PLAIN.key


def test_under_kvm_the_key_changes_with_the_hosts_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    kvm = replace(PLAIN, accelerator="kvm")
    before = kvm.key, PLAIN.key
    monkeypatch.setattr(template, "_host_cpu", lambda: "another one")
    assert kvm.key != before[0]
    assert PLAIN.key == before[1], "TCG emulates its own"


# ---- find


def test_what_was_stored_is_found(said: list[str]) -> None:
    assert find_template(PLAIN.key, said.append) is None
    made, seconds = store_template(PLAIN, make, said.append)
    assert seconds is not None
    assert seconds >= 0
    used_ago(PLAIN.key, DAY)
    found = find_template(PLAIN.key, said.append)
    assert found == made
    assert (found.key, found.method, found.hello) == (PLAIN.key, Method.FILE, HELLO)
    assert found.ram is not None
    assert (found.ram.file, found.ram.private) == (found.folder / "ram", True)
    assert found.ram.file.read_bytes() == b"r" * 4096
    assert found.state.read_bytes() == b"s" * 500
    assert found.disk_bytes > 0
    assert list_templates() == [made]
    assert said == []
    (entry,) = cache.entries("template")
    assert cache.last_used(entry) > time.time() - DAY / 2, "that it was used is noted"


def test_a_stream_has_no_file_for_ram(said: list[str]) -> None:
    given: list[Path | None] = []

    def note(folder: Path, ram: Path | None) -> str:
        given.append(ram)
        return make(folder, ram)

    made, _ = store_template(replace(PLAIN, method=Method.STREAM), note, said.append)
    assert given == [None]
    assert made.ram is None
    assert made.method is Method.STREAM


def truncate(folder: Path) -> None:
    os.truncate(folder / "ram", 4095)


def change(folder: Path) -> None:
    """One byte, at the same size."""
    (folder / "state").write_bytes(b"s" * 499 + b"t")


def lose(folder: Path) -> None:
    (folder / "state").unlink()


@pytest.mark.parametrize(
    ("damage", "what"),
    [(truncate, "ram was changed"), (change, "state was changed"), (lose, "state is missing")],
    ids=["truncated RAM", "changed state", "missing file"],
)
def test_damage_is_told_and_the_template_removed(
    said: list[str], own_cache: Path, damage: Callable[[Path], None], what: str
) -> None:
    made, _ = store_template(PLAIN, make, said.append)
    damage(made.folder)
    assert find_template(PLAIN.key, said.append) is None
    (text,) = said
    assert PLAIN.key[:12] in text
    assert what in text
    assert text.endswith(", and is being made anew")
    assert not made.folder.exists()
    assert list((own_cache / "making").iterdir()) == []
    again, _ = store_template(PLAIN, make, said.append)
    assert find_template(PLAIN.key, said.append) == again


def test_a_copy_of_another_template_is_none(said: list[str]) -> None:
    other, _ = store_template(nth(1), make, said.append)
    place = other.folder.with_name(PLAIN.key)
    shutil.copytree(other.folder, place)
    assert find_template(PLAIN.key, said.append) is None
    (text,) = said
    assert f"it was made as {other.key[:12]}" in text
    assert not place.exists()
    assert find_template(other.key, said.append) == other


# ---- store


@pytest.mark.parametrize("error", [EmulatorCrash("QEMU ended by signal 11"), KeyboardInterrupt()])
def test_what_make_raises_is_passed_on_and_nothing_is_left(
    said: list[str], own_cache: Path, error: BaseException
) -> None:
    def fail(folder: Path, ram: Path | None) -> str:
        make(folder, ram)
        raise error

    with pytest.raises(type(error)) as caught:
        store_template(PLAIN, fail, said.append)
    assert caught.value is error
    assert list_templates() == []
    assert not (own_cache / "template" / PLAIN.key).exists()
    assert list((own_cache / "making").iterdir()) == []


def test_a_full_disk_names_the_cache(said: list[str], own_cache: Path) -> None:
    def full(folder: Path, ram: Path | None) -> str:
        make(folder, ram)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InfrastructureError, match="the disk is full") as caught:
        store_template(PLAIN, full, said.append)
    assert str(own_cache) in caught.value.message
    assert list_templates() == []
    assert list((own_cache / "making").iterdir()) == []


def test_one_that_was_made_meanwhile_is_taken(said: list[str]) -> None:
    made, _ = store_template(PLAIN, make, said.append)
    assert store_template(PLAIN, never, said.append) == (made, None)


def test_ram_and_state_are_hashed_once(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """RAM has 512 MiB: the clones that follow trust its times."""
    store_template(PLAIN, make, said.append)
    monkeypatch.setattr(cache, "_digest", lambda path: pytest.fail(f"{path.name} is hashed again"))
    assert find_template(PLAIN.key, said.append) is not None


# ---- which ones stay


def test_the_sixteen_last_used_stay(said: list[str]) -> None:
    made = [store_template(nth(number), make, said.append)[0].key for number in range(20)]
    # Not in the order in which they were made: the first is the one used last.
    for number, key in enumerate(made):
        used_ago(key, DAY * (1 + number))
    newest, _ = store_template(nth(99), make, said.append)
    assert keys() == {newest.key, *made[:15]}


def test_those_of_the_last_ten_minutes_stay_however_many(said: list[str]) -> None:
    made = [store_template(nth(number), make, said.append)[0].key for number in range(20)]
    for key in made[:18]:
        used_ago(key, 540)
    for key in made[18:]:
        used_ago(key, 660)
    newest, _ = store_template(nth(99), make, said.append)
    assert keys() == {newest.key, *made[:18]}


def test_pruning_keeps_what_is_named(said: list[str]) -> None:
    made = [store_template(nth(number), make, said.append)[0].key for number in range(4)]
    removed = prune_templates({made[1], made[2], "no such key"}, said.append)
    assert sorted(removed) == sorted([made[0], made[3]])
    assert keys() == {made[1], made[2]}
    assert sorted(said) == sorted(f"removed template QEMU 11.1 {key[:12]}" for key in removed)
    assert prune_templates(set(), said.append)
    assert keys() == set()


def test_other_kinds_are_not_pruned(said: list[str]) -> None:
    store_template(PLAIN, make, said.append)
    cache.store("image", PLAIN.key, lambda folder: {"name": "an image"})
    assert prune_templates(set(), said.append) == [PLAIN.key]
    assert [entry.key for entry in cache.entries("image")] == [PLAIN.key]


# ---- what the cache does for them


def test_the_newest_of_each_group_stay(own_cache: Path, said: list[str]) -> None:
    for number, name in enumerate(["a", "a", "b", "a", "b", "none"]):
        entry = cache.store("image", f"{number:064x}", lambda folder, name=name: {"name": name})
        manifest = entry.folder / "manifest.json"
        data = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**data, "created": f"2026-01-0{number + 1}T00:00:00+00:00"}))

    def group(entry: cache.Entry) -> str | None:
        name = str(entry.facts["name"])
        return None if name == "none" else name

    removed = cache.prune("image", group, 1, said.append)
    assert removed == [f"{number:064x}" for number in (5, 2, 1, 0)]
    assert [entry.key for entry in cache.entries("image")] == [f"{number:064x}" for number in (4, 3)]
    assert said[0] == f"removed image none {0:012x}"
    assert cache.prune("image", group, 1, said.append) == []


def test_last_use_is_the_making_until_it_is_marked() -> None:
    entry = cache.store("image", PLAIN.key, lambda folder: {})
    assert cache.last_used(entry) > time.time() - DAY
    os.utime(entry.folder / "manifest.json", (1000, 1000))
    assert cache.last_used(entry) == 1000
    cache.mark_used(entry)
    assert cache.last_used(entry) > time.time() - DAY
    assert cache.find("image", PLAIN.key, trust_stamps=True) == entry


def test_an_entry_that_is_gone_was_never_used() -> None:
    entry = cache.store("image", PLAIN.key, lambda folder: {})
    cache.remove(entry)
    cache.mark_used(entry)
    assert cache.last_used(entry) == 0
    cache.remove(entry)
