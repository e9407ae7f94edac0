"""What is sent into the guest."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from harness.agent import libusdm
from harness.errors import ConfigurationError
from harness.guest.payload import GUEST_FOLDER, build_payload
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


def test_the_c_library_is_beside_the_code_under_test_and_makes_another_payload(tmp_path: Path):
    library = tmp_path / "anything.so"
    library.write_bytes(b"\x7fELF of libusdm")
    plain, with_library = build_payload(), build_payload(library=library)
    assert plain.key != with_library.key
    with tarfile.open(fileobj=io.BytesIO(with_library.data)) as archive:
        names = archive.getnames()
        packed = archive.extractfile("lib/libusdm.so")
        assert packed is not None
        assert packed.read() == b"\x7fELF of libusdm"
    with tarfile.open(fileobj=io.BytesIO(plain.data)) as archive:
        assert set(names) - set(archive.getnames()) == {"lib/libusdm.so"}
    assert f"{GUEST_FOLDER}/lib/libusdm.so" == libusdm.FILE, "where the worker looks for it"
    library.write_bytes(b"another")
    assert build_payload(library=library).key not in (plain.key, with_library.key)


def test_the_c_library_goes_with_another_usdm_too(tmp_path: Path):
    library = tmp_path / "anything.so"
    library.write_bytes(b"\x7fELF")
    (tmp_path / "__init__.py").write_text("other = 1\n")
    assert len({build_payload(*which).key for which in ((), (tmp_path,), (None, library), (tmp_path, library))}) == 4
