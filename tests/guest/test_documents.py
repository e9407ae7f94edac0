"""What the documents show happens: every example is run on a real guest, and so are the lines of the ready CI files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from harness.paths import scenarios_dir
from harness.report import cell_text
from harness.results import CellResult, Outcome, Progress
from harness.run import run_scenarios
from harness.run.options import RunOptions

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"(?:<!-- (fails) -->\n)?^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A whole scenario of a page, and whether the page says that it fails."""

    name: str
    text: str
    fails: bool

    @property
    def has_oracle(self) -> bool:
        """Whether it says what an oracle does otherwise, which is seen only beside that oracle."""
        return bool(re.search(r"^ +(?:libusdm|kernel): \{(?:defect|differs)", self.text, re.MULTILINE))


def _examples() -> Iterator[Example]:
    for page in sorted([ROOT / "README.md", *DOCS.rglob("*.md")]):
        name = "-".join(page.relative_to(ROOT).with_suffix("").parts)
        for number, (fails, text) in enumerate(_FENCE.findall(page.read_text(encoding="utf-8")), 1):
            if re.search(r"^title:", text, re.MULTILINE):
                yield Example(f"{name}-{number}", text, bool(fails))


EXAMPLES = list(_examples())


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CellResult]:
    """All examples in clones, those with an oracle beside it."""
    folder = tmp_path_factory.mktemp("documents")
    found: dict[str, CellResult] = {}
    for implementation, wanted in (("usdm", False), ("both", True)):
        files = []
        for example in EXAMPLES:
            if example.has_oracle is wanted:
                files.append(folder / f"{example.name}.yaml")
                files[-1].write_text(example.text, encoding="utf-8")
        options = RunOptions(paths=tuple(files), out=folder / implementation, implementation=implementation, fetch=True)
        found |= {Path(cell.file).stem: cell for cell in run_scenarios(options, Progress()).cells}
    return found


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example(cells: dict[str, CellResult], example: Example) -> None:
    cell = cells[example.name]
    assert cell.outcome is (Outcome.FAIL if example.fails else Outcome.PASS), cell_text(cell)
    assert cell.evidence is not None
    assert len(cell.evidence.steps) > 0


def _github() -> list[str]:
    jobs = yaml.safe_load((DOCS / "ci" / "github-actions.yml").read_text())["jobs"]
    return [line for step in jobs["scenarios"]["steps"] for line in step.get("run", "").splitlines()]


def _gitlab() -> list[str]:
    job = yaml.safe_load((DOCS / "ci" / "gitlab-ci.yml").read_text())["scenarios"]
    return [line for part in ("before_script", "script", "after_script") for line in job[part]]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("lines", [_github(), _gitlab()], ids=["github", "gitlab"])
def test_the_lines_of_the_ready_ci_files_run(lines: list[str], tmp_path: Path) -> None:
    """In a folder with this project's scenarios, and with this environment in place of a new one."""
    (tmp_path / "scenarios").symlink_to(scenarios_dir())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    harness = shutil.which("harness")
    assert harness is not None
    (tmp_path / ".venv" / "bin" / "harness").symlink_to(harness)
    run = [line for line in lines if not re.match(r"apt-get |python3 -m venv |\.venv/bin/pip ", line)]
    assert len(lines) - len(run) == 3
    env = {
        **os.environ,
        "SCENARIOS": "scenarios/dma/unmapped_read.yaml",
        "HARNESS_KERNEL": "6.12",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md"),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }
    # Other tests of this run make templates at the same time.
    run = [line for line in run if not line.startswith(".venv/bin/harness template prune")]
    script = "\n".join(["set -e", *run])
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 0 failed" in done.stdout
    assert "<testsuite" in (tmp_path / "junit.xml").read_text()
    assert (tmp_path / "results" / "run.json").is_file()
    assert "dma/unmapped_read" in (tmp_path / "report.html").read_text()
    assert "passed" in (tmp_path / "summary.md").read_text()
