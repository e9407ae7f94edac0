"""The test module ``dma_iova_test``, by which the kernel's own DMA mapping is called: compiled for a stock kernel.

It is built once per source, kernel package and compiler and kept in the cache: against the headers of exactly the
image's kernel, with the compiler of the lab kernel.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import apt, cache
from harness.image.build import Image, find_image
from harness.image.cache import Entry, Say
from harness.image.module_make import HOST_LIBRARIES, compile_module, header_packages
from harness.image.recipe import Recipe, load_recipe, recipe_names
from harness.image.toolchain import get_toolchain
from harness.paths import images_dir, state_dir

KIND = "module"
NAME = "dma_iova_test"
# The recipe whose compiler is used.
_COMPILER_OF = "lab"
# dma_iova_* came with it.
_SINCE = (6, 16)
# The package whose version all of a kernel's packages share.
_VERSION_OF = "linux-image-{}"


@dataclass(frozen=True, slots=True)
class Module:
    """The module for one kernel, in the cache.

    Args:
        key: the hash over the source, the kernel's packages, the compiler's and the code that builds.
        file: the ``.ko``.
        release: the kernel that takes it, as ``uname -r`` prints it.
    """

    key: str
    file: Path
    release: str


def source_dir() -> Path:
    """The folder of the module's source."""
    return images_dir() / "module" / NAME


def unsupported(recipe: Recipe) -> str | None:
    """Why there is no module for a recipe's kernel, or None."""
    if recipe.source is not None:
        return f"kernel {recipe.kernel} loads no modules"
    if _release(recipe) < _SINCE:
        return f"kernel {recipe.kernel} has no dma_iova_*: they came with {'.'.join(map(str, _SINCE))}"
    return None


def module_kernels() -> list[str]:
    """The kernels that there is a module for, as ``--kernel`` names them, the lowest release first."""
    recipes = [recipe for recipe in map(load_recipe, recipe_names()) if unsupported(recipe) is None]
    return [recipe.kernel for recipe in sorted(recipes, key=_release)]


def _release(recipe: Recipe) -> tuple[int, ...]:
    """The release of a recipe of one of Debian's kernels, to be compared."""
    return tuple(map(int, recipe.kernel.split(".")))


def find_module(image: Image) -> Module:
    """The module for an image's kernel, verified; nothing is built.

    Raises:
        ConfigurationError: there is none for this kernel.
        InfrastructureError: it is not in the cache, or was damaged.
    """
    recipe = _recipe(image)
    found = cache.find_made_from(KIND, _recipe_key(image))
    if found is not None:
        return _module(found)
    raise InfrastructureError(
        f"the test module for kernel {image.kernel_release} is not in the cache, or its source has changed",
        hint=f"build it with 'harness fetch --module {recipe.kernel}', or run with --fetch",
    )


def module_of_key(key: str) -> Module:
    """The module of a key.

    Raises:
        InfrastructureError: it is not in the cache, or was damaged.
    """
    return _module(cache.by_key(KIND, key))


def fetch_module(image: Image, *, mirror: str | None = None, offline: bool = False, say: Say = print) -> Module:
    """The module for an image's kernel, built when the cache lacks it.

    Args:
        image: the image.
        mirror: a Debian mirror, or None for the host's.
        offline: use the cache only.
        say: told what goes on.

    Raises:
        ConfigurationError, InfrastructureError: as :func:`find_module`, and what apt or the compiler may meet.
    """
    found = cache.there(lambda: find_module(image), only=offline, say=say, doing="building")
    if found is not None:
        return found
    recipe, release, version = _recipe(image), image.kernel_release, _version(image)
    source = load_recipe(_COMPILER_OF).source
    if source is None:
        raise ConfigurationError(
            f"the recipe '{_COMPILER_OF}' has no compiler", hint="it needs a 'source' with 'tools'"
        )
    with apt.private_apt((source.tools_suite,), mirror, say) as packages:
        toolchain = get_toolchain(packages, packages.exactly(list(source.tools)), say)
    with apt.private_apt(recipe.suites, mirror, say) as packages:
        headers = _headers(packages, image, version)
        material = [_recipe_key(image), *(f"{one.name} {one.version} {one.digest}" for one in headers), toolchain.key]
        key = hashlib.sha256("\n".join(material).encode()).hexdigest()

        def fill(folder: Path) -> dict[str, object]:
            work = folder / "work"
            (work / "source").mkdir(parents=True)
            toolchain.check(work)
            debs = packages.download(headers)
            say(f"building the test module for kernel {release}")
            for deb in debs.values():
                apt.unpack(deb, work / "headers")
            for path in _sources():
                shutil.copyfile(path, work / "source" / path.name)
            log = state_dir() / "logs" / f"module-{key[:12]}.log"
            built = compile_module(work / "source", work / "headers", release, toolchain, log)
            shutil.move(built, folder / f"{NAME}.ko")
            cache.remove_tree(work)
            listing = {one.name: one.version for one in headers}
            facts = {"name": release, "recipe": _recipe_key(image), "release": release}
            return {**facts, "packages": listing, "compiler": toolchain.key}

        return _module(cache.store(KIND, key, fill, say))


def prune_modules(keep: int, say: Say = print) -> list[str]:
    """Remove the modules that belong to no image any more, and all but the newest ``keep`` of each kernel.

    Gives the keys that were removed.
    """
    current = set()
    for name in recipe_names():
        if unsupported(load_recipe(name)) is not None:
            continue
        try:
            current.add(_recipe_key(find_image(name)))
        except InfrastructureError:
            continue

    def kernel(entry: Entry) -> str | None:
        return str(entry.facts["name"]) if entry.facts.get("recipe") in current else None

    return cache.prune(KIND, kernel, keep, say)


def _headers(packages: apt.Apt, image: Image, version: str) -> list[apt.Package]:
    """The kernel's headers of exactly this version, and the libraries of the programs that come with them."""
    names = [f"{name}={version}" for name in header_packages(image.kernel_release)]
    try:
        return packages.exactly([*names, *HOST_LIBRARIES])
    except InfrastructureError as error:
        raise InfrastructureError(
            f"there are no headers of kernel {image.kernel_release} {version} for its test module: {error.message}",
            hint=f"'harness image build {image.name} --refresh' makes an image with the kernel that it has now",
            context=error.context,
        ) from error


def _recipe(image: Image) -> Recipe:
    recipe = load_recipe(image.name)
    reason = unsupported(recipe)
    if reason is not None:
        raise ConfigurationError(
            f"there is no test module for this kernel: {reason}", hint=f"choose --kernel {module_kernels()[-1]}"
        )
    return recipe


def _version(image: Image) -> str:
    """The version of the packages of an image's kernel."""
    name = _VERSION_OF.format(image.kernel_release)
    try:
        return image.packages[name]
    except KeyError:
        raise InfrastructureError(
            f"the image '{image.name}' does not say from which version of {name} it was made",
            hint=f"build it anew: harness image build {image.name} --refresh",
        ) from None


def _sources() -> list[Path]:
    return sorted(path for path in source_dir().iterdir() if path.is_file())


def _recipe_key(image: Image) -> str:
    """Hash over the source, the kernel that it is for, and the code that builds."""
    digest = hashlib.sha256(f"{image.kernel_release} {_version(image)}".encode())
    code = [Path(__file__).with_name(name) for name in ("module_make.py", "toolchain.py")]
    for path in (*_sources(), *code):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _module(entry: Entry) -> Module:
    return Module(entry.key, entry.folder / f"{NAME}.ko", str(entry.facts["release"]))
