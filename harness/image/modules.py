"""Kernel modules: what must be loaded in which order, unpacked on the host."""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path

import zstandard

from harness.errors import ConfigurationError, InfrastructureError
from harness.image.elf import module_info

_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


def _plain(name: str) -> str:
    """The kernel takes ``-`` and ``_`` in module names for the same."""
    return name.replace("-", "_")


def unpacked(path: Path) -> bytes:
    """A module's ELF file, decompressed where it is compressed.

    Raises:
        InfrastructureError: the file is damaged.
    """
    data = path.read_bytes()
    try:
        if path.name.endswith(".xz"):
            return lzma.decompress(data)
        if path.name.endswith(".zst"):
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        if path.name.endswith(".gz"):
            return gzip.decompress(data)
    except (lzma.LZMAError, zstandard.ZstdError, zlib.error, EOFError, OSError) as error:
        raise InfrastructureError(f"the kernel module {path.name} cannot be unpacked: {error}") from error
    return data


def depends_on(data: bytes) -> list[str]:
    """Names (with ``_``) of the modules that must be loaded before this one.

    Args:
        data: the module, not compressed.

    Raises:
        InfrastructureError: it is no ELF file.
    """
    return [_plain(name) for name in module_info(data).get("depends", "").split(",") if name]


def load_order(folder: Path, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """The modules to load, each after what it depends on.

    No ``modules.dep`` exists in an unpacked package, so the dependencies come from the modules themselves.

    Args:
        folder: ``usr/lib/modules/RELEASE`` of an unpacked kernel package.
        names: what is wanted.

    Returns:
        (name, unpacked file) in load order; modules that are built into the kernel are left out.

    Raises:
        ConfigurationError: the kernel has no such module.
        InfrastructureError: a module's file is damaged.
    """
    found = (path for path in sorted(folder.rglob("*.ko*")) if path.name.endswith(_SUFFIXES))
    files = {_plain(path.name.split(".ko")[0]): path for path in found}
    builtin = _built_in(folder)
    order: dict[str, bytes] = {}

    def add(name: str, asked_by: str) -> None:
        key = _plain(name)
        if key in order or key in builtin:
            return
        if key not in files:
            raise ConfigurationError(
                f"kernel {folder.name} has no module '{name}' (asked for by {asked_by})",
                hint="take it out of 'modules' or 'modules_on_demand' of the recipe, or add the package that has it",
            )
        data = unpacked(files[key])
        for dependency in depends_on(data):
            add(dependency, name)
        order[key] = data

    for name in names:
        add(name, "the image's recipe")
    return list(order.items())


def _built_in(folder: Path) -> set[str]:
    path = folder / "modules.builtin"
    if not path.is_file():
        return set()
    return {_plain(Path(line).name.split(".ko")[0]) for line in path.read_text(encoding="utf-8").split()}
