"""Options of the kernel: fragments read, merged, and compared with what came of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigurationError, InfrastructureError
from harness.image.kernel_config import Option, check, merged, read_fragments, switched_on
from harness.paths import images_dir

BASE = """\
# What it is for.
CONFIG_64BIT=y

# CONFIG_CPU_MITIGATIONS is not set
CONFIG_NR_CPUS=64
CONFIG_LOCALVERSION="-lab"
CONFIG_BASE=0x1000000
"""
CONFIG = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_64BIT=y
# CONFIG_CPU_MITIGATIONS is not set
CONFIG_NR_CPUS=64
CONFIG_LOCALVERSION="-lab"
CONFIG_BASE=0x1000000
CONFIG_VFIO=m
"""


def fragments(folder: Path, **texts: str) -> list[Option]:
    for name, text in texts.items():
        (folder / f"{name}.config").write_text(text)
    return read_fragments(texts, folder)


def test_options_are_read_with_their_place_and_written_as_the_kernel_writes_them(tmp_path: Path):
    options = fragments(tmp_path, base=BASE)
    assert [(one.name, one.value) for one in options] == [
        ("64BIT", "y"),
        ("CPU_MITIGATIONS", "n"),
        ("NR_CPUS", "64"),
        ("LOCALVERSION", '"-lab"'),
        ("BASE", "0x1000000"),
    ]
    assert options[1].where == "base.config:4"
    assert merged(options) == "".join(line + "\n" for line in BASE.splitlines() if "CONFIG_" in line)


def test_two_fragments_may_ask_for_the_same_but_not_for_different_things(tmp_path: Path):
    assert len(fragments(tmp_path, one="CONFIG_PCI=y\n", two="CONFIG_PCI=y\nCONFIG_NET=y\n")) == 2
    with pytest.raises(
        ConfigurationError, match=r"two\.config:2: '# CONFIG_PCI is not set'.*one\.config:1: 'CONFIG_PCI=y'"
    ):
        fragments(tmp_path, one="CONFIG_PCI=y\n", two="# no PCI\n# CONFIG_PCI is not set\n")


@pytest.mark.parametrize(
    "line",
    [
        *("CONFIG_PCI", "CONFIG_PCI=yes", "PCI=y", "CONFIG_PCI = y", "# CONFIG_PCI=y", "# CONFIG_PCI is unset"),
        *("#CONFIG_PCI is not set", "# PCI is not set", 'CONFIG_X="a" b', "CONFIG_X=1.5"),
    ],
)
def test_a_line_that_is_no_option_is_named(tmp_path: Path, line: str):
    with pytest.raises(ConfigurationError, match=r"base\.config:2: '") as caught:
        fragments(tmp_path, base=f"# What it is for.\n{line}\n")
    assert line in caught.value.message


def test_a_fragment_that_is_missing_or_unreadable_is_named(tmp_path: Path):
    fragments(tmp_path, base=BASE)
    with pytest.raises(ConfigurationError, match="no fragment 'bass'") as caught:
        read_fragments(["bass"], tmp_path)
    assert str(caught.value.hint).endswith("there are: base")
    (tmp_path / "bytes.config").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"bytes\.config: cannot be read"):
        read_fragments(["bytes"], tmp_path)


def test_a_configuration_that_follows_the_fragments_passes(tmp_path: Path):
    check(fragments(tmp_path, base=BASE), CONFIG)


@pytest.mark.parametrize(
    ("line", "became"),
    [
        ("CONFIG_NO_SUCH_OPTION=y", "# CONFIG_NO_SUCH_OPTION is not set"),
        ("CONFIG_VFIO=y", "CONFIG_VFIO=m"),
        ("# CONFIG_64BIT is not set", "CONFIG_64BIT=y"),
        ("CONFIG_NR_CPUS=8", "CONFIG_NR_CPUS=64"),
        ('CONFIG_LOCALVERSION=""', 'CONFIG_LOCALVERSION="-lab"'),
    ],
)
def test_an_option_that_became_something_else_is_named_with_its_place(tmp_path: Path, line: str, became: str):
    with pytest.raises(ConfigurationError) as caught:
        check(fragments(tmp_path, base="# What it is for.\nCONFIG_BASE=0x1000000\n" + line + "\n"), CONFIG)
    assert f"base.config:3: '{line}' became '{became}'" in caught.value.message
    assert "Kconfig" in str(caught.value.hint)


def test_many_wrong_options_are_counted(tmp_path: Path):
    text = "".join(f"CONFIG_NOT_{n}=y\n" for n in range(9))
    with pytest.raises(ConfigurationError, match=r"NOT_4 is not set'; and 4 more$"):
        check(fragments(tmp_path, base=text), CONFIG)


def test_options_that_are_on_are_built_in_or_modules():
    assert switched_on(CONFIG) == {"64BIT", "VFIO"}
    with pytest.raises(InfrastructureError, match="it is none"):
        switched_on("<html>\n")


def test_the_projects_fragments_are_sound_and_each_says_what_it_is_for():
    folder = images_dir() / "kernel"
    files = sorted(folder.glob("*.config"))
    assert len(read_fragments([file.stem for file in files], folder)) > 80
    for file in files:
        assert file.read_text().startswith("# "), file.name
