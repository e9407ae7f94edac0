"""What is run again and why, and clocks that jump."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import harness
from harness.errors import ConfigurationError, InfrastructureError
from harness.qualified.database import CELLS, FILE, Last, Planned, Store
from harness.qualify.clock import Clock
from harness.qualify.executor import make_executor
from harness.qualify.fingerprint import counts, fingerprint
from harness.qualify.keep import Keeper
from harness.qualify.place import attempt_folder, held, last_folder, qualifications_dir
from harness.qualify.resume import what_is_left
from harness.qualify.run import QualifyOptions, qualify, rerun_words
from harness.report import TerminalReport
from harness.report.console import Terminal
from harness.results import CellResult, Outcome, Progress
from harness.run.options import RunOptions

PARTS = {"scenario": "1", "qemu": "2"}


def cell(name: str, parts: dict[str, str] = PARTS) -> Planned:
    return Planned(name, name, {}, {}, fingerprint(parts), parts)


def last(outcome: str, failure_class: str = "", parts: dict[str, str] = PARTS) -> Last:
    return Last(1, outcome, failure_class, fingerprint(parts), parts)


@pytest.mark.parametrize(
    ("was", "reason"),
    [
        (last("pass"), None),
        (last("fail", "expectation"), None),
        (last("error", "panic"), None),
        (last("error", "infrastructure"), "the last attempt ended with an error of class infrastructure"),
        (last("error", "boot"), "the last attempt ended with an error of class boot"),
        (last("pass", parts={"scenario": "0", "qemu": "2"}), "the scenario's file changed"),
        (last("fail", "expectation", {"scenario": "1"}), "the QEMU build changed"),
    ],
)
def test_what_is_done_and_unchanged_is_kept(was: Last, reason: str | None) -> None:
    left = what_is_left([cell("a"), cell("b")], {"a": was}, {0, 1})
    assert left.again == ((1,) if reason is None else (0, 1))
    assert left.reasons == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("run/session.py", True),
        ("qualify/plan.py", True),
        ("qualify/remote/session.py", True),
        ("qualify/remote/orders.py", True),
        ("qualify/show.py", False),
        ("report/text.py", False),
        ("pytest_plugin.py", False),
    ],
)
def test_a_result_depends_on_what_makes_and_runs_its_cell(file: str, expected: bool) -> None:
    assert (Path(harness.__file__).parent / file).is_file()
    assert counts(Path(file)) is expected


def test_what_is_not_asked_for_is_left_alone() -> None:
    left = what_is_left([cell("a"), cell("b")], {}, {1})
    assert (left.again, left.kept) == ((1,), 0)
    assert what_is_left([cell("a")], {"a": last("pass")}, {0}, forced=True).again == (0,)


class _Clocks:
    def __init__(self) -> None:
        self.steady, self.wall = 10.0, 1_000_000.0

    def pass_(self, seconds: float, jump: float = 0.0) -> None:
        self.steady += seconds
        self.wall += seconds + jump


def test_a_jump_of_the_time_of_day_is_told_once_and_touches_no_duration() -> None:
    clocks = _Clocks()
    clock = Clock(lambda: clocks.steady, lambda: clocks.wall)
    clocks.pass_(30)
    assert clock.jumped() is None
    clocks.pass_(30, -3600)
    assert clock.seconds == 60.0
    said = clock.jumped()
    assert said is not None
    assert "jumped by -3600 s after 60 s" in said
    assert clock.jumped() is None
    clocks.pass_(1, 4)
    assert clock.jumped() is None


def test_a_folder_with_something_else(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(ConfigurationError, match="not empty and no qualification's folder"), held(tmp_path, make=True):
        pass
    with pytest.raises(ConfigurationError, match="is no folder"), held(tmp_path / "letter.txt", make=True):
        pass
    with pytest.raises(ConfigurationError, match="is no folder"), held(tmp_path / "none", make=False):
        pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), InfrastructureError),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), ConnectionResetError),
        (OSError(errno.EMFILE, "Too many open files", "/dev/null"), OSError),
    ],
)
def test_only_an_error_of_the_folder_is_said_to_be_one(tmp_path: Path, error: OSError, said: type[Exception]) -> None:
    with pytest.raises(said) as caught, held(tmp_path, make=True):
        raise error
    assert caught.type is said
    with pytest.raises(InfrastructureError, match="cannot be written"), held(tmp_path, make=True):
        (tmp_path / "none" / "file").touch()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    # Later versions of filelock make a lock of another kind there, and warn.
    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(InfrastructureError, match="file system without locks"), held(tmp_path, make=True):
        pass


def kept(name: str, matrix: Path) -> Path:
    """A qualification of a matrix below the state folder."""
    folder = qualifications_dir() / name
    folder.mkdir(parents=True)
    store = Store.create(folder)
    store.plan({"matrix": str(matrix)}, [])
    store.close()
    return folder


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def test_a_damaged_newest_one_is_not_passed_over(state: Path) -> None:
    matrix = state / "m.yaml"
    older, newer = kept("20260101-000000-1", matrix), kept("20260102-000000-1", state / "other.yaml")
    (qualifications_dir() / "20260103-000000-1").mkdir()
    assert last_folder(matrix) == older
    (newer / FILE).write_bytes((newer / FILE).read_bytes()[:5000])
    with pytest.raises(InfrastructureError, match=f"may be the newest .*{newer}/{FILE} is damaged") as caught:
        last_folder(matrix)
    assert f"--out {newer} --rebuild" in str(caught.value.hint)


def test_a_matrix_by_another_path_is_the_same(state: Path, write: Callable[..., Path]) -> None:
    from harness.qualify.run import other_matrix
    from harness.scenario.matrix_load import load_matrix

    file = write('matrix: M\naxes: {qemu: ["11.1"]}\n')
    (state / "link").symlink_to(file.parent)
    spelled = state / "link" / ".." / "scenarios" / file.name
    folder = kept("20260101-000000-1", file)
    assert last_folder(state / "link" / file.name) == last_folder(spelled) == folder
    facts = {"matrix": str(file), "title": "M"}
    assert other_matrix(facts, load_matrix(spelled), folder) == ""
    assert other_matrix({}, load_matrix(file), folder) == ""
    copy = load_matrix(write('matrix: M\naxes: {qemu: ["11.1"]}\n', name="copy.yaml"))
    assert f"was begun with {file}" in other_matrix(facts, copy, folder)
    with pytest.raises(ConfigurationError, match="is the qualification of another matrix"):
        other_matrix({**facts, "title": "N"}, copy, folder)


def test_what_an_interrupted_attempt_left_is_taken_away(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path, "dma.a", 1)
    folder.mkdir()
    (folder / "console.log").touch()
    assert not attempt_folder(tmp_path, "dma.a", 1).exists()
    assert attempt_folder(tmp_path, "dma.a", 2).name == "dma.a.2"


def test_executors() -> None:
    assert make_executor("local", None).name == "local"
    with pytest.raises(ConfigurationError, match="no 'locale'") as caught:
        make_executor("locale", None)
    assert "'local'" in str(caught.value.hint)
    with pytest.raises(ConfigurationError, match="--scheduler is of no use"):
        make_executor("local", "tcp://a:1")


def test_plan(write: Callable[..., Path]) -> None:
    from harness.qualify.plan import chosen, make_plan
    from harness.scenario.matrix_load import load_matrix

    text = """
matrix: M
axes: {qemu: ["11.1", "7.2"], viommu: [intel, virtio, amd, intel-39]}
exclude:
  - {when: {viommu: intel-39}, why: nobody has it}
  - {when: {viommu: virtio}, scenarios: [dma/unmapped_write], why: not asked for}
  - {when: {kernel: "6.12"}, scenarios: [bare], why: never fits}
expectations:
  - {when: {viommu: virtio}, scenarios: [dma/unmapped_read], expect: {faults: []}, why: somehow}
"""
    plan = make_plan(load_matrix(write(text)), RunOptions())
    names = [item.cell.name for item in plan.items]
    assert names == [
        "bare/read_unmapped [qemu 11.1]",
        "bare/read_unmapped [qemu 7.2]",
        "bare/write_unmapped [qemu 11.1]",
        "bare/write_unmapped [qemu 7.2]",
        "dma/roundtrip_allocated [qemu 11.1, viommu intel]",
        "dma/roundtrip_allocated [qemu 11.1, viommu virtio]",
        "dma/roundtrip_allocated [qemu 11.1, viommu amd]",
        "dma/roundtrip_allocated [qemu 7.2, viommu intel]",
        "dma/roundtrip_allocated [qemu 7.2, viommu virtio]",
        "dma/unmapped_read [qemu 11.1, viommu intel]",
        "dma/unmapped_read [qemu 11.1, viommu virtio]",
        "dma/unmapped_read [qemu 7.2, viommu intel]",
        "dma/unmapped_read [qemu 7.2, viommu virtio]",
        "dma/unmapped_write [qemu 11.1, viommu intel]",
        "dma/unmapped_write [qemu 7.2, viommu intel]",
        "virtio/roundtrip [qemu 11.1, viommu virtio]",
        "virtio/roundtrip [qemu 7.2, viommu virtio]",
    ]
    ruled = {item.cell.name for item in plan.items if item.expectation}
    assert ruled == {"dma/unmapped_read [qemu 11.1, viommu virtio]", "dma/unmapped_read [qemu 7.2, viommu virtio]"}
    why = {(one.scenario, one.reason): one for one in plan.not_run}
    assert why["*", "nobody has it"].points == 1
    assert why["*", "nobody has it"].point == {"viommu": "intel-39"}
    assert why["*", "amd-iommu remaps no DMA in QEMU 7.2, it does from 11 on"].point == {"qemu": "7.2", "viommu": "amd"}
    assert why["dma/unmapped_write", "not asked for"].point == {"viommu": "virtio"}
    assert why["dma/beyond_width_39", "the scenario is about aw_bits: 39"].points == 5
    assert plan.notes == ("the entry in line 7 of m.yaml fits no cell",)
    assert chosen(plan, "unmapped_read [qemu 7.2", None) == [11, 12]
    assert chosen(plan, None, "virtio/roundtrip [qemu 7.2") == [16]
    with pytest.raises(ConfigurationError, match="no cell 'dma/none'"):
        chosen(plan, None, "dma/none")


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("iommu=pt", "pt"),
        ("iommu.passthrough=1", "pt"),
        ("iommu.strict=0", "lazy"),
        ("iommu=nopt", "default"),
        ("quiet", "default"),
    ],
)
def test_what_a_scenario_has_on_its_command_line_is_its_label(word: str, label: str) -> None:
    from harness.qualify.plan import machine_labels
    from harness.scenario import Machine

    assert machine_labels(Machine(kernel_args=(word,)))["cmdline"] == label


def test_templates_are_made_ahead() -> None:
    from types import SimpleNamespace

    from harness.machine.spec import MachineSpec
    from harness.qualify.order import estimate, order

    items = [SimpleNamespace(cell=SimpleNamespace(qemu="11.1", scenario=SimpleNamespace(id=f"s{n}"))) for n in range(8)]
    groups = {
        None: [7],
        ("11.1", "6.12", "p", MachineSpec()): [0],
        ("11.1", "7.2", "p", MachineSpec()): [1, 2, 3, 4],
        ("7.2", "6.12", "p", MachineSpec()): [5, 6],
    }
    known = {f"clone s{n}": float(n) for n in range(8)}
    assert order(items, groups, "clone", known) == [4, 6, 3, 2, 1, 0, 5, 7]  # type: ignore[arg-type]
    assert order(items, {None: [7]}, "clone", known) == [7]  # type: ignore[arg-type]
    assert estimate(items, groups, "clone", known, 2) == (28 + 3 * 9) / 2  # type: ignore[arg-type]


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_results_without_their_file_are_not_written_over(tmp_path: Path, *, resume: bool, empty: bool) -> None:
    (tmp_path / CELLS / "dma.a").mkdir(parents=True)
    if empty:
        (tmp_path / FILE).touch()
    options = QualifyOptions(matrix=tmp_path / "m.yaml", run=RunOptions(), out=tmp_path, resume=resume)
    with pytest.raises(InfrastructureError, match="is empty" if empty else "is gone") as caught:
        qualify(options, TerminalReport(Terminal()))
    assert "--rebuild" in str(caught.value.hint)


def test_what_the_matrix_alone_can_run_again_is_run_as_it_was_and_into_a_folder_of_its_own(tmp_path: Path) -> None:
    run = RunOptions(accel="tcg", usdm=Path("/other/usdm"), fresh_boot=True)
    options = QualifyOptions(matrix=Path("m.yaml"), run=run, executor="dask", scheduler="tcp://h:1")
    store = Store.create(tmp_path)
    session = store.begin("", (), {}, "dask", 1)
    ruled = replace(cell("dma/a [viommu virtio]"), note="other expectations here: x")
    matrix: Any = SimpleNamespace(file=Path("m.yaml"))
    keeper = Keeper(store, session, tmp_path, [ruled], matrix, Clock(), Progress(), rerun_words(options))
    result = CellResult(scenario="dma/a", title="t", source="s", file="f", seconds=1.0, outcome=Outcome.PASS)
    assert not keeper.again(0, result)
    (kept,) = [one for _, _, one in store.results()]
    store.close()
    assert kept.rerun == (
        "harness qualify m.yaml --cell 'dma/a [viommu virtio]' --accel tcg --usdm /other/usdm --fresh-boot "
        "--executor dask --scheduler tcp://h:1"
    )
