"""Image recipes: ``images/*.yaml``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import ConfigurationError
from harness.paths import images_dir


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Fragment = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]*(/[a-z-]+)?$")]


# The one in C is ten times as fast, and recipes are read for each scenario that asks for a kernel.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Source(BaseModel):
    """A kernel that the project compiles itself.

    Attributes:
        package: regular expression over whole package names; of those that match, the highest is taken.
        fragments: names of files in ``images/kernel`` without ``.config``: the options that are on.
        tools_suite: Debian suite of the compiler.
        tools: every package of the compiler; dependencies are not followed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: Pattern
    fragments: Annotated[tuple[Fragment, ...], Field(min_length=1)]
    tools_suite: Name
    tools: Annotated[tuple[Name, ...], Field(min_length=1)]


class Recipe(BaseModel):
    """What an image is made of. Its kernel is Debian's or, with a ``source``, compiled.

    Attributes:
        name: the file's name without ``.yaml``.
        title: for people.
        kernel: what ``--kernel`` chooses it by: a version such as ``6.12``, or a name.
        suites: Debian suites to take packages from.
        kernel_pattern: regular expression over whole package names; of those that match, the highest is taken.
        kernel_depends: regular expression for the kernel package's dependencies that are taken too, recursively.
        source: how the kernel is compiled.
        packages: every package whose files may go into the guest; dependencies are not followed.
        modules: kernel modules to load at boot, in this order; what they depend on is added.
        modules_on_demand: kernel modules that only lie in the image, for ``modprobe``; with what they depend on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    kernel: Annotated[str, Field(pattern=r"^(\d+\.\d+|lab)$")]
    suites: Annotated[tuple[Name, ...], Field(min_length=1)]
    kernel_pattern: Pattern | None = None
    kernel_depends: Pattern | None = None
    source: Source | None = None
    packages: Annotated[tuple[Name, ...], Field(min_length=1)]
    modules: tuple[str, ...] = ()
    modules_on_demand: tuple[str, ...] = ()

    @property
    def release(self) -> str:
        """The kernel's version up to its second number, known before the image is built, e.g. ``6.12``."""
        if self.kernel[0].isdigit():
            return self.kernel
        found = re.search(r"\d+\.\d+", self.source.package.replace("\\", "") if self.source else "")
        return found[0] if found else "0"

    @model_validator(mode="after")
    def _one_kernel(self) -> Recipe:
        given = [name for name in ("kernel_pattern", "kernel_depends", "source") if getattr(self, name) is not None]
        if given not in (["kernel_pattern", "kernel_depends"], ["source"]):
            raise ValueError(
                "a kernel is named by 'kernel_pattern' and 'kernel_depends', or by 'source'; "
                f"here: {', '.join(given) or 'nothing'}"
            )
        return self


def recipe_names(folder: Path | None = None) -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.stem for path in (folder or images_dir()).glob("*.yaml"))


def load_recipe(name: str, folder: Path | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name: its file's name without ``.yaml``.
        folder: where it is; None for the project's own.

    Raises:
        ConfigurationError: there is no such recipe, or it is wrong; the message names file and field.
    """
    path = (folder or images_dir()) / f"{name}.yaml"
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _LOADER)  # noqa: S506 - both are safe loaders
    except FileNotFoundError:
        known = ", ".join(recipe_names(folder)) or "none"
        raise ConfigurationError(f"there is no image recipe '{name}'", hint=f"there are: {known}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: a recipe is a mapping of fields")
    try:
        return Recipe(**{**data, "name": name})
    except (ValidationError, TypeError) as error:
        raise ConfigurationError(f"{path}: {_first_problem(error)}") from error


def recipe_for_kernel(kernel: str) -> Recipe:
    """The recipe with a kernel version.

    Raises:
        ConfigurationError: no recipe has it.
    """
    recipes = [load_recipe(name) for name in recipe_names()]
    for recipe in recipes:
        if recipe.kernel == kernel:
            return recipe
    known = ", ".join(sorted(recipe.kernel for recipe in recipes))
    raise ConfigurationError(f"no image has a kernel '{kernel}'", hint=f"there are: {known}")


def _first_problem(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"field '{where}': {problem['msg']}" if where else problem["msg"]
