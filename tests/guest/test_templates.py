"""Templates on real guests: damaged, foreign, half made, made twice at once, on a full disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import adopt_orphans, adopted, copy_template, processes_with

from harness.deadline import Deadline
from harness.machine.template import Template, find_template
from harness.paths import usdm_dir
from harness.report import load_run

SCENARIO = "scenarios/usdm/plain_memory.yaml"


@pytest.fixture
def cache(own_cache: Path) -> Path:
    """A cache of the test's own, with this machine's images and QEMU builds, and no template."""
    return own_cache


def harness(*words: str) -> subprocess.Popen[str]:
    # A test runner in the background has SIGINT ignored, and a child inherits that.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "harness", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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


def cut(file: Path) -> None:
    """Take the second half away."""
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    """Change one bit in the middle; size and times stay."""
    stat = file.stat()
    file.chmod(0o644)
    with file.open("r+b") as data:
        data.seek(stat.st_size // 2)
        byte = data.read(1)[0]
        data.seek(stat.st_size // 2)
        data.write(bytes([byte ^ 1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


DAMAGES = [(cut, "ram"), (cut, "state"), (flip, "ram"), (flip, "state")]


@pytest.mark.parametrize(("damage", "file"), DAMAGES[:-1], ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_template_is_found_before_use(
    template: Template, cache: Path, damage: Callable[[Path], None], file: str
):
    folder = copy_template(template, cache)
    said: list[str] = []
    assert find_template(template.key, said.append) is not None
    damage(folder / file)
    assert find_template(template.key, said.append) is None
    assert len(said) == 1
    assert f"is damaged ({file} was changed); it was removed, and is being made anew" in said[0]
    assert entries(cache) == []


@pytest.mark.timeout(900)
def test_a_damaged_template_is_made_anew(template: Template, cache: Path, tmp_path: Path):
    damage, file = DAMAGES[-1]
    damage(copy_template(template, cache) / file)
    said = finished("run", SCENARIO, "--out", str(tmp_path / "out0"))
    assert f"is damaged ({file} was changed); it was removed, and is being made anew" in said
    assert "making a template" in said
    assert "1 passed" in said
    assert "making" not in finished("run", SCENARIO, "--out", str(tmp_path / "out"))


@pytest.mark.timeout(600)
def test_a_template_of_another_qemu_is_refused(
    template: Template, older_template: Template, cache: Path, tmp_path: Path
):
    """Its folder has the name that this QEMU's has, and its files are whole."""
    older = copy_template(older_template, cache)
    older.rename(older.parent / template.key)
    said = finished("run", SCENARIO, "--out", str(tmp_path / "out"))
    assert f"is damaged (it was made as {older_template.key[:12]})" in said
    assert "making a template" in said
    assert "1 passed" in said
    assert [folder.name for folder in entries(cache)] == [template.key]


# Asks for the template as a cell does, with any method.
WANT = """
import sys
from pathlib import Path
from harness.cli.handler import guarded
from harness.guest.freeze import get_template
from harness.machine.snapshot import Method
from harness.machine.spec import MachineSpec
from harness.run.options import RunOptions
from harness.run.resources import prepare

qemu, method = sys.argv[1:]
plan = prepare(RunOptions(qemu=(qemu,)), print).plan(MachineSpec(), qemu, "6.12", Path("-"))
sys.exit(guarded(lambda: get_template(plan, 120, print, Method(method)) and 0))
"""


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system; CI is root")
@pytest.mark.parametrize(
    ("qemu", "method", "room"),
    [
        pytest.param("11.1", "file", 100 << 10, id="no room for RAM"),
        # RAM's and what the boot's logs take, but not the 300 KiB of the state.
        pytest.param("11.1", "file", (512 << 10) + 200, id="no room for the state"),
        pytest.param("7.2", "file", (512 << 10) + 200, id="no room for the state, written to a descriptor"),
        pytest.param("11.1", "stream", 30 << 10, id="no room for the stream"),
    ],
)
def test_a_full_disk_while_freezing_is_told_and_nothing_is_left(cache: Path, qemu: str, method: str, room: int):
    """``room`` in KiB."""
    (cache / "making").mkdir()
    script = (
        f"mount -t tmpfs -o size={room}k small {cache}/making; "
        f"'{sys.executable}' -c '{WANT}' {qemu} {method}; status=$?; ls {cache}/making >&2; exit $status"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 8, done.stdout + done.stderr
    assert done.stderr.splitlines() == [
        f"error: the disk is full while writing to the cache {cache}",
        "hint: free some space ('harness template prune', 'harness image prune'), or point XDG_CACHE_HOME elsewhere",
    ]
    assert "Traceback" not in done.stdout
    assert entries(cache) == []
    assert not processes_with(str(cache))


@pytest.mark.timeout(300)
def test_two_that_want_it_at_once_make_it_once(cache: Path, tmp_path: Path):
    first, second = (["run", SCENARIO, "--out", str(tmp_path / name)] for name in ("first", "second"))
    maker = harness(*first)
    try:
        come_to(maker, lambda: processes_with(str(cache / "making")))
        (qemu,) = processes_with(str(cache / "making"))
        # Held until the second one says that it waits.
        os.kill(qemu, signal.SIGSTOP)
        waiter = harness(*second)
        try:
            waiting = "".join(iter_until(waiter, "waiting for what somebody else is making for the cache"))
            assert processes_with(str(cache / "making")) == [qemu]
            os.kill(qemu, signal.SIGCONT)
            said = [maker.communicate(timeout=200)[0], waiting + waiter.communicate(timeout=200)[0]]
        finally:
            waiter.kill()
            waiter.wait()
    finally:
        maker.kill()
        maker.wait()
    assert [maker.returncode, waiter.returncode] == [0, 0], said
    assert ["making a template" in text for text in said] == [True, False]
    assert [" made in " in text for text in said] == [True, False]
    (folder,) = entries(cache)
    for name in ("first", "second"):
        (cell,) = load_run(tmp_path / name).cells
        assert cell.versions is not None
        assert cell.versions.template == folder.name
    assert half_made(cache) == []


def iter_until(process: subprocess.Popen[str], text: str) -> Iterator[str]:
    """The lines of a process until one has ``text``."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if text in line:
            return
    pytest.fail(f"it never said '{text}'")


def come_to(process: subprocess.Popen[str], when: Callable[[], object]) -> None:
    give_up = Deadline.after(120)
    while not when():
        assert not give_up.expired, "the moment did not come"
        assert process.poll() is None, "the harness ended by itself"


def killed(process: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """kill -9 a harness at a moment, and see that nothing of it stays."""
    try:
        come_to(process, when)
    finally:
        process.kill()
        process.communicate()
    give_up = Deadline.after(10)
    while orphans := adopted():
        assert not give_up.expired, f"QEMU outlived the harness: {orphans}"


def boots(cache: Path) -> bool:
    """The guest of a template runs."""
    return any(log.stat().st_size for log in cache.glob("making/*/boot/qmp.log"))


def restores(out: Path) -> bool:
    """A clone loads its template."""
    return any("migrate-incoming" in log.read_text() for log in out.glob("*/qmp.log"))


@pytest.mark.timeout(600)
def test_kill_9_while_building_and_while_restoring(cache: Path, tmp_path: Path):
    adopt_orphans()
    making = harness("template", "build", SCENARIO)
    killed(making, lambda: boots(cache))
    assert entries(cache) == []
    assert half_made(cache) != []  # what was killed could not clean up; the next one does
    said = finished("template", "build", SCENARIO)
    assert "made" in said
    assert half_made(cache) == []
    out = tmp_path / "out"
    running = harness("run", SCENARIO, "--out", str(out))
    killed(running, lambda: restores(out))
    assert not processes_with(str(out))
    said = finished("run", SCENARIO, "--out", str(tmp_path / "again"))
    assert "making a template" not in said
    assert "1 passed" in said


@pytest.mark.timeout(600)
def test_ctrl_c_while_building_and_while_restoring(template: Template, cache: Path, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    adopt_orphans()
    for out, moment in ((first, lambda: boots(cache)), (second, lambda: restores(second))):
        process = harness("run", SCENARIO, "--out", str(out))
        try:
            come_to(process, moment)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert not adopted()
        assert load_run(out).interrupted
        assert half_made(cache) == []
        if out == first:
            assert entries(cache) == []
            copy_template(template, cache)
    assert "making" not in finished("run", SCENARIO, "--out", str(tmp_path / "third"))


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
