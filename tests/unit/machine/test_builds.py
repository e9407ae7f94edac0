"""QEMU builds and what they can do, with programs of our own in their place; the real ones are in tests/guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import cache
from harness.machine import accel, builds, probe
from harness.machine.builds import QemuBuild


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "usdm-harness"


def program(tmp_path: Path, body: str, name: str = "qemu-system-x86_64") -> Path:
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def build(path: Path) -> QemuBuild:
    return QemuBuild("test", "1.0", "k" * 8, (str(path),), {}, None)


def test_an_unknown_build_is_refused_with_the_known_names():
    with pytest.raises(ConfigurationError, match=r"'9\.9'") as caught:
        builds.find_build("9.9")
    assert "11.1" in str(caught.value.hint)


def test_a_build_that_is_not_there_says_how_to_get_it():
    with pytest.raises(InfrastructureError, match="not in the cache") as caught:
        builds.find_build("11.1")
    assert "harness qemu fetch 11.1" in str(caught.value.hint)
    with pytest.raises(InfrastructureError, match="not in the cache"):
        builds.fetch_build("11.1", offline=True, say=pytest.fail)


def test_the_hosts_own_qemu_is_found_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InfrastructureError, match="not on PATH"):
        builds.find_build("system")
    program(tmp_path, "echo QEMU emulator version 8.2.1")
    assert builds.find_build("system").version == "8.2.1"
    program(tmp_path, "echo broken >&2; exit 1")
    with pytest.raises(InfrastructureError, match="broken"):
        builds.find_build("system")


def test_a_damaged_build_is_found_before_use():
    recipe = builds._recipe_key("11.1", builds.SOURCES["11.1"])

    def fill(folder: Path) -> dict[str, object]:
        for name in (builds._LOADERS[0], builds._BINARY):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"program")
        return {"name": "11.1", "recipe": recipe, "version": "11.1.3", "packages": {}}

    entry = cache.store("qemu", "ab" * 32, fill)
    assert builds.find_build("11.1").argv_prefix[0] == str(entry.folder / builds._LOADERS[0])
    (entry.folder / builds._BINARY).write_bytes(b"progra")
    with pytest.raises(cache.DamagedEntryError, match="qemu-system"):
        builds.find_build("11.1")


def test_capabilities_are_asked_once_and_remembered(tmp_path: Path):
    answers = [
        {"return": {}, "id": "qmp_capabilities"},
        {"return": [{"name": "pc-q35-9.2"}, {"name": "pc-q35-10.0"}, {"name": "none"}], "id": "query-machines"},
        {"return": [{"name": "aw-bits"}], "id": "intel-iommu"},
        {"error": {"class": "DeviceNotFound"}, "id": "edu"},
        {
            "return": [{"capability": "xbzrle", "state": False}, {"capability": "x-ignore-shared", "state": False}],
            "id": "query-migrate-capabilities",
        },
    ]
    text = "\n".join(json.dumps(answer) for answer in answers)
    path = program(tmp_path, f"case \"$*\" in *-help*) echo '-sandbox on';; *) cat <<'X'\n{text}\nX\n;; esac")
    found = probe.capabilities(build(path))
    assert (found.machine_type, found.version) == ("pc-q35-10.0", (10, 0))
    assert found.migration == {"x-ignore-shared", "xbzrle"}
    assert found.sandbox
    assert found.properties == {"intel-iommu": frozenset({"aw-bits"})}
    path.unlink()
    assert probe.capabilities(build(path)) == found


def test_a_build_that_does_not_answer_is_an_error(tmp_path: Path):
    with pytest.raises(InfrastructureError, match="no machine for you"):
        probe.capabilities(build(program(tmp_path, "echo no machine for you >&2; exit 1")))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"exit {accel._EXPECTED_STATUS}", None),
        ("exit 0", "status 0 instead of"),
        ("echo KVM: entry failed >&2; kill -ABRT $$", "KVM: entry failed"),
        ("sleep 30", "did not finish within"),
    ],
)
def test_only_the_boot_sectors_own_status_counts(tmp_path: Path, body: str, said: str | None):
    failure = accel.probe(build(program(tmp_path, body)), "kvm", cpu="host", seconds=1.0)
    assert (failure is None) if said is None else (said in str(failure))


def test_kvm_that_opens_and_then_fails_gives_tcg_and_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "kvm"
    fake.touch()
    monkeypatch.setattr(accel, "_KVM", fake)
    path = program(tmp_path, "exit 1")
    decision = accel.decide(build(path))
    assert decision.accelerator == "tcg"
    assert "status 1" in decision.reason
    program(tmp_path, f"exit {accel._EXPECTED_STATUS}")
    assert accel.decide(build(path)) == decision, "the answer is remembered"
    accel._memory().write_text("{")
    assert accel.decide(build(path)).accelerator == "kvm", "a spoilt memory is no answer"


def test_without_the_device_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accel, "_KVM", tmp_path / "none")
    missing = build(tmp_path / "never-run")
    assert "does not exist" in accel.decide(missing).reason
    assert accel.decide(missing, "tcg").reason == "chosen by --accel tcg"
    with pytest.raises(InfrastructureError, match="--accel kvm"):
        accel.decide(missing, "kvm")


def test_pruning_keeps_the_newest_of_each_build_and_nothing_unknown():
    recipe = builds._recipe_key("11.1", builds.SOURCES["11.1"])

    def store(key: str, name: str, recipe: str) -> None:
        cache.store("qemu", key, lambda folder: {"name": name, "recipe": recipe, "version": "1", "packages": {}})

    store("aa" * 32, "11.1", recipe)
    store("bb" * 32, "11.1", recipe)
    store("cc" * 32, "11.1", "an older recipe")
    store("dd" * 32, "5.2", "whatever")
    removed = builds.prune_builds(1, lambda text: None)
    assert {"cc" * 32, "dd" * 32} < set(removed)
    assert len(removed) == 3
    assert len(cache.entries("qemu")) == 1
    assert len(builds.prune_builds(0, lambda text: None)) == 1
