"""What is sent into the guest while it boots: the working tree's ``usdm``, and the harness's guest side."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError
from harness.paths import agent_dir, usdm_dir

GUEST_FOLDER = "/run/payload"


@dataclass(frozen=True, slots=True)
class Payload:
    """An uncompressed tar archive, the same bytes for the same sources.

    Args:
        data: the archive.
        key: sha256 of it, 64 hex digits.
    """

    data: bytes
    key: str


def usdm_package(usdm: Path | None) -> Path:
    """The folder of the package that is put under test; None is the working tree's.

    Raises:
        ConfigurationError: there is no package.
    """
    folder = usdm or usdm_dir()
    if not (folder / "__init__.py").is_file():
        raise ConfigurationError(f"{folder} is no Python package", hint="name the folder that has usdm's __init__.py")
    return folder


def build_payload(usdm: Path | None = None) -> Payload:
    """Pack the sources.

    Args:
        usdm: another folder with a ``usdm`` package to put under test instead of the working tree's.

    Raises:
        ConfigurationError: there is no ``usdm`` package.
    """
    folder = usdm_package(usdm)
    agent = agent_dir()
    files = {f"usdm/{name}": path for name, path in _sources(folder)}
    files |= {f"harness/agent/{name}": path for name, path in _sources(agent)}
    files["harness/__init__.py"] = agent.parent / "__init__.py"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            data = files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    data = out.getvalue()
    return Payload(data, hashlib.sha256(data).hexdigest())


def _sources(folder: Path) -> list[tuple[str, Path]]:
    return [(str(path.relative_to(folder)), path) for path in folder.rglob("*.py")]
