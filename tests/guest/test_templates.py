"""Templates on real guests: damaged, foreign, half made, made twice at once, on a full disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import adopt_orphans, adopted, processes_with

from harness.deadline import Deadline
from harness.paths import cache_dir, usdm_dir

SCENARIO = "scenarios/usdm/plain_memory.yaml"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: object) -> Path:
    """A cache of the test's own, with this machine's images and QEMU builds, and no template."""
    real, own = cache_dir(), tmp_path / "cache" / "usdm-harness"
    own.mkdir(parents=True)
    for name in ("image", "qemu", "capabilities", "accelerator.json"):
        (own / name).symlink_to(real / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(own.parent))
    return own


def harness(*words: str, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "harness", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
    )


def finished(*words: str) -> str:
    """Run the command to its end, which must be a good one; gives what it said."""
    process = harness(*words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "template").iterdir()) if (cache / "template").is_dir() else []


def half_made(cache: Path) -> list[Path]:
    return list((cache / "making").iterdir()) if (cache / "making").is_dir() else []


def truncate_ram(folder: Path) -> None:
    os.truncate(folder / "ram", 100 << 20)


def truncate_state(folder: Path) -> None:
    os.truncate(folder / "state", 1000)


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "state").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "state").chmod(0o644)
    (folder / "state").write_bytes(data)


def lose_state(folder: Path) -> None:
    (folder / "state").unlink()


@pytest.mark.timeout(900)
def test_a_damaged_template_is_found_before_use_and_made_anew(cache: Path, tmp_path: Path):
    finished("template", "build", SCENARIO)
    (folder,) = entries(cache)
    for number, damage in enumerate((truncate_ram, truncate_state, flip_a_byte, lose_state)):
        damage(folder)
        said = finished("run", SCENARIO, "--out", str(tmp_path / f"out{number}"))
        assert "is damaged" in said, damage
        assert "made anew" in said
        assert "making a template" in said
        assert "1 passed" in said
    assert "making" not in finished("run", SCENARIO, "--out", str(tmp_path / "out"))


@pytest.mark.timeout(600)
def test_a_template_of_another_machine_is_refused(cache: Path, tmp_path: Path):
    """As one of another QEMU: its folder has the name that this machine's has, and its files are whole."""
    finished("template", "build", SCENARIO)
    (ours,) = entries(cache)
    finished("template", "build", SCENARIO, "--qemu", "10.0")
    (other,) = [folder for folder in entries(cache) if folder != ours]
    shutil.rmtree(ours)
    shutil.copytree(other, ours)
    said = finished("run", SCENARIO, "--out", str(tmp_path / "out"))
    assert f"it was made as {other.name[:12]}" in said
    assert "making a template" in said
    assert "1 passed" in said


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system; CI is root")
@pytest.mark.parametrize("room", [100 << 10, (512 << 10) + 200], ids=["no room for RAM", "no room for the state"])
def test_a_full_disk_while_freezing_is_told_and_nothing_is_left(cache: Path, room: int):
    """``room`` in KiB: the second is RAM's and what the boot's logs take, but not the 300 KiB of the state."""
    (cache / "making").mkdir()
    script = (
        f"mount -t tmpfs -o size={room}k small {cache}/making; "
        f"'{sys.executable}' -m harness template build {SCENARIO}; status=$?; ls {cache}/making; exit $status"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 8, done.stdout + done.stderr
    assert "the disk is full" in done.stdout + done.stderr
    assert str(cache) in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout.splitlines() or "template-" not in done.stdout.splitlines()[-1]
    assert entries(cache) == []


@pytest.mark.timeout(300)
def test_two_builders_at_once_make_it_once(cache: Path):
    both = [harness("template", "build", SCENARIO) for _ in range(2)]
    said = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("making a template" in text for text in said) == 1, said
    assert len(entries(cache)) == 1
    assert half_made(cache) == []


def killed(process: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """kill -9 a harness at a moment, and see that nothing of it stays."""
    give_up = Deadline.after(120)
    try:
        while not when():
            assert not give_up.expired, "the moment did not come"
            assert process.poll() is None, "the harness ended by itself"
    finally:
        process.kill()
        process.communicate()
    give_up = Deadline.after(10)
    while orphans := adopted():
        assert not give_up.expired, f"QEMU outlived the harness: {orphans}"


@pytest.mark.timeout(600)
def test_kill_9_while_building_and_while_restoring(cache: Path, tmp_path: Path):
    adopt_orphans()
    making = harness("template", "build", SCENARIO)
    killed(making, lambda: any(log.stat().st_size for log in (cache / "making").glob("*/boot/qmp.log")))
    assert entries(cache) == []
    assert half_made(cache) != []  # what was killed could not clean up; the next one does
    said = finished("template", "build", SCENARIO)
    assert "made" in said
    assert half_made(cache) == []
    out = tmp_path / "out"
    running = harness("run", SCENARIO, "--out", str(out))
    killed(running, lambda: any("migrate-incoming" in log.read_text() for log in out.glob("*/qmp.log")))
    assert not processes_with(str(out))
    said = finished("run", SCENARIO, "--out", str(tmp_path / "again"))
    assert "making a template" not in said
    assert "1 passed" in said


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fresh", [(), ("--fresh-boot",)], ids=["clone", "boot"])
def test_code_that_cannot_be_loaded_is_told_in_one_line(tmp_path: Path, cache: Path, fresh: tuple[str, ...]):
    broken = tmp_path / "usdm"
    shutil.copytree(usdm_dir(), broken, ignore=shutil.ignore_patterns("__pycache__"))
    (broken / "driver.py").write_text("def broken(:\n")
    process = harness("run", SCENARIO, "--usdm", str(broken), "--out", str(tmp_path / "out"), *fresh)
    said, _ = process.communicate(timeout=200)
    assert process.returncode in (6, 8), said
    assert "SyntaxError" in said
    assert "Traceback" not in said
    assert entries(cache) == []
