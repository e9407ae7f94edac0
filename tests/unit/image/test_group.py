"""Commands of which nothing is left: not when they end, not when they are interrupted, not after kill -9."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.image.group import run_group

ENV = {"PATH": os.defpath}
# Two generations that would run for ever, and one that has left its parent; each says its number first.
FAMILY = "sh -c 'echo $$; sleep 1000' & sh -c 'sh -c \"echo \\$\\$; sleep 1000\" &'; echo $$; "


def run(script: str, folder: Path) -> tuple[int, list[str]]:
    lines: list[str] = []
    return run_group(["sh", "-c", script], env=ENV, cwd=folder, on_line=lines.append), lines


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_lines_of_both_outputs_and_the_status(tmp_path: Path):
    assert run("echo one; echo two >&2; pwd; exit 3", tmp_path) == (3, ["one", "two", str(tmp_path)])
    assert run("kill -TERM $$", tmp_path) == (128 + signal.SIGTERM, [])
    assert run("read line || echo nothing to read", tmp_path) == (0, ["nothing to read"])


def test_the_environment_is_the_given_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAKEFLAGS", "-k")
    assert run('echo "[$MAKEFLAGS]"', tmp_path) == (0, ["[]"])


def test_a_program_that_is_not_there(tmp_path: Path):
    lines: list[str] = []
    assert run_group(["no-such-program"], env=ENV, cwd=tmp_path, on_line=lines.append) == 127
    assert lines == ["no-such-program: No such file or directory"]
    with pytest.raises(InfrastructureError, match="cannot be started"):
        run_group(["sh"], env=ENV, cwd=tmp_path / "absent", on_line=lines.append)


def test_what_the_command_leaves_running_ends_with_it(tmp_path: Path):
    # Its output would not end before.
    status, lines = run(FAMILY + "exit 5", tmp_path)
    assert status == 5
    assert all(gone(int(line)) for line in lines)


def test_an_exception_ends_everything_before_it_goes_on(tmp_path: Path):
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_group(["sh", "-c", FAMILY + "sleep 1000"], env=ENV, cwd=tmp_path, on_line=interrupt)
    assert len(lines) == 3
    assert all(gone(int(line)) for line in lines)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_whoever_asked_for_it(tmp_path: Path, how: signal.Signals):
    program = textwrap.dedent(f"""
        from pathlib import Path
        from harness.image.group import run_group
        def say(line):
            print(line, flush=True)
        run_group(["sh", "-c", {FAMILY + "sleep 1000"!r}], env={ENV!r}, cwd=Path({str(tmp_path)!r}), on_line=say)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        pids = [int(asker.stdout.readline()) for _ in range(3)]
        descriptors = [os.pidfd_open(pid) for pid in pids]
        asker.send_signal(how)
        asker.wait()
    for descriptor in descriptors:
        # Readable once the process has ended.
        assert select.select([descriptor], [], [], 60)[0]
        os.close(descriptor)
