"""What is sent into the guest."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from harness.errors import ConfigurationError
from harness.guest.payload import build_payload
from harness.paths import usdm_dir


def test_the_payload_is_the_working_trees_code_and_always_the_same():
    first, second = build_payload(), build_payload()
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first.data)) as archive:
        names = archive.getnames()
        driver = archive.extractfile("usdm/driver.py")
        assert driver is not None
        assert driver.read() == (usdm_dir() / "driver.py").read_bytes()
    assert "harness/agent/worker.py" in names
    assert "harness/__init__.py" in names
    assert not [
        name for name in names if not name.startswith(("usdm/", "harness/agent/")) and name != "harness/__init__.py"
    ]


def test_another_usdm_can_be_put_under_test(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no Python package"):
        build_payload(tmp_path)
    (tmp_path / "__init__.py").write_text("other = 1\n")
    assert build_payload(tmp_path).key != build_payload().key
