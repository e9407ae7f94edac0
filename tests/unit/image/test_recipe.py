"""Image recipes: those that come with the project, and every way to write one wrong."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from harness.errors import ConfigurationError
from harness.image import build
from harness.image.recipe import load_recipe, recipe_for_kernel, recipe_names
from harness.paths import images_dir

GOOD = {
    "title": "A test",
    "kernel": "6.12",
    "suites": ["trixie"],
    "kernel_pattern": r"linux-image-6\.12.*",
    "kernel_depends": "linux-modules-.*",
    "packages": ["busybox-static"],
    "modules": ["vfio-pci"],
}

SOURCE = {
    "package": r"linux-source-7\.2",
    "fragments": ["base"],
    "tools_suite": "bookworm",
    "tools": ["gcc-12", "make"],
}


def written(folder: Path, **changes: object) -> Path:
    data = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (folder / "mine.yaml").write_text(yaml.safe_dump(data))
    return folder


def test_a_recipe_is_read(tmp_path: Path):
    recipe = load_recipe("mine", written(tmp_path))
    assert (recipe.name, recipe.kernel, recipe.modules) == ("mine", "6.12", ("vfio-pci",))
    assert load_recipe("mine", written(tmp_path, modules=None)).modules == ()


def test_a_recipe_with_a_compiled_kernel_is_read(tmp_path: Path):
    recipe = load_recipe(
        "mine", written(tmp_path, kernel="lab", kernel_pattern=None, kernel_depends=None, source=SOURCE)
    )
    assert recipe.source is not None
    assert (recipe.kernel, recipe.source.fragments) == ("lab", ("base",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernal": "6.12"}, "'kernal'"),
        ({"kernel": None}, "'kernel'"),
        ({"kernel": 6.12}, "'kernel'"),
        ({"kernel": "latest"}, "'kernel'"),
        ({"suites": []}, "'suites'"),
        ({"suites": "trixie"}, "'suites'"),
        ({"suites": ["tri xie"]}, r"'suites\.0'"),
        ({"kernel_pattern": None}, "'kernel_pattern' and 'kernel_depends', or by 'source'; here: kernel_depends"),
        ({"kernel_depends": None, "kernel_pattern": None}, "or by 'source'; here: nothing"),
        ({"source": SOURCE}, "or by 'source'; here: kernel_pattern, kernel_depends, source"),
        ({"source": {**SOURCE, "tools": []}}, r"'source\.tools'"),
        ({"source": {**SOURCE, "fragments": ["../base"]}}, r"'source\.fragments\.0'"),
        ({"source": {**SOURCE, "package": "linux-(source"}}, r"'source\.package'.*regular expression"),
        ({"source": {**SOURCE, "compiler": "gcc"}}, r"'source\.compiler'"),
        ({"source": "linux-source-7.2"}, "'source'"),
        ({"kernel_pattern": "linux-(image"}, "'kernel_pattern'.*regular expression"),
        ({"kernel_depends": "*"}, "'kernel_depends'.*regular expression"),
        ({"packages": []}, "'packages'"),
        ({"packages": ["busybox-static", "--no-install"]}, r"'packages\.1'"),
        ({"packages": ["a; rm -rf /"]}, r"'packages\.0'"),
        ({"modules": [1]}, r"'modules\.0'"),
    ],
)
def test_a_mistake_is_named_with_file_and_field(tmp_path: Path, changes: dict[str, object], said: str):
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_recipe("mine", written(tmp_path, **changes))
    assert "mine.yaml" in caught.value.message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "a: \x00", "1: 2\n"])
def test_what_is_no_recipe_at_all_is_refused(tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"mine\.yaml"):
        load_recipe("mine", tmp_path)


def test_an_unknown_recipe_is_refused_with_the_known_names():
    with pytest.raises(ConfigurationError, match="'trixy'") as caught:
        load_recipe("trixy")
    assert "trixie" in str(caught.value.hint)
    with pytest.raises(ConfigurationError, match=r"'5\.10'") as caught:
        recipe_for_kernel("5.10")
    assert "6.12" in str(caught.value.hint)


def test_the_projects_recipes_are_right_and_chosen_by_kernel():
    assert {"bookworm", "lab", "trixie", "trixie-7.2"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe_for_kernel(recipe.kernel) == recipe, "one recipe for a kernel"
        assert recipe.source or {"vfio_iommu_type1", "vfio-pci"} <= set(recipe.modules)


def test_the_kernel_patterns_take_the_stock_kernel_and_its_parts_only():
    old, new = load_recipe("trixie"), load_recipe("trixie-7.2")
    oldest = load_recipe("bookworm")
    assert oldest.packages == old.packages, "the same user land"
    assert re.fullmatch(str(oldest.kernel_pattern), "linux-image-6.1.0-50-amd64")
    for name in ("linux-image-6.1.0-50-rt-amd64", "linux-image-6.1.0-50-amd64-dbg", "linux-image-6.12.1+deb13-amd64"):
        assert not re.fullmatch(str(oldest.kernel_pattern), name)
    assert all((old.kernel_pattern, old.kernel_depends, new.kernel_pattern, new.kernel_depends))
    assert re.fullmatch(old.kernel_pattern, "linux-image-6.12.107+deb13-amd64")
    assert re.fullmatch(new.kernel_pattern, "linux-image-7.2.12+deb13-amd64")
    for name in ("linux-image-amd64", "linux-image-6.12.107+deb13-rt-amd64", "linux-image-6.12.107+deb13-cloud-amd64"):
        assert not re.fullmatch(old.kernel_pattern, name)
        assert not re.fullmatch(new.kernel_pattern, name.replace("6.12.107", "7.2.12"))
    for part in ("base", "binary", "modules"):
        assert re.fullmatch(new.kernel_depends, f"linux-{part}-7.2.12+deb13-amd64")
    for name in ("initramfs-tools", "linux-initramfs-tool", "kmod"):
        assert not re.fullmatch(old.kernel_depends, name)
        assert not re.fullmatch(new.kernel_depends, name)


def test_the_guests_programs_are_valid_shell():
    for path in sorted((images_dir() / "guest").iterdir()):
        assert path.read_text().startswith("#!/bin/sh\n")
        assert path.stat().st_mode & stat.S_IXUSR
        done = subprocess.run(["sh", "-n", os.fspath(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_an_images_key_follows_recipe_and_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "guest").mkdir()
    init = tmp_path / "guest" / "init"
    init.write_text("#!/bin/sh\n")
    monkeypatch.setattr(build, "images_dir", lambda: tmp_path)
    keys = [build._recipe_key(load_recipe("mine", written(tmp_path)))]
    assert build._recipe_key(load_recipe("mine", written(tmp_path))) == keys[0]
    init.write_text("#!/bin/sh\n# changed\n")
    keys.append(build._recipe_key(load_recipe("mine", written(tmp_path))))
    keys.append(build._recipe_key(load_recipe("mine", written(tmp_path, modules=["vfio"]))))
    assert len(set(keys)) == 3
