"""What an image is made from: the guest's programs are valid, and its key follows them and the recipe."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from harness.image import build
from harness.image.recipe import load_recipe
from harness.paths import images_dir


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
    recipe = load_recipe("trixie")
    keys = [build._recipe_key(recipe)]
    assert build._recipe_key(load_recipe("trixie")) == keys[0]
    init.write_text("#!/bin/sh\n# changed\n")
    keys.append(build._recipe_key(recipe))
    keys.append(build._recipe_key(recipe.model_copy(update={"modules": ("vfio",)})))
    assert len(set(keys)) == 3
