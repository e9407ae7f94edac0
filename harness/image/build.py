"""Recipe to image: packages resolved, downloaded, unpacked and put together, once per set of package versions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import apt, cache, kernel_build, toolchain
from harness.image.cache import Entry, Say
from harness.image.kernel_build import get_kernel
from harness.image.recipe import Recipe, load_recipe
from harness.image.rootfs import build_files
from harness.paths import images_dir

KIND = "image"
_KERNEL_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Image:
    """A kernel and a root file system that a machine boots.

    Args:
        name: the recipe's name.
        key: the hash over recipe, init, builder and every package's hash.
        folder: the cache entry.
        kernel: the kernel as an ELF file with a PVH entry.
        initrd: the initramfs, uncompressed.
        kernel_release: as ``uname -r`` prints it.
        packages: package name to version.
        created: ISO 8601 time in UTC.
        size: bytes on disk.
        options: the kernel's options that are built in or modules, without ``CONFIG_``.
    """

    name: str
    key: str
    folder: Path
    kernel: Path
    initrd: Path
    kernel_release: str
    packages: dict[str, str]
    created: str
    size: int
    options: frozenset[str] = frozenset()


def find_image(name: str) -> Image:
    """The newest image of a recipe as it is now, every byte verified; nothing is built.

    Raises:
        ConfigurationError: there is no such recipe, or it is wrong.
        InfrastructureError: there is no image of it; or it was damaged.
    """
    recipe = load_recipe(name)
    found = cache.find_made_from(KIND, _recipe_key(recipe))
    if found is not None:
        return _image(found)
    raise InfrastructureError(
        f"the image '{name}' is not in the cache, or its recipe has changed since it was built",
        hint=f"build it with 'harness image build {name}', or run with --fetch"
        + ("; its kernel is compiled, which takes some minutes" if recipe.source else ""),
    )


def image_of_key(key: str) -> Image:
    """The image of a key, whatever its recipe is now.

    Raises:
        InfrastructureError: it is not in the cache, or was damaged.
    """
    return _image(cache.by_key(KIND, key))


def build_image(
    name: str, *, mirror: str | None = None, offline: bool = False, say: Say = print, refresh: bool = False
) -> Image:
    """An image, built when the cache lacks it.

    Args:
        name: the recipe's name.
        mirror: a Debian mirror, or None for the host's.
        offline: use the cache only.
        say: told what goes on.
        refresh: look for newer packages although there is an image of this recipe.

    Raises:
        ConfigurationError, InfrastructureError: as :func:`find_image`, and what apt may meet.
    """
    if refresh and offline:
        raise ConfigurationError("newer packages cannot be looked for offline")
    if not refresh:
        found = cache.there(lambda: find_image(name), only=offline, say=say, doing="building")
        if found is not None:
            return found
    recipe = load_recipe(name)
    kernel = get_kernel(recipe, recipe.source, mirror=mirror, say=say, refresh=refresh) if recipe.source else None
    with apt.private_apt(recipe.suites, mirror, say) as packages:
        resolved = packages.exactly([*recipe.packages, *_kernel_packages(packages, recipe)])
        recipe_key = _recipe_key(recipe)
        material = [recipe_key, *(f"{package.name} {package.version} {package.digest}" for package in resolved)]
        material += [kernel.key] if kernel else []
        key = hashlib.sha256("\n".join(material).encode()).hexdigest()

        def fill(folder: Path) -> dict[str, object]:
            debs = packages.download(resolved)
            root = folder / "unpacked"
            say("unpacking")
            for deb in debs.values():
                apt.unpack(deb, root)
            modules_below_usr(root)
            say("putting the root file system together")
            facts = build_files(root, recipe, images_dir(), folder, kernel)
            cache.remove_tree(root)
            listing = {package.name: package.version for package in resolved}
            return {"name": name, "recipe": recipe_key, "packages": listing, **facts}

        try:
            entry = cache.find(KIND, key)
        except cache.DamagedEntryError as error:
            say(f"{error.message}; building it again")
            entry = None
        if entry is not None:
            say(f"the image '{name}' is up to date: the archive has the packages that it was built from")
        else:
            entry = cache.store(KIND, key, fill, say)
    return _image(entry)


def modules_below_usr(root: Path) -> None:
    """Put modules where the packages of Debian 13 have them; those of Debian 12 have them in ``/lib``.

    Args:
        root: the unpacked packages.
    """
    old, new = root / "lib" / "modules", root / "usr" / "lib" / "modules"
    if old.is_dir() and not new.exists():
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)


def known_options(recipe: Recipe) -> frozenset[str] | None:
    """The options of a recipe's kernel, without ``CONFIG_``; None when nobody knows them before the image is built.

    Of a kernel that is still to be compiled they are those that it certainly has.

    Raises:
        ConfigurationError: a fragment of its configuration is missing or wrong.
    """
    key = _recipe_key(recipe)
    for entry in cache.entries(KIND):
        if entry.facts.get("recipe") == key:
            return _image(entry).options
    return kernel_build.promised_options(recipe.source) if recipe.source else None


def list_images() -> list[Image]:
    """All images in the cache, newest first; not verified."""
    return [_image(entry) for entry in cache.entries(KIND)]


def prune_images(keep: int, say: Say = print) -> list[str]:
    """Remove images that no recipe gives any more, and all but the newest ``keep`` of each recipe.

    So it does with the kernels that were compiled for them, and with the compilers.

    Gives the keys that were removed.
    """

    def recipe(entry: Entry) -> str | None:
        name = str(entry.facts["name"])
        try:
            return name if entry.facts.get("recipe") == _recipe_key(load_recipe(name)) else None
        except ConfigurationError:
            return None

    def kernel(entry: Entry) -> str | None:
        name = str(entry.facts["name"])
        try:
            source = load_recipe(name).source
            current = source is not None and entry.facts.get("recipe") == kernel_build.recipe_key(source)
        except ConfigurationError:
            return None
        return name if current else None

    removed = cache.prune(KIND, recipe, keep, say)
    removed += cache.prune(kernel_build.KIND, kernel, keep, say)
    return removed + cache.prune(toolchain.KIND, lambda entry: str(entry.facts["name"]), keep, say)


def _kernel_packages(packages: apt.Apt, recipe: Recipe) -> list[str]:
    """The kernel's packages: the highest that the pattern matches, and what of its parts it depends on."""
    if recipe.kernel_pattern is None or recipe.kernel_depends is None:
        return []
    names = packages.names(recipe.kernel_pattern)
    if not names:
        raise InfrastructureError(
            f"no package of {', '.join(recipe.suites)} matches {recipe.kernel_pattern} (kernel {recipe.kernel})",
            hint="the mirror may no longer keep this kernel; change the recipe",
        )
    found = [names[-1]]
    level = found
    for _ in range(_KERNEL_DEPTH):
        level = [
            name for parent in level for name in packages.depends(parent, recipe.kernel_depends) if name not in found
        ]
        found += level
    return list(dict.fromkeys(found))


def _recipe_key(recipe: Recipe) -> str:
    """Hash over the recipe, the guest's init and the code that puts images together."""
    digest = hashlib.sha256()
    digest.update(recipe.model_dump_json().encode())
    sources = [path for path in sorted((images_dir() / "guest").rglob("*")) if path.is_file()]
    code = Path(__file__).parent
    sources += [
        code / name for name in ("cpio.py", "elf.py", "kernel.py", "kernel_config.py", "modules.py", "rootfs.py")
    ]
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    if recipe.source:
        digest.update(kernel_build.recipe_key(recipe.source).encode())
    return digest.hexdigest()


def _image(entry: Entry) -> Image:
    facts = entry.facts
    packages, options = facts["packages"], facts.get("options")
    return Image(
        name=str(facts["name"]),
        key=entry.key,
        folder=entry.folder,
        kernel=entry.folder / "vmlinux",
        initrd=entry.folder / "initrd.img",
        kernel_release=str(facts["kernel_release"]),
        options=frozenset(map(str, options)) if isinstance(options, list) else frozenset(),
        packages={str(k): str(v) for k, v in packages.items()} if isinstance(packages, dict) else {},
        created=entry.created,
        size=entry.size,
    )
