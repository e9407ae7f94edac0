"""Which files are items, at which points, and what is said of a broken one; nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_rig import BARE, SCENARIO, Run

pytest_plugins = ["pytester"]


def collected(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if "::" in line]


@pytest.fixture
def files(pytester: pytest.Pytester) -> Path:
    folder = pytester.path / "scenarios"
    (folder / "dma").mkdir(parents=True)
    (folder / "dma" / "read.yaml").write_text(SCENARIO)
    (folder / "bare.yaml").write_text(BARE)
    return folder


def test_a_file_that_is_named_is_an_item(run: Run, files: Path):
    assert collected(run("--co", "-q", "scenarios/dma/read.yaml")) == ["scenarios/dma/read.yaml::read"]


def test_a_folder_is_not_looked_through_unless_the_setting_names_it(run: Run, files: Path, pytester: pytest.Pytester):
    assert collected(run("--co", "-q", "scenarios")) == []
    pytester.makeini("[pytest]\nharness_scenarios = scenarios\n")
    both = ["scenarios/bare.yaml::bare", "scenarios/dma/read.yaml::read"]
    assert sorted(collected(run("--co", "-q", "scenarios"))) == both
    assert sorted(collected(run("--co", "-q"))) == both
    assert collected(run("--co", "-q", "scenarios/dma")) == both[1:]


def test_a_file_below_a_folder_that_is_named_too(run: Run, files: Path):
    assert collected(run("--co", "-q", ".", "scenarios/dma/read.yaml")) == ["scenarios/dma/read.yaml::read"]


def test_yaml_of_others_is_left_alone(run: Run, pytester: pytest.Pytester):
    pytester.path.joinpath("test_api.tavern.yaml").write_text("test_name: x\nstages: []\n")
    result = run("--co", "-q", "test_api.tavern.yaml")
    assert collected(result) == []
    result.stderr.fnmatch_lines(["*not found*"])


def test_an_item_for_each_point(run: Run, files: Path):
    result = run(
        *("--co", "-q", "scenarios/dma/read.yaml", "scenarios/bare.yaml", "--harness-qemu=11.1", "--harness-qemu=7.2"),
        *("--harness-viommu=intel", "--harness-viommu=virtio", "--harness-cmdline=pt"),
    )
    assert collected(result) == [
        "scenarios/dma/read.yaml::[qemu 11.1, kernel 6.12, viommu intel]",
        "scenarios/dma/read.yaml::[qemu 11.1, kernel 6.12, viommu virtio]",
        "scenarios/dma/read.yaml::[qemu 7.2, kernel 6.12, viommu intel]",
        "scenarios/dma/read.yaml::[qemu 7.2, kernel 6.12, viommu virtio]",
        "scenarios/bare.yaml::[qemu 11.1]",
        "scenarios/bare.yaml::[qemu 7.2]",
    ]


def test_every_axis_has_an_option(run: Run, files: Path):
    words = {
        "kernel": ("6.12", "7.2"),
        "implementation": ("usdm", "libusdm-24.02"),
        "model": ("edu", "qat"),
        "hugepages": ("0", "64"),
        "vcpus": ("1", "2"),
    }
    for axis, values in words.items():
        found = collected(run("--co", "-q", "scenarios/dma/read.yaml", *(f"--harness-{axis}={v}" for v in values)))
        assert [f"{axis} {value}" in line for value, line in zip(values, found, strict=True)] == [True, True], found


def test_one_item_by_its_id(run: Run, files: Path):
    name = "scenarios/dma/read.yaml::[qemu 7.2, kernel 6.12]"
    assert collected(run("--co", "-q", name, "--harness-qemu=11.1", "--harness-qemu=7.2")) == [name]
    assert collected(run("--co", "-q", "scenarios/dma/read.yaml", "-k", "bare")) == []


def test_a_broken_file_is_an_error_of_its_collection_with_every_place(run: Run, files: Path):
    (files / "broken.yaml").write_text(SCENARIO.replace("register", "regster").replace("source", "sauce"))
    result = run("scenarios/broken.yaml")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        [
            "*ERROR collecting scenarios/broken.yaml*",
            "scenarios/broken.yaml:1:1: expected 'source' in the scenario, found none*",
            "scenarios/broken.yaml:2:1: expected a known key in the scenario, found 'sauce'*",
            "scenarios/broken.yaml:5:5: expected a kind of step, found 'regster' (hint: did you mean 'register'[?])",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert "harness/" not in result.stdout.str()


def test_a_matrix_that_is_named_is_its_cells(run: Run, files: Path, pytester: pytest.Pytester):
    matrix = 'matrix: small\naxes: {qemu: ["11.1", "7.2"]}\nscenarios: [dma]\n'
    (files / "small.yaml").write_text(matrix)
    (files / "known.yaml").write_text("failures: []\n")
    found = collected(run("--co", "-q", "scenarios/small.yaml"))
    assert [line.split("::")[0] for line in found] == ["scenarios/small.yaml"] * 2
    assert ["qemu 11.1" in found[0], "qemu 7.2" in found[1]] == [True, True]
    pytester.makeini("[pytest]\nharness_scenarios = scenarios\n")
    assert len(collected(run("--co", "-q", "scenarios"))) == 2  # neither of the two files
    (files / "small.yaml").write_text(matrix.replace("qemu", "qmeu"))
    result = run("scenarios/small.yaml")
    result.stdout.fnmatch_lines(["scenarios/small.yaml:2:*qmeu*"])
    assert "Traceback" not in result.stdout.str()


def test_without_the_plugin_there_is_nothing_of_it(run: Run, files: Path):
    words = ["-p", "no:harness", "-p", "no:harness.pytest_plugin"]
    result = run("--co", "-q", "scenarios/dma/read.yaml", *words)
    assert collected(result) == []
