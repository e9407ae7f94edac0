"""The process beside QEMU: servers of some functions, told what to do by lines of JSON on a socket.

It ends when that socket does. Requests, one object a line, each answered by one with ``ok``, and with ``error`` where
that is false:

``{"do": "news", "function": F}``: the ``transfers`` since the last time and how many ``more`` were not kept, whether a
client is ``connected``, why ``clients`` were turned away or lost, how many ``mappings`` there are, their ``generation``
and, where that has changed, the ``ranges`` (IOVA, bytes, access), and the ``failure`` of the model's own code, if any.
May be asked after the client has gone.
``{"do": "misbehave", "function": F, "how": H, ...}``, ``{"do": "release", "function": F}``,
``{"do": "vanish", "function": F}``.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

from harness.device.mirror import letters
from harness.device.model import Model
from harness.device.qat.misbehave import HOWS, Plan
from harness.device.qat.stub import QatPf, QatVf
from harness.device.server import FunctionServer

MODELS: dict[str, type[Model]] = {"qat": QatPf, "qat_vf": QatVf}


class Process:
    """The servers of a process."""

    def __init__(self, functions: list[dict[str, Any]], loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen.

        Args:
            functions: ``name``, ``model`` and ``fd``, the descriptor of a listening socket, of each.
            loop: the running loop.
        """
        self.servers: dict[str, FunctionServer] = {}
        self._told: dict[str, int] = {}
        for one in functions:
            model = MODELS[one["model"]](one["name"])
            self.servers[one["name"]] = FunctionServer(model, socket.socket(fileno=one["fd"]), loop)

    async def answer(self, line: bytes) -> dict[str, Any]:
        """Do what a line asks for."""
        try:
            request = json.loads(line)
            server = self.servers[request["function"]]
            return {"ok": True, **await self._do(request, server)}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # What a request that makes no sense gives.
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    async def _do(self, request: dict[str, Any], server: FunctionServer) -> dict[str, Any]:
        match request["do"]:
            case "news":
                return self._news(request["function"], server)
            case "misbehave":
                return self._misbehave(request, server)
            case "release":
                await server.model.misbehaviour.release()  # type: ignore[attr-defined]
                return {}
            case "vanish":
                await server.vanish()
                return {}
        raise ValueError(f"nothing is known of {request['do']!r}")

    def _news(self, name: str, server: FunctionServer) -> dict[str, Any]:
        model = server.model
        transfers, more = model.dma.log.news()
        mirror = model.mirror
        news: dict[str, Any] = {
            "connected": server.connected,
            "clients": server.refused,
            "transfers": transfers,
            "more": more,
            "mappings": len(mirror),
            "generation": mirror.generation,
            "failure": repr(model.failure) if model.failure else "",
        }
        if self._told.get(name) != mirror.generation:
            self._told[name] = mirror.generation
            news["ranges"] = [[one.iova, one.size, letters(one.access)] for one in mirror.ranges()]
        return news

    def _misbehave(self, request: dict[str, Any], server: FunctionServer) -> dict[str, Any]:
        how = request["how"]
        if how not in HOWS:
            raise ValueError(f"nothing is known of {how!r}")
        through = self.servers[request["through"]].model.dma if request.get("through") else None
        plan = Plan(how, request.get("milliseconds", 0), through)
        server.model.misbehaviour.add(plan, request.get("times", 1))  # type: ignore[attr-defined]
        return {}


async def serve(functions: list[dict[str, Any]], control: int) -> None:
    """Serve until the control socket ends."""
    loop = asyncio.get_running_loop()
    process = Process(functions, loop)
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=control))
    try:
        while line := await reader.readline():
            writer.write(json.dumps(await process.answer(line)).encode() + b"\n")
            await writer.drain()
    except ConnectionError:
        return
    except ValueError as error:  # of readline
        print(f"a request is too long: {error}", file=sys.stderr)
    finally:
        for server in process.servers.values():
            server.close()
        writer.close()


def main() -> None:
    """``python -c ... '{"functions": [...], "control": FD}'``."""
    wanted = json.loads(sys.argv[1])
    asyncio.run(serve(wanted["functions"], wanted["control"]))


if __name__ == "__main__":
    main()
