"""apt: the host's mirror, and what its messages mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import apt
from harness.image.mirror import host_mirror

MIRROR = "http://mirror.example/debian"


def configured(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / "sources.list.d").mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", f"deb {MIRROR} bookworm main contrib\n"),
        (
            "sources.list",
            f"# deb http://other.example/debian sid main\ndeb [arch=amd64 signed-by=/k] {MIRROR}/ trixie main\n",
        ),
        (
            "sources.list",
            f"deb http://sec.example/debian-security bookworm-security main\ndeb {MIRROR} bookworm-updates main",
        ),
        ("sources.list", f"deb http://vendor.example/apt tool-bookworm main\ndeb {MIRROR} stable main"),
        # Vendors that call their suites as Debian does.
        ("sources.list", f"deb http://vendor.example/apt stable main\ndeb {MIRROR} bookworm main"),
        (
            "sources.list",
            f"deb [signed-by=/k/vendor.gpg] http://v.example/debian bookworm main\ndeb {MIRROR} bookworm main",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://v.example/debian\nSuites: trixie\nComponents: main\nSigned-By: /k/v.gpg\n\n"
            f"Types: deb\nURIs: {MIRROR}\nSuites: trixie\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        ),
        (
            "sources.list.d/debian.sources",
            f"Types: deb\nURIs: {MIRROR}\nSuites: bookworm bookworm-updates\nComponents: main\n",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://sec.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n"
            f"Types: deb deb-src\n# a comment\nURIs:\n {MIRROR}\nSuites: trixie\nComponents: main non-free\n",
        ),
        (
            "sources.list.d/debian.sources",
            "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\n"
            f"Types: deb\nURIs: {MIRROR}\nSuites: bookworm\nComponents: main\n",
        ),
    ],
)
def test_the_mirror_comes_from_the_hosts_configuration(tmp_path: Path, name: str, text: str):
    assert host_mirror(configured(tmp_path, name, text)) == MIRROR


@pytest.mark.parametrize(
    "text", ["", "deb http://archive.example/ubuntu jammy main\n", "deb-src http://x.example/debian sid main"]
)
def test_a_host_without_a_debian_mirror_is_told_what_to_do(tmp_path: Path, text: str):
    with pytest.raises(ConfigurationError, match="no Debian mirror") as caught:
        host_mirror(configured(tmp_path, "sources.list", text))
    assert "--mirror" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("E: Failed to fetch x.deb  Hash Sum mismatch", "damaged"),
        ("W: GPG error: NO_PUBKEY 0E98404D386FA1D9\nE: The repository is not signed.", "signature"),
        ("E: Unable to locate package nonsense", "no such package"),
        ("E: Failed to fetch http://mirror.example/x  Could not connect to mirror.example:80", "could not be reached"),
        (
            "E: The repository 'http://mirror.example/x trixie Release' does not have a Release file.",
            "no Debian archive",
        ),
        ("E: Failed to fetch http://mirror.example/x.deb  404  Not Found", "lacks a file"),
        ("E: Release file for http://mirror.example/x is not valid yet (invalid for another 3h).", "clock"),
        ("E: You don't have enough free space in /cache/", "disk is full"),
        ("E: Write error - write (28: No space left on device)", "disk is full"),
        ("tar: ./usr/src/linux.tar.xz: Wrote only 1024 of 10240 bytes", "disk is full"),
        ("E: something new", "something new"),
    ],
)
def test_apts_messages_become_errors_with_a_meaning(said: str, meaning: str):
    assert meaning in apt._explain("apt-get update", said).message


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="dpkg-deb") as caught:
        apt.run_tool(["dpkg-deb", "--version"])
    assert "dpkg" in str(caught.value.hint)


def test_a_mirror_that_is_no_url_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match="no mirror URL"), apt.private_apt(("trixie",), "nonsense", print):
        pytest.fail("not reached")


def test_a_mirror_that_does_not_answer_is_an_error_and_leaves_no_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "")
    empty = tmp_path / "empty"
    empty.mkdir()
    with (
        pytest.raises(InfrastructureError) as caught,
        apt.private_apt(("trixie",), f"file://{empty}", lambda text: None),
    ):
        pytest.fail("not reached")
    assert caught.value.hint


def test_an_archive_without_a_good_signature_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A real, unsigned archive: apt itself must refuse it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    suite = tmp_path / "archive/dists/trixie"
    (suite / "main/binary-amd64").mkdir(parents=True)
    (suite / "main/binary-amd64/Packages").write_text("")
    (suite / "Release").write_text("Suite: trixie\nCodename: trixie\nDate: Sat, 01 Jan 2028 00:00:00 UTC\nSHA256:\n")
    (suite / "InRelease").write_text("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nSuite: trixie\n")
    with (
        pytest.raises(InfrastructureError, match="signature"),
        apt.private_apt(("trixie",), f"file://{tmp_path}/archive", lambda text: None),
    ):
        pytest.fail("not reached")


def test_a_file_that_is_no_package_is_refused(tmp_path: Path):
    (tmp_path / "x.deb").write_bytes(b"not a package")
    with pytest.raises(InfrastructureError, match=r"x\.deb"):
        apt.unpack(tmp_path / "x.deb", tmp_path / "out")


def test_versions_in_names_are_compared_as_numbers():
    names = ["linux-image-7.2.9-amd64", "linux-image-7.2.12-amd64", "linux-image-7.2.10-amd64"]
    assert sorted(names, key=apt._natural)[-1] == "linux-image-7.2.12-amd64"


def test_the_hosts_hooks_are_not_run(tmp_path: Path):
    if not shutil.which("apt-config"):
        pytest.fail("these tests need apt")
    text = apt._configuration(tmp_path)
    assert "Invoke" not in text
    assert text.rindex('AllowInsecureRepositories "false"') > text.rfind('AllowInsecureRepositories "1"')
    assert 'Dir::Etc::parts "/dev/null"' in text
