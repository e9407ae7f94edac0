"""Which kernel a scenario runs on: the one that was chosen, or one with the options that it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InfrastructureError
from harness.guest.payload import Payload
from harness.image import build as image_build
from harness.image import cache
from harness.image.build import Image, known_options
from harness.image.recipe import load_recipe
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.machine.probe import Capabilities
from harness.run import kernels as run_kernels
from harness.run import resources as run_resources
from harness.run.cells import Cell, choose_kernels, unmet
from harness.run.kernels import KernelFinder, kernel_with, kernels_beside
from harness.run.options import RunOptions
from harness.run.resources import Emulation, Resources, fetch_all
from harness.scenario import Needs, Scenario
from harness.scenario.load import parse_scenario

STOCK = frozenset({"VFIO", "PCI"})
LAB = frozenset({"VFIO", "PCI", "VFIO_NOIOMMU"})


def scenario(needs: str) -> Scenario:
    text = f"title: t\nsource: s\nmachine: {{}}\nneeds: {{kernel_options: {needs}}}\nsteps: [{{statistics: {{}}}}]\n"
    return parse_scenario(text, "x.yaml")


def cell(needs: str) -> Cell:
    return Cell(scenario(needs), "11.1", "6.12", "a/b")


class Images:
    """The images in the cache."""

    def __init__(self, folder: Path) -> None:
        one = Image("trixie", "i", folder, folder, folder, "6.12.88", {}, "2026", 1, STOCK)
        self.here = {"trixie": one}
        self.lab = replace(one, name="lab", kernel_release="7.2.12-lab", options=LAB)
        self.asked: list[tuple[str, str]] = []

    def find(self, name: str) -> Image:
        self.asked.append(("find", name))
        if name in self.here:
            return self.here[name]
        raise InfrastructureError(f"the image '{name}' is not in the cache", hint=f"harness image build {name}")

    def build(self, name: str, **how: Any) -> Image:
        self.asked.append(("build", name))
        return self.here.setdefault(name, self.lab)

    @property
    def resources(self) -> Resources:
        build = QemuBuild("11.1", "11.1.3", "b", ("qemu",), {}, None)
        capabilities = Capabilities("pc-q35-11.1", True, {}, frozenset())
        emulation = Emulation(build, capabilities, Decision("tcg", "no KVM"))
        images = {"6.12": self.here["trixie"]} | ({"lab": self.lab} if "lab" in self.here else {})
        return Resources({"11.1": emulation}, images, Payload(b"", "p"))


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Images:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = Images(tmp_path)
    monkeypatch.setattr(run_resources, "find_image", images.find)
    monkeypatch.setattr(run_resources, "build_image", images.build)
    return images


def quiet(text: str) -> None:
    """Be told nothing."""


def test_the_choice_of_a_kernel_is_known_from_the_options():
    assert (RunOptions().kernels, RunOptions().auto_kernel) == (("6.12",), True)
    chosen = RunOptions(kernels=("6.12",))
    assert (chosen.kernels, chosen.auto_kernel) == (("6.12",), False)
    assert replace(RunOptions(), fetch=True).auto_kernel
    assert not replace(chosen, fetch=True).auto_kernel


def test_a_scenario_without_needs_stays_on_the_default_and_nothing_is_looked_for(images: Images):
    cells = [cell("{}"), cell("{PCI: true, VFIO_NOIOMMU: false}")]
    resources = images.resources
    assert choose_kernels(cells, RunOptions(), resources, quiet) == (cells, resources)
    assert images.asked == []


def test_a_scenario_moves_to_the_kernel_that_has_what_it_needs(images: Images):
    images.here["lab"] = images.lab
    cells, resources = choose_kernels([cell("{}"), cell("{VFIO_NOIOMMU: true}")], RunOptions(), images.resources, quiet)
    assert [one.kernel for one in cells] == ["6.12", "lab"]
    assert resources.images["lab"] is images.lab
    assert [unmet(one, resources) for one in cells] == [None, None]
    assert "--kernel lab" in cells[1].rerun


def test_its_image_is_only_looked_for_and_built_with_fetch_alone(images: Images):
    cells = [cell("{VFIO_NOIOMMU: true}")]
    with pytest.raises(
        InfrastructureError, match=r"^a/b needs a kernel with VFIO_NOIOMMU: the image 'lab' is not"
    ) as caught:
        choose_kernels(cells, RunOptions(), images.resources, quiet)
    assert caught.value.hint == "harness image build lab; with --kernel 6.12 it is skipped"
    assert images.asked == [("find", "lab")]
    _, resources = choose_kernels(cells, RunOptions(fetch=True), images.resources, quiet)
    assert images.asked[1:] == [("build", "lab")]
    assert resources.images["lab"].options == LAB


def test_what_no_kernel_has_stays_and_is_skipped(images: Images):
    (one,), resources = choose_kernels([cell("{SOUND: true}")], RunOptions(), images.resources, quiet)
    assert one.kernel == "6.12"
    assert unmet(one, resources) == "needs a kernel with SOUND, this is 6.12.88"


def test_a_chosen_kernel_is_kept_and_the_reason_says_which_would_do(images: Images):
    cells, resources = [cell("{VFIO_NOIOMMU: true}")], images.resources
    assert choose_kernels(cells, RunOptions(kernels=("6.12",)), resources, quiet) == (cells, resources)
    said = "needs a kernel with VFIO_NOIOMMU, this is 6.12.88; --kernel lab is such a kernel"
    assert unmet(cells[0], resources) == said
    assert images.asked == []


def test_the_lab_kernels_options_are_known_before_it_is_built(images: Images):
    lab = known_options(load_recipe("lab"))
    assert lab is not None
    assert {"VFIO_NOIOMMU", "IOMMUFD", "KPROBE_EVENTS", "NUMA_EMU"} <= lab
    assert "CPU_MITIGATIONS" not in lab
    assert known_options(load_recipe("trixie")) is None
    assert kernel_with(scenario("{VFIO_NOIOMMU: true, SOUND: false}").needs) == "lab"


def test_an_image_that_is_here_knows_better(images: Images):
    recipe = load_recipe("trixie")

    def fill(folder: Path) -> dict[str, object]:
        (folder / "vmlinux").write_bytes(b"")
        facts = {
            "recipe": image_build._recipe_key(recipe),
            "name": "trixie",
            "packages": {},
            "kernel_release": "6.12.88",
        }
        return {**facts, "options": ["VFIO", "SOUND"]}

    cache.store("image", "k", fill)
    assert known_options(recipe) == {"VFIO", "SOUND"}
    assert kernel_with(scenario("{SOUND: true}").needs) == "6.12"


def test_kernels_beside_the_default_are_named_once(images: Images):
    many = [scenario(needs) for needs in ("{}", "{VFIO_NOIOMMU: true}", "{IOMMUFD: true}", "{SOUND: true}")]
    stock = images.here["trixie"]
    assert kernels_beside(many, stock) == ["lab"]
    assert kernels_beside(many, replace(stock, options=LAB | {"IOMMUFD", "SOUND"})) == []
    newer = [parse_scenario(RELEASE % need, "x.yaml") for need in (">=6.16", ">=7.0", "<9")]
    assert kernels_beside([*newer, *many], stock) == ["7.2", "lab"]


RELEASE = 'title: t\nsource: s\nmachine: {}\nneeds: {kernel: "%s"}\nsteps: [{at_fork: {}}]\n'


def released(need: str, options: str = "{}") -> Cell:
    text = (RELEASE % need).replace("needs: {", f"needs: {{kernel_options: {options}, ")
    return Cell(parse_scenario(text, "x.yaml"), "11.1", "6.12", "a/b")


@pytest.mark.parametrize(
    ("need", "kernel"), [(">=6.16", "7.2"), ("<6.16", "6.12"), (">=6.1", "6.12"), (">=7.2, <8", "7.2"), (">=9", None)]
)
def test_a_release_is_known_before_the_image_is_built_and_debians_come_first(
    images: Images, need: str, kernel: str | None
):
    assert kernel_with(released(need).scenario.needs) == kernel


def test_with_options_too_a_kernel_that_has_them_for_sure_comes_first(images: Images):
    assert kernel_with(released(">=6.16", "{VFIO_NOIOMMU: true}").scenario.needs) == "lab"
    # Nobody knows what the image will have: it is taken for its release, and skipped when it lacks them after all.
    assert kernel_with(released(">=6.16", "{SOUND: true}").scenario.needs) == "7.2"
    assert kernel_with(released(">=9", "{SOUND: true}").scenario.needs) is None


def test_a_scenario_moves_to_the_kernel_of_its_release(images: Images):
    newer = replace(images.here["trixie"], name="trixie-7.2", kernel_release="7.2.12+deb13-amd64")
    images.here["trixie-7.2"] = newer
    cells, resources = choose_kernels([cell("{}"), released(">=6.16")], RunOptions(), images.resources, quiet)
    assert [one.kernel for one in cells] == ["6.12", "7.2"]
    assert resources.images["7.2"] is newer
    assert [unmet(one, resources) for one in cells] == [None, None]


def test_a_release_that_is_not_here_is_asked_for(images: Images):
    said = r"^a/b needs a kernel of release >=6.16: the image 'trixie-7.2' is not"
    with pytest.raises(InfrastructureError, match=said) as caught:
        choose_kernels([released(">=6.16")], RunOptions(), images.resources, quiet)
    assert caught.value.hint == "harness image build trixie-7.2; with --kernel 6.12 it is skipped"


def test_a_chosen_kernel_of_another_release_is_kept_and_the_reason_says_which_would_do(images: Images):
    cells, resources = [released(">=6.16")], images.resources
    assert choose_kernels(cells, RunOptions(kernels=("6.12",)), resources, quiet) == (cells, resources)
    assert unmet(cells[0], resources) == "needs kernel >=6.16, this is 6.12.88; --kernel 7.2 is such a kernel"


def test_a_release_that_no_kernel_has_stays_and_is_skipped(images: Images):
    (one,), resources = choose_kernels([released(">=9")], RunOptions(), images.resources, quiet)
    assert (one.kernel, unmet(one, resources)) == ("6.12", "needs kernel >=9, this is 6.12.88")


@pytest.mark.parametrize(("kernels", "built"), [((), ["trixie", "lab", "trixie-7.2"]), (("6.12",), ["trixie"])])
def test_fetch_gets_what_the_projects_scenarios_need_unless_a_kernel_is_named(
    images: Images, monkeypatch: pytest.MonkeyPatch, kernels: tuple[str, ...], built: list[str]
):
    monkeypatch.setattr(run_resources, "fetch_build", lambda name, **how: images.resources.emulations["11.1"].build)
    said: list[str] = []
    fetch_all(RunOptions(kernels=kernels), (), said.append)
    assert {name for _, name in images.asked} == set(built)
    assert ("some scenarios need kernel lab" in said) is ("lab" in built)


@pytest.mark.parametrize("properties", [{}, {"amd-iommu": frozenset({"intremap"})}])
def test_a_build_whose_amd_iommu_remaps_no_dma_skips_it(images: Images, properties: dict[str, frozenset[str]]):
    text = "title: t\nsource: s\nmachine: {iommu: amd}\nsteps: [{at_fork: {}}]\n"
    one = replace(cell("{}"), scenario=parse_scenario(text, "x.yaml"))
    resources = images.resources
    emulation = resources.emulations["11.1"]

    def with_amd(names: dict[str, frozenset[str]]) -> Resources:
        able = replace(emulation.capabilities, properties=names)
        return replace(resources, emulations={"11.1": replace(emulation, capabilities=able)})

    said = f"needs QEMU >=11 for iommu: amd, this is {emulation.build.version}, whose amd-iommu remaps no DMA"
    assert unmet(one, with_amd(properties)) == said
    assert unmet(one, with_amd({"amd-iommu": frozenset({"dma-remap"})})) is None


def test_for_many_scenarios_it_is_looked_for_once_for_each_needs(monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, bool]] = []

    def found(needs: Needs) -> str | None:
        asked.append(needs.kernel_options)
        return "lab" if needs.kernel_options.get("VFIO_NOIOMMU") else None

    monkeypatch.setattr(run_kernels, "kernel_with", found)
    finder = KernelFinder()
    needs = [scenario(f"{{VFIO_NOIOMMU: {wanted}}}").needs for wanted in ("true", "false", "true", "false")]
    assert [finder.kernel_with(one) for one in needs] == ["lab", None, "lab", None]
    assert asked == [{"VFIO_NOIOMMU": True}, {"VFIO_NOIOMMU": False}]
