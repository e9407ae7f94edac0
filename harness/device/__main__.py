"""``python -m harness.device FILE.py:CLASS --socket PATH``: one device model for any QEMU that has vfio-user-pci.

Standard library only, as the models are: it runs beside a QEMU that nothing else of the harness has started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import importlib.util
import json
import os
import shlex
import signal
import socket
import stat
import sys
import traceback
from pathlib import Path
from typing import Final

from harness.device.model import Model
from harness.device.server import FunctionServer
from harness.device.telling import tell

_LONGEST: Final = 107  # bytes of a unix socket's name
_USAGE: Final = 2
_INTERRUPTED: Final = 130
_END_SECONDS: Final = 1.0  # for tasks of the model
_MODULE: Final = "the_device_model"  # whatever the file is called: it may be called json.py


class Mistake(Exception):
    """What was asked for cannot be; the message says why and what helps."""


def load(place: str) -> type[Model]:
    """The class of a device model.

    Args:
        place: ``FILE.py:CLASS``.

    Raises:
        Mistake: there is no such file or class, the file raises an exception, or the class is no model.
    """
    file, colon, name = place.rpartition(":")
    if not colon or not file or not name:
        raise Mistake(f"'{place}' names no device model: write FILE.py:CLASS")
    path = Path(file)
    try:
        there = path.is_file()
    except OSError as error:
        raise Mistake(f"{file} cannot be read: {os.strerror(error.errno or 0)}") from error
    if not there:
        raise Mistake(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise Mistake(f"{file} is no Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses of the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise Mistake(f"{file} cannot be loaded: {_told(error)}") from error
    found = getattr(module, name, None)
    if found is None:
        known = [one for one, what in vars(module).items() if isinstance(what, type) and issubclass(what, Model)]
        models = ", ".join(one for one in known if one != "Model") or "none"
        raise Mistake(f"{file} has no class {name}; its device models are: {models}")
    if not (isinstance(found, type) and issubclass(found, Model)) or found is Model:
        raise Mistake(f"{name} of {file} is no device model: it must be a subclass of harness.device.model.Model")
    if not hasattr(found, "identity"):
        raise Mistake(f"{name} of {file} has no identity: docs/device-models.md says what that is")
    return found


def make(model: type[Model], name: str) -> Model:
    """A function of a model; raises Mistake where the class describes one that cannot be."""
    try:
        return model(name)
    except Exception as error:
        raise Mistake(f"{model.__name__} cannot be made: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """An exception with the line that raised it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def listen(path: str) -> socket.socket:
    """A listening socket that only this user reaches; raises Mistake."""
    if not path:
        raise Mistake("the socket has no name")
    path = str(Path(path).absolute())  # which is what QEMU is given
    if len(os.fsencode(path)) > _LONGEST:
        raise Mistake(f"{path} is too long for a socket, whose name has at most {_LONGEST} bytes")
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(1)
    except OSError as error:
        listener.close()
        hint = ""
        if error.errno == errno.EADDRINUSE:
            hint = "; remove it if no other server uses it" if Path(path).is_socket() else ", by what is no socket"
        raise Mistake(f"no socket at {path}: {os.strerror(error.errno or 0)}{hint}") from error
    finally:
        os.umask(before)
    return listener


async def serve(model: Model, listener: socket.socket) -> None:
    """Serve one client after the other until a signal ends it; the socket is removed then.

    SIGINT and SIGTERM do, and SIGHUP where nobody has it ignored.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    path = Path(listener.getsockname())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is signal.SIG_DFL:
            loop.add_signal_handler(number, ended.set)
    ours = path.stat()
    server = FunctionServer(model, listener, loop)
    try:
        device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}}
        print(f"{model.name} listens; give QEMU: -device {shlex.quote(json.dumps(device))}", flush=True)
        await ended.wait()
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            now = path.stat()
            if stat.S_ISSOCK(now.st_mode) and (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
                path.unlink()
        await _end_tasks(model)


async def _end_tasks(model: Model) -> None:
    """Wait for the model's tasks, but not for good, as asyncio.run() would."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks and (await asyncio.wait(tasks, timeout=_END_SECONDS))[1]:
        tell(f"{model.name}: a task of the model does not end")
        os._exit(1)


def main(words: list[str] | None = None) -> int:
    """Serve as the command line says; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.device",
        description="Serve a PCI device model, written in Python, to a QEMU that has vfio-user-pci (10.1 or later).",
        epilog="docs/device-models.md says how to write one. Ctrl-C ends it.",
    )
    parser.add_argument("model", metavar="FILE.py:CLASS", help="the file with the model, and its class")
    parser.add_argument("--socket", required=True, metavar="PATH", help="the unix socket to make for QEMU")
    parser.add_argument("--name", help="the name of the function in messages (default: the class)")
    wanted = parser.parse_args(words)
    try:
        model = make(load(wanted.model), wanted.name or wanted.model.rpartition(":")[2])
        with listen(wanted.socket) as listener:
            asyncio.run(serve(model, listener))
    except Mistake as mistake:
        print(f"{parser.prog}: {mistake}", file=sys.stderr)
        return _USAGE
    except KeyboardInterrupt:  # before it listens
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
