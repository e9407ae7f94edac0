"""The commands for what the cache holds: images and QEMU builds."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

from harness.cli.handler import guarded
from harness.cli.options import AsJson, Mirror, Offline, examples

image_app = typer.Typer(help="Guest images: built from Debian packages, kept in the cache.", no_args_is_help=True)
qemu_app = typer.Typer(help="QEMU builds: the host's own, and fetched ones side by side.", no_args_is_help=True)


def _say(text: str) -> None:
    print(text, flush=True)


@image_app.command(
    "build",
    epilog=examples("harness image build", "harness image build lab", "harness image build trixie-7.2 --refresh"),
)
def image_build(
    name: Annotated[str, typer.Argument(help="Name of a recipe, e.g. trixie.")] = "trixie",
    refresh: Annotated[bool, typer.Option("--refresh", help="Look for newer packages.")] = False,
    offline: Offline = False,
    mirror: Mirror = None,
) -> None:
    """Build an image unless the cache has it.

    That takes seconds; but the kernel of lab is compiled, which takes some minutes once.
    """

    def body() -> int:
        from harness.image.build import build_image

        image = build_image(name, mirror=mirror, offline=offline, say=_say, refresh=refresh)
        _say(
            f"{image.name} {image.key[:12]}: kernel {image.kernel_release}, {image.size / 1e6:.0f} MB in {image.folder}"
        )
        return 0

    raise typer.Exit(guarded(body))


@image_app.command("list", epilog=examples("harness image list", "harness image list --json"))
def image_list(as_json: AsJson = False) -> None:
    """List the recipes, and the images in the cache."""

    def body() -> int:
        from harness.image.build import list_images
        from harness.image.recipe import load_recipe, recipe_names

        recipes = [load_recipe(name) for name in recipe_names()]
        images = list_images()
        if as_json:
            document = {
                "recipes": [{"name": r.name, "kernel": r.kernel, "title": r.title} for r in recipes],
                "images": [
                    {
                        "name": i.name,
                        "key": i.key,
                        "kernel_release": i.kernel_release,
                        "created": i.created,
                        "size": i.size,
                    }
                    for i in images
                ],
            }
            _say(json.dumps(document))
            return 0
        for recipe in recipes:
            _say(f"{recipe.name:14} --kernel {recipe.kernel:6} {recipe.title}")
            for image in images:
                if image.name == recipe.name:
                    _say(f"    {image.key[:12]}  {image.kernel_release}  {image.size / 1e6:.0f} MB  {image.created}")
        return 0

    raise typer.Exit(guarded(body))


@image_app.command("show", epilog=examples("harness image show trixie", "harness image show trixie --json"))
def image_show(
    name: Annotated[str, typer.Argument(help="Name of a recipe.")] = "trixie", as_json: AsJson = False
) -> None:
    """Show what an image in the cache is made of.

    Every package with its version; in JSON its kernel's options too.
    """

    def body() -> int:
        from harness.image.build import find_image

        image = find_image(name)
        facts = {"name": image.name, "key": image.key, "kernel": image.kernel_release, "created": image.created}
        if as_json:
            _say(
                json.dumps(
                    {**facts, "folder": str(image.folder), "packages": image.packages, "options": sorted(image.options)}
                )
            )
            return 0
        for key, value in facts.items():
            _say(f"{key}: {value}")
        _say(f"folder: {image.folder}")
        for package, version in sorted(image.packages.items()):
            _say(f"  {package} {version}")
        return 0

    raise typer.Exit(guarded(body))


@image_app.command("prune", epilog=examples("harness image prune", "harness image prune --keep 0"))
def image_prune(
    keep: Annotated[int, typer.Option("--keep", min=0, help="How many of each recipe stay.")] = 1,
) -> None:
    """Remove all but the newest image of each recipe.

    And those that no recipe gives any more.
    """

    def body() -> int:
        from harness.image.build import prune_images
        from harness.image.module import prune_modules

        # A module goes with the image that it is for.
        removed = prune_images(keep, _say) + prune_modules(keep, _say)
        _say(f"{len(removed)} removed")
        return 0

    raise typer.Exit(guarded(body))


@qemu_app.command("list", epilog=examples("harness qemu list", "harness qemu list --json"))
def qemu_list(as_json: AsJson = False) -> None:
    """List the QEMU builds, and which of them are here."""

    def body() -> int:
        from harness.machine.builds import BUILDS, DEFAULT, list_builds

        here = {build.name: build for build in list_builds()}
        if as_json:
            rows = [{"name": n, "here": n in here, "version": here[n].version if n in here else None} for n in BUILDS]
            _say(json.dumps(rows))
            return 0
        for name in BUILDS:
            state = f"here, version {here[name].version}" if name in here else "not here"
            _say(f"{name:7} {state}{' (default)' if name == DEFAULT else ''}")
        return 0

    raise typer.Exit(guarded(body))


@qemu_app.command("fetch", epilog=examples("harness qemu fetch", "harness qemu fetch 7.2 10.0"))
def qemu_fetch(
    names: Annotated[list[str] | None, typer.Argument(help="7.2, 10.0, 11.1; without any, the default.")] = None,
    offline: Offline = False,
    mirror: Mirror = None,
) -> None:
    """Download QEMU builds into the cache, about 40 MB each.

    They are unpacked there; nothing is installed.
    """

    def body() -> int:
        from harness.machine.builds import DEFAULT, fetch_build

        for name in names or [DEFAULT]:
            build = fetch_build(name, mirror=mirror, offline=offline, say=_say)
            _say(f"QEMU {name}: version {build.version} in {build.folder or 'the system'}")
        return 0

    raise typer.Exit(guarded(body))


@qemu_app.command("command", epilog=examples("harness qemu command", "harness qemu command 10.0"))
def qemu_command(
    name: Annotated[str | None, typer.Argument(help="system, 7.2, 10.0, 11.1; without any, the default.")] = None,
) -> None:
    """Print the words that start a build by hand.

    One that was fetched is not on PATH.
    """

    def body() -> int:
        from harness.machine.builds import DEFAULT, find_build

        build = find_build(name or DEFAULT)
        env = [f"{variable}={value}" for variable, value in sorted(build.env.items())]
        _say(shlex.join([*(["env", *env] if env else []), *build.argv_prefix]))
        return 0

    raise typer.Exit(guarded(body))


@qemu_app.command("prune", epilog=examples("harness qemu prune", "harness qemu prune --keep 0"))
def qemu_prune(
    keep: Annotated[int, typer.Option("--keep", min=0, help="How many of each build stay.")] = 1,
) -> None:
    """Remove unknown builds, and all but the newest of each.

    Unknown are those that this harness does not name any more.
    """

    def body() -> int:
        from harness.machine.builds import prune_builds

        removed = prune_builds(keep, _say)
        _say(f"{len(removed)} removed")
        return 0

    raise typer.Exit(guarded(body))
