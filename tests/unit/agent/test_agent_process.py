"""Steps that set the stage for the process, on the host's own kernel where that is possible without harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.agent import own_memory, steps_process
from harness.agent.context import Buffer, Context
from harness.agent.execute import execute
from harness.agent.steps_process import NotSet

ROOT = Path(__file__).resolve().parents[3]

_LIMITED = """
import ctypes, json, resource, sys
sys.path.insert(0, sys.argv[1])
from harness.agent.context import Context
from harness.agent.execute import execute
answer = execute(Context(), "limit_memory", {"bytes": int(sys.argv[2])})
libc = ctypes.CDLL(None, use_errno=True)
from harness.agent import own_memory
def locked(size):
    address = own_memory.take(size, "anonymous")
    return libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
caps = {line.split()[0]: int(line.split()[1], 16) for line in open("/proc/self/status") if line.startswith("Cap")}
print(json.dumps({"answer": answer, "limit": resource.getrlimit(resource.RLIMIT_MEMLOCK), "caps": caps,
                  "small": locked(4096), "large": locked(1 << 20)}))
"""


def answer(kind: str, context: Context | None = None, **args: Any) -> dict[str, Any]:
    return execute(context or Context(), kind, args)


# ---- environment


def test_a_variable_is_set_for_python_and_for_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USDM_TEST_VARIABLE", "before")
    assert answer("environment", name="USDM_TEST_VARIABLE", value="8 =x")["error"] is None
    assert os.environ["USDM_TEST_VARIABLE"] == "8 =x"
    getenv = steps_process.ctypes.CDLL(None).getenv
    getenv.restype = steps_process.ctypes.c_char_p
    assert getenv(b"USDM_TEST_VARIABLE") == b"8 =x"


# ---- hugepages


class Pool:
    """The kernel's folder of hugepages; what is written does not change what is read, so a test can have less given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.set(0, 0)

    def set(self, pages: int, free: int) -> None:
        (self.folder / "nr_hugepages").write_text(f"{pages}\n")
        (self.folder / "free_hugepages").write_text(f"{free}\n")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pool:
    monkeypatch.setattr(steps_process, "HUGEPAGES", str(tmp_path / "pool"))
    monkeypatch.setattr(steps_process, "QAT_FOLDER", str(tmp_path / "dev/hugepages/qat"))
    return Pool(tmp_path / "pool")


def test_hugepages_are_asked_for_and_counted(pool: Pool, tmp_path: Path) -> None:
    pool.set(8, 6)
    # A file that was "8\n" keeps its line break.
    found = answer("hugepages", pages=8)
    assert (found["error"], found["values"]) == (None, {"counts": {"total": 8, "free": 6}})
    assert (tmp_path / "dev/hugepages/qat").is_dir()
    assert answer("hugepages", pages=8)["error"] is None, "the folder may be there"


def test_without_the_folder_none_is_made(pool: Pool, tmp_path: Path) -> None:
    assert answer("hugepages", pages=0, folder=False)["values"] == {"counts": {"total": 0, "free": 0}}
    assert not (tmp_path / "dev").exists()


def test_what_is_written_is_the_number_of_pages(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(steps_process.pci, "write", lambda path, text: written.append((path, text)))
    pool.set(16, 16)
    assert answer("hugepages", pages=16)["error"] is None
    assert written == [(f"{pool.folder}/nr_hugepages", "16")]


def test_a_kernel_that_gives_fewer_is_told(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_process.pci, "write", lambda path, text: None)
    pool.set(5, 5)
    assert answer("hugepages", pages=8)["error"] == {
        "type": "NotSet",
        "message": "asked for 8 hugepages, the kernel has 5",
    }


def test_a_kernel_without_hugepages_of_2_mib_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(steps_process, "HUGEPAGES", str(tmp_path / "none"))
    monkeypatch.setattr(steps_process, "QAT_FOLDER", str(tmp_path / "qat"))
    error = answer("hugepages", pages=1)["error"]
    assert error == {"type": "NotSet", "message": "this kernel has no hugepages of 2 MiB"}
    assert not (tmp_path / "qat").exists()


# ---- locked memory


@pytest.mark.parametrize("limit", [64 * 1024, 0])
def test_memory_beyond_the_limit_cannot_be_locked_not_even_by_root(limit: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(ROOT), str(limit)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["answer"]["error"] is None
    assert found["limit"] == [limit, limit]
    assert not found["caps"]["CapEff:"] >> 14 & 1, "CAP_IPC_LOCK was given up"
    (own,) = re.findall(r"^CapEff:\s+(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found["caps"]["CapEff:"] == int(own, 16) & ~(1 << 14), "and nothing else"
    assert (found["small"], found["large"]) == (limit >= 4096, False)


def test_a_machine_whose_system_calls_are_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = os.uname_result(("Linux", "n", "r", "v", "sparc"))
    monkeypatch.setattr(steps_process.os, "uname", lambda: strange)
    with pytest.raises(NotSet, match="sparc"):
        steps_process._numbers()


# ---- nodes


def held(size: int, touched: int = 0) -> Context:
    """A context with a buffer `b`, whose first pages are there."""
    context = Context()
    address = own_memory.take(size, "anonymous")
    context.buffers["b"] = Buffer("b", "buffer", address, size)
    for offset in range(0, touched, 4096):
        own_memory.write(address + offset, b"x")
    return context


def nodes_of_the_host() -> set[int]:
    folder = Path("/sys/devices/system/node")
    return {int(path.name.removeprefix("node")) for path in folder.glob("node[0-9]*")} or {0}


def test_pages_that_are_there_have_a_node_and_others_none() -> None:
    context = held(8 * 4096, touched=3 * 4096)
    found = answer("nodes", context, buffer="b")
    if found["error"] is not None:
        pytest.skip(f"this host's kernel does not tell: {found['error']['message']}")
    assert found["values"]["absent"] == 5
    assert found["values"]["nodes"]
    assert set(found["values"]["nodes"]) <= nodes_of_the_host()
    assert answer("nodes", context, buffer="b", offset=2 * 4096, size=2 * 4096)["values"]["absent"] == 1
    assert answer("nodes", context, buffer="b", offset=4 * 4096)["values"] == {"nodes": [], "absent": 4}
    assert answer("nodes", context, buffer="b", size=1)["values"]["absent"] == 0


def test_a_kernel_that_refuses_to_tell_the_nodes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    context = held(4096)
    monkeypatch.setattr(steps_process, "_numbers", lambda: (0, 0, 1 << 20))  # no such system call
    error = answer("nodes", context, buffer="b")["error"]
    assert (error["type"], error["message"].startswith("move_pages: ")) == ("NotSet", True)


def test_nodes_of_memory_that_is_gone_are_not_asked_for() -> None:
    context = held(4096)
    context.buffer("b").gone = True
    assert answer("nodes", context, buffer="b")["error"]["type"] == "NotAccessible"
    assert answer("nodes", held(4096), buffer="b", offset=4096, size=1)["error"]["type"] == "NotAccessible"
