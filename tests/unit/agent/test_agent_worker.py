from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from agent_worker_process import WorkerProcess

from harness.agent import registry
from harness.scenario.args_device import HOST_KINDS
from harness.scenario.steps import KINDS


def test_the_kinds_are_those_of_scenarios() -> None:
    assert sorted(registry.KINDS) == sorted(set(KINDS) - set(HOST_KINDS))


def test_every_kind_is_found_in_its_module() -> None:
    for module, kinds in registry.MODULES.items():
        steps = __import__(f"harness.agent.{module}", fromlist=("STEPS",)).STEPS
        assert sorted(steps) == sorted(kinds)
        assert all(registry.find(kind) is steps[kind] for kind in kinds)


def test_greeting(worker: WorkerProcess) -> None:
    assert worker.greeting == {
        "nonce": "nonce1",
        "python": ".".join(map(str, sys.version_info[:3])),
        "kinds": list(registry.KINDS),
    }


def test_each_client_has_a_context_of_its_own_and_the_nonce_of_the_moment(worker: WorkerProcess, payload: Path) -> None:
    assert worker.ask("buffer", size=4096, **{"as": "a"})["error"] is None
    worker.leave()
    (payload / "nonce").write_text("nonce2")
    worker.connect()
    assert worker.greeting["nonce"] == "nonce2"
    assert worker.ask("fill", buffer="a", pattern=1)["error"]["type"] == "UnknownBuffer"
    assert worker.end() == (-signal.SIGKILL, b"", b"")


def test_a_client_that_goes_before_its_answer_is_no_matter(worker: WorkerProcess) -> None:
    worker.send(b'{"kind": "buffer", "args": {"as": "a", "size": 4096}}')
    worker.leave()
    worker.connect()
    assert worker.ask("buffer", size=4096, **{"as": "a"})["error"] is None
    assert worker.end() == (-signal.SIGKILL, b"", b"")


def test_everything_is_loaded_before_the_first_client(payload: Path) -> None:
    """A template is frozen then; what were loaded later each clone would load."""
    module = payload / "harness/agent/steps_device.py"
    seen = "import sys\nSTEPS['open'] = lambda c, a: Outcome(values={'modules': sorted(sys.modules)})\n"
    module.write_text(f"{module.read_text()}\n{seen}")
    worker = WorkerProcess(payload)
    loaded = worker.ask("open")["values"]["modules"]
    for package in ("usdm", "harness/agent"):
        for file in sorted((payload / package).glob("*.py")):
            name = f"{package.replace('/', '.')}.{file.stem}".removesuffix(".__init__")
            assert name in loaded or file.stem == "supervisor", name
    worker.end()


def test_code_that_cannot_be_loaded_ends_the_worker_with_its_traceback(payload: Path) -> None:
    (payload / "usdm/driver.py").write_text("def broken(:\n")
    worker = WorkerProcess(payload)
    assert worker.greeting == {}
    status, _, err = worker.wait()
    assert status == 1
    assert err.splitlines()[-1].startswith(b"SyntaxError")


def test_a_step_without_an_error(worker: WorkerProcess) -> None:
    answer = worker.ask("buffer", size=4096, **{"as": "a"})
    assert answer["seconds"] >= 0
    worker.ask("release", buffer="a")
    answer = worker.ask("buffer", size=4096, **{"as": "b"}) and worker.ask("release", buffer="b")
    assert {**answer, "seconds": 0} == {"returns": None, "error": None, "values": {}, "seconds": 0, "children": []}


def test_an_error_of_usdm_has_its_class_name_beside_the_return_value(worker: WorkerProcess) -> None:
    answer = worker.ask("map", address=0, offset=0, size=4096)
    assert answer["returns"] == 0
    assert answer["error"]["type"] == "NullAddress"
    answer = worker.ask("register_fd", fd="closed")
    assert (answer["returns"], answer["error"]["type"]) == (-1, "NotAContainer")
    answer = worker.ask("alloc", size=0, node=-1, align=4096, **{"as": "a"})
    assert (answer["returns"], answer["error"]["type"]) == (None, "BadSize")
    assert worker.ask("free", buffer="a", offset=0, zero=True)["error"]["type"] == "NullAddress"


def test_a_defect_is_told_with_its_traceback(worker: WorkerProcess) -> None:
    answer = worker.ask("fill", pattern="zero")
    assert answer["error"]["type"] == "InternalError"
    assert "KeyError: 'buffer'" in answer["error"]["message"]
    assert "steps_memory.py" in answer["error"]["message"]


def test_an_unknown_kind_is_refused(worker: WorkerProcess) -> None:
    assert worker.ask("dance")["error"]["type"] == "UnknownStep"


def test_a_line_that_is_no_request_is_told(worker: WorkerProcess) -> None:
    for line in (b"{", b"[]", b'{"kind": "map"}', b"\xff"):
        assert worker.raw(line)["error"]["type"] == "InternalError"
    assert worker.ask("buffer", size=4096, **{"as": "a"})["error"] is None


def test_what_a_step_prints_does_not_reach_the_answers(payload: Path) -> None:
    module = payload / "usdm/driver.py"
    module.write_text(module.read_text() + "\nimport os\nprint('said')\nos.system('echo so too')\n")
    worker = WorkerProcess(payload)
    assert worker.ask("unmap", address=4096, size=4096)["error"]["type"] == "NotMapped"
    status, out, err = worker.end()
    assert (status, out) == (-signal.SIGKILL, b"so too\n")
    assert b"said" in err


def test_imports_are_few(payload: Path) -> None:
    """What costs the guest time is not there before it is needed."""
    code = (
        f"import sys; sys.path.insert(0, {str(payload)!r})\n"
        "import harness.agent.context, harness.agent.execute, harness.agent.registry\n"
        "print(*(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"typing", "dataclasses", "pathlib", "ctypes", "traceback", "random", "asyncio"} & set(out.split())


# ---- fork


def _steps(*steps: tuple[str, dict[str, object]]) -> list[dict[str, object]]:
    return [{"kind": kind, "args": args} for kind, args in steps]


def test_a_child_runs_steps_on_a_copy(worker: WorkerProcess) -> None:
    worker.ask("buffer", size=8192, **{"as": "a"})
    worker.ask("fill", buffer="a", pattern=7)
    answer = worker.ask(
        "fork",
        steps=_steps(
            ("check", {"buffer": "a", "pattern": 7}),
            ("fill", {"buffer": "a", "pattern": "zero"}),
            ("buffer", {"as": "of_child", "size": 4096}),
            ("fill", {"buffer": "nobody", "pattern": 1}),
            ("fill", {"pattern": 1}),
        ),
    )
    assert answer["error"] is None
    kinds = [child["kind"] for child in answer["children"]]
    assert kinds == ["check", "fill", "buffer", "fill", "fill"]
    errors = [child["error"] and child["error"]["type"] for child in answer["children"]]
    assert errors == [None, None, None, "UnknownBuffer", "InternalError"]
    assert answer["children"][0]["values"]["equal"] is True
    assert worker.ask("check", buffer="a", pattern=7)["values"]["equal"] is True
    assert worker.ask("fill", buffer="of_child", pattern=1)["error"]["type"] == "UnknownBuffer"
    assert worker.end() == (-signal.SIGKILL, b"", b"")


def test_memory_of_usdm_is_not_inherited_and_usdm_refuses_the_child(worker: WorkerProcess) -> None:
    assert worker.ask("alloc", size=4096, **{"as": "m"})["returns"]
    worker.ask("fill", buffer="m", pattern=3)
    answer = worker.ask(
        "fork",
        steps=_steps(
            ("check", {"buffer": "m", "pattern": 3}),
            ("free", {"buffer": "m"}),
            ("alloc", {"as": "n", "size": 4096}),
        ),
    )
    errors = [child["error"]["type"] for child in answer["children"]]
    assert errors == ["NotAccessible", "ForkedChild", "ForkedChild"]
    assert worker.ask("check", buffer="m", pattern=3)["values"]["equal"] is True


def test_a_child_that_dies_is_told_with_what_it_did(payload: Path) -> None:
    module = payload / "harness/agent/steps_memory.py"
    module.write_text(module.read_text() + "\nimport os\nSTEPS['release'] = lambda c, a: os.kill(os.getpid(), 9)\n")
    worker = WorkerProcess(payload)
    answer = worker.ask("fork", steps=_steps(("buffer", {"as": "a", "size": 1}), ("release", {"buffer": "a"})))
    assert answer["error"]["type"] == "ChildFailed"
    assert answer["error"]["message"] == f"the child died of {signal.Signals.SIGKILL.name} after 1 of 2 steps"
    assert [child["kind"] for child in answer["children"]] == ["buffer"]
    worker.end()


def test_a_child_that_hangs_is_killed(payload: Path) -> None:
    module = payload / "harness/agent/steps_fork.py"
    module.write_text(module.read_text().replace("SECONDS = 120.0", "SECONDS = 0.3"))
    module = payload / "harness/agent/steps_memory.py"
    module.write_text(module.read_text() + "\nimport time\nSTEPS['release'] = lambda c, a: time.sleep(60)\n")
    worker = WorkerProcess(payload)
    answer = worker.ask("fork", steps=_steps(("release", {"buffer": "a"})))
    assert "was not done" in answer["error"]["message"]
    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
    assert not children.exists() or children.read_text() == ""
    worker.end()


def test_a_crash_leaves_its_place_on_stderr(worker: WorkerProcess) -> None:
    os.kill(worker.process.pid, signal.SIGSEGV)
    status, _, err = worker.wait()
    assert status == -signal.SIGSEGV
    assert b"Segmentation fault" in err
