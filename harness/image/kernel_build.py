"""Kernels that the project compiles itself, once per source, fragments and compiler, kept in the cache.

A kernel is an entry of its own: another init or other packages in the guest do not compile it again.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfrastructureError
from harness.image import apt, cache
from harness.image.cache import Entry, Say
from harness.image.kernel_config import merged, read_fragments
from harness.image.kernel_make import compile_kernel
from harness.image.kernel_source import extract
from harness.image.recipe import Recipe, Source
from harness.image.toolchain import get_toolchain
from harness.paths import images_dir, state_dir

KIND = "kernel"
_FILE = "vmlinux"
_CONFIG = "config"
_TARBALL = "usr/src/linux-source-*.tar.*"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache.

    Args:
        key: the hash over the source's package, the fragments, the compiler's packages and the code that builds.
        file: the kernel as an ELF file with a PVH entry.
        config: its configuration, as text.
        release: as ``uname -r`` prints it.
    """

    key: str
    file: Path
    config: str
    release: str


def fragments_dir() -> Path:
    """The folder with the fragments of the kernel's configuration."""
    return images_dir() / "kernel"


def promised_options(source: Source) -> frozenset[str]:
    """The options that a kernel has for certain, whether it was compiled or not; more are on that these select.

    Raises:
        ConfigurationError: a fragment is missing or wrong.
    """
    return frozenset(one.name for one in read_fragments(source.fragments, fragments_dir()) if one.value in ("y", "m"))


def recipe_key(source: Source) -> str:
    """Hash over the recipe's part, the fragments and the code that compiles.

    Raises:
        ConfigurationError: a fragment is missing or wrong.
    """
    digest = hashlib.sha256(source.model_dump_json().encode())
    # Comments may change without compiling anything anew.
    digest.update(merged(read_fragments(source.fragments, fragments_dir())).encode())
    for name in ("kernel_make.py", "kernel_source.py", "toolchain.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def find_kernel(source: Source) -> Kernel | None:
    """The newest kernel of a recipe as it is now, every byte verified, or None.

    Raises:
        ConfigurationError: a fragment is missing or wrong.
        InfrastructureError: it was damaged.
    """
    found = cache.find_made_from(KIND, recipe_key(source))
    return None if found is None else _kernel(found)


def get_kernel(recipe: Recipe, source: Source, *, mirror: str | None, say: Say, refresh: bool) -> Kernel:
    """A kernel, compiled when the cache lacks it.

    Args:
        recipe: the image's recipe.
        source: its part about the kernel.
        mirror: a Debian mirror, or None for the host's.
        say: told what goes on.
        refresh: look for a newer source and a newer compiler although there is a kernel of this recipe.

    Raises:
        ConfigurationError: a fragment is missing or wrong, or the kernel cannot be configured as it asks.
        InfrastructureError: a download, the disk, or the compiler failed; the hint says what to do.
    """
    found = None if refresh else cache.there(lambda: find_kernel(source), only=False, say=say, doing="compiling")
    if found is not None:
        say(f"kernel {found.release} is in the cache")
        return found
    wanted, options = recipe_key(source), read_fragments(source.fragments, fragments_dir())
    with apt.private_apt(recipe.suites, mirror, say) as packages:
        package = _newest(packages, recipe, source)
    # The archives' locks are not held while the kernel is compiled: others may want to fetch something.
    with apt.private_apt((source.tools_suite,), mirror, say) as packages:
        resolved = packages.exactly(list(source.tools))
        toolchain = get_toolchain(packages, resolved, say)
    material = [wanted, f"{package.name} {package.version} {package.digest}", toolchain.key]
    key = hashlib.sha256("\n".join(material).encode()).hexdigest()

    def fill(folder: Path) -> dict[str, object]:
        work, tree = folder / "work", folder / "source"
        work.mkdir()
        toolchain.check(work)
        with apt.private_apt(recipe.suites, mirror, say) as packages:
            deb = packages.download([package])[package.name]
            apt.unpack(deb, work)
        say("unpacking the kernel's source")
        extract(_tarball(work, package), tree)
        cache.remove_tree(work)
        work.mkdir()
        log = state_dir() / "logs" / f"kernel-{key[:12]}.log"
        began = time.monotonic()
        try:
            compiled = compile_kernel(tree, work, options, toolchain, log, say)
        except KeyboardInterrupt:
            say("removing the unfinished build")
            raise
        seconds = round(time.monotonic() - began)
        say(f"kernel {compiled.release}: {compiled.files} files compiled in {seconds} s")
        shutil.move(compiled.vmlinux, folder / _FILE)
        (folder / _CONFIG).write_text(compiled.config, encoding="utf-8")
        for path in (work, tree):
            cache.remove_tree(path)
        log.unlink()
        listing = {one.name: one.version for one in (package, *resolved)}
        facts: dict[str, object] = {"name": recipe.name, "recipe": wanted, "packages": listing}
        return {**facts, "release": compiled.release, "files": compiled.files, "seconds": seconds}

    return _kernel(cache.store(KIND, key, fill, say))


def _newest(packages: apt.Apt, recipe: Recipe, source: Source) -> apt.Package:
    names = packages.names(source.package)
    if not names:
        raise InfrastructureError(
            f"no package of {', '.join(recipe.suites)} matches {source.package}",
            hint="the mirror may no longer keep this source; change 'source.package' of the recipe",
        )
    return packages.exactly([names[-1]])[0]


def _tarball(unpacked: Path, package: apt.Package) -> Path:
    found = sorted(unpacked.glob(_TARBALL))
    if len(found) != 1:
        raise InfrastructureError(f"{package.name} {package.version} has {len(found)} files {_TARBALL} instead of one")
    return found[0]


def _kernel(entry: Entry) -> Kernel:
    return Kernel(
        key=entry.key,
        file=entry.folder / _FILE,
        config=(entry.folder / _CONFIG).read_text(encoding="utf-8"),
        release=str(entry.facts["release"]),
    )
