"""The doctor on hosts that lack something."""

from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.errors import ConfigurationError
from harness.machine.accel import Decision
from harness.machine.builds import QemuBuild
from harness.run import doctor
from harness.run.doctor import Finding


@pytest.fixture(autouse=True)
def complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A host that has everything; a test takes away what it is about."""
    keyring = tmp_path / "keys.gpg"
    keyring.write_bytes(b"\x99Debian Archive Automatic Signing Key (13/trixie)\x99")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "KEYRING", keyring)
    monkeypatch.setattr(doctor, "host_mirror", lambda: "http://mirror.example/debian")
    monkeypatch.setattr(doctor, "available_memory", lambda: 8 << 30)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    build = QemuBuild(name="11.1", version="11.1.3", key="k", argv_prefix=("qemu",), env={}, folder=tmp_path)
    monkeypatch.setattr(doctor, "list_builds", lambda: [build])
    monkeypatch.setattr(doctor, "decide", lambda build: Decision("tcg", "KVM is not usable: it hangs"))


def found(name: str) -> Finding:
    return next(finding for finding in doctor.examine() if finding.name == name)


def test_a_complete_host_has_no_failure():
    findings = doctor.examine()
    assert [finding for finding in findings if finding.state == "fail"] == []
    assert all(bool(finding.remedy) == (finding.state != "ok") for finding in findings)
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


@pytest.mark.parametrize(
    ("program", "package"),
    [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("gpgv", "gpgv"), ("setpriv", "util-linux")],
)
def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, program: str, package: str):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name == program else f"/usr/bin/{name}")
    assert (found(program).state, found(program).remedy) == ("fail", f"apt-get install {package}")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 8
    assert f"apt-get install {package}" in done.stdout


def test_the_keyring_must_be_there_and_know_trixie():
    assert found("archive keys").state == "ok"
    doctor.KEYRING.write_bytes(b"Debian Archive Automatic Signing Key (12/bookworm)")
    assert found("archive keys").state == "fail"
    assert "older than trixie" in found("archive keys").detail
    doctor.KEYRING.unlink()
    assert "missing" in found("archive keys").detail


def test_an_old_python_and_another_machine_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    assert found("machine").state == "fail"
    version = collections.namedtuple("Version", "major minor micro")(3, 9, 2)
    monkeypatch.setattr(doctor.sys, "version_info", version)
    assert (found("Python").state, found("Python").detail) == ("fail", "3.9.2")


def test_what_a_run_can_do_without_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    def no_mirror() -> str:
        raise ConfigurationError("no Debian mirror", hint="name one with --mirror")

    monkeypatch.setattr(doctor, "host_mirror", no_mirror)
    monkeypatch.setattr(doctor, "available_memory", lambda: 300 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: collections.namedtuple("Usage", "free")(1 << 20))
    assert (found("Debian mirror").state, found("Debian mirror").remedy) == ("warn", "name one with --mirror")
    assert (found("memory").state, found("disk").state) == ("warn", "warn")
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_a_cache_that_nothing_may_be_run_from_is_told(monkeypatch: pytest.MonkeyPatch):
    assert found("cache").state == "ok"
    real = os.statvfs("/")
    flags = os.statvfs_result((*real[:8], real.f_flag | os.ST_NOEXEC, real[9]))
    monkeypatch.setattr(doctor.os, "statvfs", lambda path: flags)
    assert (found("cache").state, "noexec" in found("cache").detail) == ("fail", True)


def test_the_accelerator_is_measured_where_there_is_a_qemu(monkeypatch: pytest.MonkeyPatch):
    assert found("accelerator").detail == "tcg: KVM is not usable: it hangs"
    assert found("QEMU 7.2").remedy == "harness qemu fetch 7.2"
    monkeypatch.setattr(doctor, "list_builds", list)
    assert found("accelerator").detail.startswith("not measured")
    assert found("image trixie (--kernel 6.12)").remedy == "harness image build trixie"
