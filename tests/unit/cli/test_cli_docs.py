"""The README's test line, and ``.ci/run``, which runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def ci(tmp_path: Path, line: str) -> subprocess.CompletedProcess[str]:
    """``.ci/run`` with a README of its own."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text(f"# x\n\n<!-- test line -->\n```sh\n{line}\n```\n\n```sh\npython3 no\n```\n")
    return subprocess.run(["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True, check=False)


def test_ci_runs_the_readmes_test_line_and_ends_with_the_counts(tmp_path: Path):
    line = "python3 -c \"print('==== 700 passed in 3.2s ====\\\\n= 2 passed in 9.00s =\\\\nnox > done')\""
    done = ci(tmp_path, line)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"+ {line}\n")
    assert done.stdout.splitlines()[-2:] == ["==== 700 passed in 3.2s ====", "= 2 passed in 9.00s ="]


def test_ci_fails_when_the_test_line_fails(tmp_path: Path):
    done = ci(tmp_path, "python3 -c \"import sys; print('= 1 failed in 1.0s ='); sys.exit(3)\"")
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "= 1 failed in 1.0s ="


def test_the_ci_script_can_be_started_and_the_readme_has_one_test_line():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    after = README.split("<!-- test line -->")
    assert len(after) == 2
    assert after[1].startswith("\n```sh\npython3 -m venv .venv && ")
    assert after[1].split("```")[1].rstrip().endswith("/nox")
