"""What a QEMU build can do, asked of the build itself and remembered: property names differ by version."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfrastructureError
from harness.image.cache import disk_error
from harness.machine.builds import QemuBuild
from harness.machine.launcher import guarded
from harness.paths import cache_dir

_SECONDS = 30.0
_DEVICES = (
    *("intel-iommu", "virtio-iommu-pci", "amd-iommu", "edu", "nvme", "pcie-root-port", "pvpanic-pci"),
    *("virtio-serial-pci", "virtserialport", "vfio-user-pci"),
)
_MIGRATION = "query-migrate-capabilities"
_FORMAT = 6


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found.

    Args:
        machine_type: the newest versioned q35 machine, e.g. ``pc-q35-11.1``.
        sandbox: the build has ``-sandbox``.
        properties: device name to the names of its properties; a device that is not there is missing.
        migration: names of the migration capabilities, e.g. ``x-ignore-shared``.
    """

    machine_type: str
    sandbox: bool
    properties: dict[str, frozenset[str]]
    migration: frozenset[str]

    @property
    def version(self) -> tuple[int, ...]:
        """QEMU's version as its machine types tell it, e.g. (11, 1)."""
        return tuple(map(int, self.machine_type.rpartition("-")[2].split(".")))


def capabilities(build: QemuBuild) -> Capabilities:
    """Ask a build, or recall its earlier answer.

    Raises:
        InfrastructureError: the build does not start or answers nonsense.
    """
    path = cache_dir() / "capabilities" / f"{build.key}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") == _FORMAT:
            return _from_json(data)
    except (OSError, ValueError, KeyError):
        pass
    data = _ask(build)
    _remember(path, data)
    return _from_json(data)


def _from_json(data: dict[str, object]) -> Capabilities:
    properties, migration = data["properties"], data["migration"]
    if not isinstance(properties, dict) or not isinstance(migration, list):
        raise ValueError("properties, migration")
    return Capabilities(
        machine_type=str(data["machine_type"]),
        sandbox=bool(data["sandbox"]),
        properties={name: frozenset(values) for name, values in properties.items()},
        migration=frozenset(map(str, migration)),
    )


def _ask(build: QemuBuild) -> dict[str, object]:
    commands = ["qmp_capabilities", "query-machines", _MIGRATION, *_DEVICES, "quit"]
    lines = []
    for command in commands:
        if command in _DEVICES:
            request = {"execute": "device-list-properties", "arguments": {"typename": command}, "id": command}
        else:
            request = {"execute": command, "id": command}
        lines.append(json.dumps(request))
    argv = [*build.argv_prefix, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none"]
    env = {**os.environ, **build.env}
    try:
        done = subprocess.run(
            guarded([*argv, "-S", "-qmp", "stdio"]),
            env=env,
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        help_text = subprocess.run(
            guarded([*build.argv_prefix, "-help"]),
            env=env,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise InfrastructureError(f"QEMU {build.name} did not answer within {_SECONDS:g} s") from error
    answers = _answers(done.stdout)
    machines, migration = answers.get("query-machines"), answers.get(_MIGRATION)
    if not isinstance(machines, list) or not isinstance(migration, list):
        raise InfrastructureError(
            f"QEMU {build.name} did not answer on QMP: {done.stderr.strip() or done.stdout.strip()}"
        )
    return {
        "format": _FORMAT,
        "machine_type": _newest_q35([str(machine["name"]) for machine in machines], build),
        "sandbox": bool(re.search(r"^-sandbox ", help_text, re.MULTILINE)),
        "properties": {
            name: sorted(str(entry["name"]) for entry in found)
            for name in _DEVICES
            if isinstance(found := answers.get(name), list)
        },
        "migration": sorted(str(entry["capability"]) for entry in migration),
    }


def _answers(text: str) -> dict[str, object]:
    answers: dict[str, object] = {}
    for line in text.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict) and "id" in message and "return" in message:
            answers[str(message["id"])] = message["return"]
    return answers


def _newest_q35(names: list[str], build: QemuBuild) -> str:
    versions = [
        tuple(map(int, m[1].split("."))) for name in names if (m := re.fullmatch(r"pc-q35-(\d+(?:\.\d+)+)", name))
    ]
    if not versions:
        raise InfrastructureError(f"QEMU {build.name} has no versioned q35 machine")
    return "pc-q35-" + ".".join(map(str, max(versions)))


def _remember(path: Path, data: dict[str, object]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error) from error
