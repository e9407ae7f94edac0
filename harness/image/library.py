"""Intel's C library libusdm out of a Debian package: the oracle that USDM is compared with.

It is one file, sent into a running guest (``harness/guest/bring.py``), so both sides run in clones of one template.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import apt, cache
from harness.image.cache import Entry, Say
from harness.image.recipe import Name, Pattern
from harness.paths import images_dir

DEFAULT = "26.08"
KIND = "library"
_FILE = "libusdm.so"


class LibraryRecipe(BaseModel):
    """Where a library is from: ``images/libraries/*.yaml``.

    Attributes:
        name: the file's name without ``.yaml``; also what ``--libusdm`` takes.
        title: for people.
        suites: Debian suites to take the package from.
        package: its name; dependencies are not followed, the guest has the C library.
        version: regular expression for its whole version, so that a suite which has moved on is noticed.
        file: the shared library in the package.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    suites: Annotated[tuple[Name, ...], Field(min_length=1)]
    package: Name
    version: Pattern
    file: str


@dataclass(frozen=True, slots=True)
class Library:
    """A library in the cache.

    Args:
        name: the recipe's name, e.g. ``26.08``.
        key: the hash over the recipe and the package's hash.
        file: the shared library.
        version: the Debian package's version.
    """

    name: str
    key: str
    file: Path
    version: str


def library_names() -> list[str]:
    """The names of all recipes, oldest first."""
    return sorted(path.stem for path in (images_dir() / "libraries").glob("*.yaml"))


def load_library_recipe(name: str) -> LibraryRecipe:
    """Read a recipe.

    Raises:
        ConfigurationError: there is no such recipe, or it is wrong.
    """
    if name not in library_names():
        known = ", ".join(library_names())
        raise ConfigurationError(f"there is no libusdm '{name}'", hint=f"--libusdm takes: {known}")
    path = images_dir() / "libraries" / f"{name}.yaml"
    try:
        return LibraryRecipe(**{**yaml.safe_load(path.read_text(encoding="utf-8")), "name": name})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, TypeError) as error:
        raise ConfigurationError(f"{path}: is no recipe for a library: {error}") from error


def find_library(name: str) -> Library:
    """A library in the cache, verified; nothing is downloaded.

    Raises:
        ConfigurationError: there is no such recipe, or it is wrong.
        InfrastructureError: it is not in the cache, or was damaged.
    """
    found = cache.find_made_from(KIND, _recipe_key(load_library_recipe(name)))
    if found is not None:
        return _library(found)
    raise InfrastructureError(
        f"the library libusdm {name} is not in the cache",
        hint=f"get it with 'harness fetch --libusdm {name}', or run with --fetch",
    )


def library_of_key(key: str) -> Library:
    """The library of a key.

    Raises:
        InfrastructureError: it is not in the cache, or was damaged.
    """
    return _library(cache.by_key(KIND, key))


def fetch_library(name: str, *, mirror: str | None = None, offline: bool = False, say: Say = print) -> Library:
    """A library, downloaded when the cache lacks it.

    Args:
        name: the recipe's name.
        mirror: a Debian mirror, or None for the host's.
        offline: use the cache only.
        say: told what goes on.

    Raises:
        ConfigurationError, InfrastructureError: as :func:`find_library`, and what apt may meet.
    """
    found = cache.there(lambda: find_library(name), only=offline, say=say, doing="getting")
    if found is not None:
        return found
    recipe = load_library_recipe(name)
    with apt.private_apt(recipe.suites, mirror, say) as packages:
        resolved = packages.exactly([recipe.package])
        version = resolved[0].version
        if not re.fullmatch(recipe.version, version):
            raise InfrastructureError(
                f"{recipe.package} of {', '.join(recipe.suites)} is {version} now, no longer {name}",
                hint="the suite has moved on; change the recipe in images/libraries",
            )
        material = f"{_recipe_key(recipe)}\n{version} {resolved[0].digest}"
        key = hashlib.sha256(material.encode()).hexdigest()

        def fill(folder: Path) -> dict[str, object]:
            deb = packages.download(resolved)[recipe.package]
            root = folder / "unpacked"
            apt.unpack(deb, root)
            source = root / recipe.file
            if not source.is_file():
                raise InfrastructureError(f"{recipe.package} {version} has no {recipe.file}")
            shutil.copyfile(source, folder / _FILE)
            cache.remove_tree(root)
            return {"name": name, "recipe": _recipe_key(recipe), "version": version}

        return _library(cache.store(KIND, key, fill, say))


def _recipe_key(recipe: LibraryRecipe) -> str:
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()


def _library(entry: Entry) -> Library:
    return Library(str(entry.facts["name"]), entry.key, entry.folder / _FILE, str(entry.facts["version"]))
