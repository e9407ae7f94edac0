"""The guest's root file system out of unpacked packages: few files, and the same bytes every time."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from harness.errors import ConfigurationError, InfrastructureError
from harness.image import elf
from harness.image.cpio import write_tree
from harness.image.kernel import extract_vmlinux
from harness.image.kernel_build import Kernel
from harness.image.kernel_config import switched_on
from harness.image.modules import depends_on, load_order
from harness.image.recipe import Recipe

_LIB = "usr/lib/x86_64-linux-gnu"
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_PROGRAMS = ("usr/bin/busybox", "usr/sbin/dropbear")
# Loaded at run time by name, so no program asks for it: pthread_cancel and thread exit need it.
_LIBRARIES = ("libgcc_s.so.1",)
_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "etc/harness", "usr/bin", "usr/sbin", "usr/lib64", _LIB)
_MERGED = ("bin", "sbin", "lib", "lib64")
# Parts of Python's library that no guest of ours uses; together half of it.
_PYTHON_DROPPED = (
    *("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "pydoc_data", "lib2to3", "__pycache__", "venv"),
    *("sqlite3", "curses", "dbm", "wsgiref", "xmlrpc", "distutils", "__phello__", "turtle.py", "mailbox.py"),
    *("LICENSE.txt", "sitecustomize.py", "email", "html", "http", "xml", "zoneinfo", "_zoneinfo.py", "ssl.py"),
    *("ftplib.py", "imaplib.py", "poplib.py", "smtplib.py", "doctest.py", "pickletools.py"),
    # What stands in for extensions that are there.
    *("_pydatetime.py", "_pydecimal.py", "_pyio.py"),
)
# "xx" stands for C examples of the Python project.
_EXTENSIONS_DROPPED = ("_ctypes_test", "_test", "_xx", "_zoneinfo", "xx")
# Codecs of East Asian and of old code pages: a third of the library's files.
_CODECS_DROPPED = (
    *("big5", "cp", "euc_", "gb", "hp_", "hz", "iso2022_", "iso8859_", "johab", "koi8_", "kz", "mac_"),
    *("palmos", "ptcp", "shift_jis", "tis_", "_codecs_", "_multibytecodec"),
)
# The prompt's line editing in "harness shell" moves the cursor by these.
_TERMINALS = ("d/dumb", "l/linux", "s/screen", "s/screen-256color", "v/vt100", "x/xterm", "x/xterm-256color")
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    # No password can match: keys only.
    "etc/shadow": "root:*:20000:0:99999:7:::\n",
    "etc/group": "root:x:0:\n",
    "etc/fstab": "proc /proc proc defaults\nsysfs /sys sysfs defaults\ndev /dev devtmpfs defaults\n",
    "etc/shells": "/bin/sh\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost guest\n",
    # Without curses the new prompt of Python would only print a warning.
    "etc/profile": "PS1='guest# '\nexport PATH=/usr/sbin:/usr/bin PYTHON_BASIC_REPL=1\n",
}


def build_files(
    packages: Path, recipe: Recipe, images: Path, out: Path, kernel: Kernel | None = None
) -> dict[str, object]:
    """Write ``vmlinux`` and ``initrd.img``.

    Args:
        packages: the unpacked packages, all in one tree.
        recipe: what goes in.
        images: the folder with ``guest/init``.
        out: where the two files go; a working folder in it is removed again.
        kernel: the kernel where it is in none of the packages.

    Returns:
        Facts for the manifest: ``kernel_release``, ``options``, ``python``, ``modules``, ``modules_on_demand``.

    Raises:
        InfrastructureError: a package lacks a file that an image needs.
        ConfigurationError: the kernel lacks a module of the recipe.
    """
    release, config, drivers = _kernel(packages, out) if kernel is None else _compiled(kernel, recipe, out)
    modules = load_order(drivers, recipe.modules) if drivers else []
    more = load_order(drivers, recipe.modules_on_demand) if drivers else []
    root = out / "root"
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in _MERGED:
        (root / name).symlink_to(f"usr/{name}")
    _programs(packages, root)
    _terminals(packages, root)
    python = _python(packages, root)
    _libraries(packages, root)
    for name, text in _TEXTS.items():
        (root / name).write_text(text, encoding="utf-8")
    _modules(root, release, modules, more)
    # Whether they may be executed is not left to the checkout.
    for source, target in (("init", "init"), ("lspci", "usr/bin/lspci")):
        _copy(images / "guest" / source, root / target)
        (root / target).chmod(0o755)
    _compile(packages, root, python)
    with (out / "initrd.img").open("wb") as file:
        write_tree(root, file)
    shutil.rmtree(root)
    return {
        "kernel_release": release,
        "options": sorted(switched_on(config)),
        "python": python,
        "modules": [name for name, _ in modules],
        "modules_on_demand": [name for name, _ in more if name not in dict(modules)],
    }


def _kernel(packages: Path, out: Path) -> tuple[str, str, Path | None]:
    """Write Debian's kernel; gives its release, its configuration, and the folder with its modules."""
    modules = _only(packages / "usr/lib/modules", "*", "kernel")
    release = modules.name
    # The kernels' packages of 6.19 and later have both beside the modules.
    beside = (modules / "vmlinuz").is_file()
    image = modules / "vmlinuz" if beside else _only(packages / "boot", "vmlinuz-*", "kernel image")
    config = modules / "config" if beside else packages / f"boot/config-{release}"
    if not config.is_file():
        raise InfrastructureError(
            f"the packages of kernel {release} have no file with its configuration",
            hint="'kernel_depends' of the image's recipe leaves out the package that has it",
        )
    (out / "vmlinux").write_bytes(extract_vmlinux(image.read_bytes()))
    return release, config.read_text(encoding="utf-8"), modules


def _compiled(kernel: Kernel, recipe: Recipe, out: Path) -> tuple[str, str, Path | None]:
    """Write a kernel of the project's own, which has everything built in; otherwise like :func:`_kernel`."""
    asked = (*recipe.modules, *recipe.modules_on_demand)
    if asked:
        raise ConfigurationError(
            f"a compiled kernel has no modules, and {recipe.name}.yaml asks for {', '.join(asked)}",
            hint="take 'modules' and 'modules_on_demand' out of the recipe, and have the drivers in a fragment of the "
            "kernel's configuration",
        )
    (out / "vmlinux").write_bytes(extract_vmlinux(kernel.file.read_bytes()))
    return kernel.release, kernel.config, None


def _only(folder: Path, pattern: str, what: str) -> Path:
    found = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if len(found) != 1:
        raise InfrastructureError(f"the packages have {len(found)} {what}s instead of one")
    return found[0]


def _copy(source: Path, target: Path) -> None:
    """A file's content and whether it may be executed; links are followed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    target.chmod(0o755 if source.stat().st_mode & 0o111 else 0o644)


def _find(packages: Path, name: str) -> Path:
    """A file of the packages, also where a package still has it outside /usr."""
    for path in (packages / name, packages / name.removeprefix("usr/")):
        if path.is_file():
            return path
    raise InfrastructureError(f"the packages have no /{name}", hint="the image's recipe lacks a package")


def _programs(packages: Path, root: Path) -> None:
    for name in _PROGRAMS:
        _copy(_find(packages, name), root / name)
    # insmod is busybox's too: kmod's pulls in libcrypto, 8 MB that every boot would unpack.
    listed = _run([str(root / "usr/bin/busybox"), "--list"])
    taken = {path.name for folder in ("usr/bin", "usr/sbin") for path in (root / folder).iterdir()}
    for name in sorted(set(listed.split()) - taken):
        (root / "usr/bin" / name).symlink_to("busybox")


def _terminals(packages: Path, root: Path) -> None:
    for name in _TERMINALS:
        for folder in ("usr/lib/terminfo", "lib/terminfo", "usr/share/terminfo"):
            if (packages / folder / name).is_file():
                _copy(packages / folder / name, root / "usr/lib/terminfo" / name)
                break


def _python(packages: Path, root: Path) -> str:
    """Copy the interpreter and the useful part of its library; gives the version as in ``python3.13``."""
    program = _only(packages / "usr/bin", "python3.[0-9]*", "Python interpreter")
    version = program.name.removeprefix("python")
    _copy(program, root / "usr/bin" / program.name)
    (root / "usr/bin/python3").symlink_to(program.name)
    library = f"usr/lib/python{version}"

    def dropped(folder: str, names: list[str]) -> list[str]:
        if folder.endswith("lib-dynload"):
            return [name for name in names if _useless_extension(packages, Path(folder, name))]
        if folder.endswith("encodings"):
            return [name for name in names if name.startswith(_CODECS_DROPPED) and name != "cp437.py"]
        return [name for name in names if name in _PYTHON_DROPPED or name.startswith("config-")]

    shutil.copytree(packages / library, root / library, ignore=dropped, symlinks=False)
    return version


def _useless_extension(packages: Path, path: Path) -> bool:
    """True for tests, codecs that are left out, and what could not be imported: its libraries are in no package."""
    if path.name.startswith((*_EXTENSIONS_DROPPED, *_CODECS_DROPPED)):
        return True
    return any(_library(packages, name) is None for name in elf.needed(path.read_bytes()))


def _library(packages: Path, name: str) -> Path | None:
    for folder in (_LIB, _LIB.removeprefix("usr/"), "usr/lib64", "lib64"):
        if (packages / folder / name).is_file():
            return packages / folder / name
    return None


def _libraries(packages: Path, root: Path) -> None:
    """Copy the shared libraries that the copied programs and extensions ask for, and theirs."""
    loader = _find(packages, _LOADER)
    _copy(loader, root / _LOADER)
    (root / _LOADER).chmod(0o755)
    wanted = list(_LIBRARIES)
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and elf.is_elf(data := path.read_bytes()):
            wanted += elf.needed(data)
    done = {loader.name}
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        source = _library(packages, name)
        if source is None:
            raise InfrastructureError(
                f"the packages have no library {name}, which a program of the guest needs",
                hint="add the package that has it to 'packages' of the recipe",
            )
        _copy(source, root / _LIB / name)
        wanted += elf.needed(source.read_bytes())


def _modules(root: Path, release: str, modules: list[tuple[str, bytes]], more: list[tuple[str, bytes]]) -> None:
    """Copy modules, and write which of them are loaded at boot and what each depends on.

    Args:
        root: the root file system.
        release: the kernel's.
        modules: those that are loaded at boot, in this order.
        more: those that only lie there; some may be among the others too.
    """
    folder = root / "usr/lib/modules" / release
    folder.mkdir(parents=True)
    every = {**dict(modules), **dict(more)}
    for name, data in every.items():
        (folder / f"{name}.ko").write_bytes(data)
    lines = "".join(f"/lib/modules/{release}/{name}.ko\n" for name, _ in modules)
    (root / "etc/harness/modules").write_text(lines, encoding="utf-8")
    # For modprobe, which loads what else there is, and for modinfo of a person in "harness shell". It wants all that a
    # module depends on, also indirectly, the last to be loaded first; what the kernel has built in is not named.
    depends = {name: [one for one in depends_on(data) if one in every] for name, data in every.items()}
    listing = [f"{name}.ko: {' '.join(f'{n}.ko' for n in _all_needs(name, depends))}".rstrip() for name in every]
    (folder / "modules.dep").write_text("".join(f"{line}\n" for line in listing), encoding="utf-8")


def _all_needs(name: str, depends: dict[str, list[str]]) -> list[str]:
    """What must be loaded before a module, the last to be loaded first."""
    order: list[str] = []

    def add(needed: str) -> None:
        for one in depends[needed]:
            if one not in order:
                add(one)
                order.append(one)

    add(name)
    return order[::-1]


def _compile(packages: Path, root: Path, version: str) -> None:
    """Compile the library with the guest's own interpreter, run by its own loader; so imports cost no compiling there.

    Unchecked hash-based files hold no times: the same sources give the same bytes. ``-B`` and ``-f``: the modules that
    the compiler itself imports must not leave files of the other kind, which have a time and this host's path.
    """
    library = root / f"usr/lib/python{version}"
    loader = [str(root / _LOADER), "--library-path", str(root / _LIB)]
    command = [*loader, str(root / f"usr/bin/python{version}"), "-S", "-B", "-m", "compileall", "-q", "-f"]
    env = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PATH": os.defpath}
    _run([*command, "--invalidation-mode", "unchecked-hash", "-s", str(root), str(library)], env)


def _run(argv: list[str], env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InfrastructureError(
            f"'{Path(argv[0]).name}' of the guest's packages cannot be run on this host: {error.strerror}",
            hint="images are built on x86-64 hosts",
        ) from error
    if done.returncode:
        raise InfrastructureError(
            f"'{Path(argv[0]).name}' of the guest's packages failed on this host: {done.stderr.strip()[-300:]}"
        )
    return done.stdout
