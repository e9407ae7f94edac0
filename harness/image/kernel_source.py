"""The kernel's source out of Debian's package: only what the lab kernel may be compiled from."""

from __future__ import annotations

import lzma
import re
import tarfile
from pathlib import Path, PurePosixPath

from harness.errors import InfrastructureError

# Folders of which only the build's own files are taken: for other machines, or for what no guest of ours has. They are
# nine tenths of the files. Whoever switches on an option that is compiled from them is told so.
_KEPT = {
    "arch": "x86",
    "drivers": "acpi|base|block|char|clocksource|cpuidle|dma-buf|firmware|iommu|irqchip|misc|net|nvme|of|pci|pnp|ptp"
    "|rtc|tty|vfio|vhost|virt|virtio|xen",
    "drivers/net": "",
    "include/dt-bindings": "leds",
    "net": "core|ethernet|ethtool|ipv4|ipv6|netlink|packet|sched|unix|vmw_vsock",
    "tools": "arch|build|include|lib|objtool|scripts",
}
_LEFT_OUT = re.compile(
    r"(?:Documentation|rust|samples|sound"
    r"|fs/(?:afs|bcachefs|btrfs|ceph|f2fs|gfs2|jfs2|nfs|nfsd|ntfs3|ocfs2|smb|ubifs|xfs)"
    + "".join(rf"|{folder}/(?!(?:{kept})/)[^/]+" for folder, kept in _KEPT.items())
    + ")/"
)
# The build reads these of every folder, also of those in which it then compiles nothing, but of tools.
_BUILD_FILES = re.compile(r"(?!tools/)(?:[^/]+/)*(?:Kconfig|Makefile|Kbuild)[^/]*")


def extract(tarball: Path, folder: Path) -> None:
    """Unpack the source.

    Args:
        tarball: ``usr/src/linux-source-VERSION.tar.xz`` of the package.
        folder: where to; the archive's own top folder is left out.

    Raises:
        InfrastructureError: the archive is damaged or is none of a kernel.
    """
    made: set[Path] = set()
    try:
        with lzma.open(tarball) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = _inside(member.name)
                if name is None or not (member.isfile() or member.issym()) or is_left_out(name):
                    continue
                path = folder / name
                if path.parent not in made:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    made.add(path.parent)
                if member.issym():
                    path.symlink_to(member.linkname)
                    continue
                content = archive.extractfile(member)
                # Never None for a file; the check is for the type.
                path.write_bytes(content.read() if content else b"")
                path.chmod(0o755 if member.mode & 0o111 else 0o644)
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise InfrastructureError(f"the kernel's source {tarball.name} cannot be unpacked: {error}") from error
    if not (folder / "Makefile").is_file():
        raise InfrastructureError(f"{tarball.name} has no Makefile, so it is no kernel's source")


def is_left_out(name: str) -> bool:
    """Whether a file of the source is not unpacked.

    Args:
        name: its path in the source, e.g. ``drivers/gpu/drm/drm_drv.c``.
    """
    return bool(_LEFT_OUT.match(name)) and not _BUILD_FILES.fullmatch(name)


def _inside(name: str) -> str | None:
    """A member's path below the archive's top folder, or None for that folder itself."""
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute():
        raise InfrastructureError(f"the kernel's source has a file outside of its folder: {name}")
    return "/".join(parts[1:]) or None
