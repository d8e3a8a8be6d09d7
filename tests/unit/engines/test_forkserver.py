"""The fork server and its launcher, without Ray: what is forked is what a plain interpreter would be, or is plain."""

import importlib.util
import os
import resource
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_pcasgd.engines.ray.forkserver import launcher, server
from ray_pcasgd.engines.ray.forkserver.allocator import allocator
from ray_pcasgd.engines.ray.forkserver.owner import command, forks
from ray_pcasgd.engines.ray.settings import RaySettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
WORKER = """
import os, signal, sys
print(os.getpid(), os.getppid(), *sys.argv[1:], os.environ.get("GIVEN"), flush=True)
if "wait" in sys.argv:
    signal.pause()
sys.exit(3)
"""
NAME = f"test-{os.getpid()}"


@pytest.fixture
def worker(tmp_path: Path) -> str:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return str(path)


@pytest.fixture
def number() -> Iterator[int]:
    """The process of a fork server that has imported nothing."""
    words = [sys.executable, server.__file__, NAME, str(os.getpid()), "1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        yield process.pid


def launched(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-I", "-S", launcher.__file__, NAME, *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | variables)


def said(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def bound(number: int) -> None:
    """Wait until the server's address is there."""
    while f"@{launcher.address_of(NAME)[1:]}" not in Path("/proc/net/unix").read_text():
        os.kill(number, 0)


def test_a_script_is_forked_with_its_arguments_variables_and_status(number: int, worker: str) -> None:
    bound(number)
    with launched(worker, "a b", GIVEN="1") as process:
        own, parent, *rest = said(process)
        assert (int(parent), rest) == (number, ["a", "b", "1"])
        assert int(own) not in (number, process.pid)
        assert process.wait() == 3


def test_what_cannot_be_the_same_in_a_forked_process_starts_plainly(number: int, worker: str) -> None:
    bound(number)
    with launched(worker, PYTHONHASHSEED="0") as process:
        assert said(process)[:2] == [str(process.pid), str(os.getpid())]
        assert process.wait() == 3


def test_a_forked_process_has_the_limits_of_its_launcher(number: int, tmp_path: Path) -> None:
    bound(number)
    script = tmp_path / "limits.py"
    script.write_text("import os, resource\nprint(os.getppid(), *resource.getrlimit(resource.RLIMIT_NOFILE))\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = soft - 1
    words = ["sh", "-c", f'ulimit -Sn {lower}; exec "$@"', "sh", sys.executable, "-I", "-S", launcher.__file__, NAME]
    with subprocess.Popen([*words, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert said(process) == [str(number), str(lower), str(hard)]
        assert process.wait() == 0


def test_it_starts_where_python_looks_for_nothing_beside_a_script(worker: str) -> None:
    words = [sys.executable, "-P", server.__file__, NAME, str(os.getpid()), "1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        bound(process.pid)
        with launched(worker, GIVEN="1") as started:
            assert said(started)[1] == str(process.pid)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_forked_process_ends_with_its_launcher(number: int, worker: str, sent: signal.Signals) -> None:
    bound(number)
    with launched(worker, "wait") as process:
        own = int(said(process)[0])
        ended = os.pidfd_open(own)
        process.send_signal(sent)
        assert process.wait() == (128 + sent if sent == signal.SIGTERM else -sent)
        assert _ended(ended)


def test_a_forked_process_outlives_the_server(number: int, worker: str) -> None:
    bound(number)
    with launched(worker, "wait") as process:
        own = int(said(process)[0])
        os.kill(number, signal.SIGKILL)
        os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
        assert process.poll() is None
        os.kill(own, signal.SIGTERM)
        assert process.wait() == 1  # nobody knows its status any more
    with launched(worker) as process:
        assert said(process)[0] == str(process.pid)


def _ended(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 60)[0])


def test_a_server_ends_with_its_driver_however_that_ends() -> None:
    """Also while it is importing."""
    code = (
        "import os, signal\nfrom ray_pcasgd.engines.ray.forkserver.owner import ForkServerProcess\n"
        "print(ForkServerProcess(1).number, flush=True)\ninput()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as driver:
        assert driver.stdin is not None
        ended = os.pidfd_open(int(said(driver)[0]))
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert _ended(ended)


KEEPING = """
import os, resource
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
found = [pages() for _ in range(4)]
library = "libjemalloc" in open("/proc/self/maps").read()
names = sorted(name for name in os.environ if name == "LD_PRELOAD" or "ALLOC" in name)
print(os.getppid(), library, max(found[1:]) < 1000, *names)
"""


@pytest.fixture
def without_an_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name == "LD_PRELOAD" or name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("without_an_allocator")
def test_forked_processes_keep_the_memory_that_they_free_and_start_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "keeping.py").write_text(KEEPING)
    variables = allocator()
    assert Path(variables["LD_PRELOAD"]).is_file()
    words = [sys.executable, server.__file__, NAME, str(os.getpid()), "1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=os.environ | variables) as process:
        bound(process.pid)
        with launched(str(tmp_path / "keeping.py")) as forked:
            assert said(forked) == [str(process.pid), "True", "True"]
        with launched(str(tmp_path / "keeping.py"), PYTHONHASHSEED="0") as plain:
            # How many pages it asks for is the system's choice: huge ones are few.
            assert said(plain)[:2] == [str(os.getpid()), "False"]


@pytest.mark.usefixtures("without_an_allocator")
def test_the_same_allocator_of_the_users_own_goes_on_to_processes_that_are_forked(tmp_path: Path) -> None:
    (tmp_path / "keeping.py").write_text(KEEPING)
    own = {name: value for name, value in allocator().items() if name in ("LD_PRELOAD", "MALLOC_CONF")}
    words = [sys.executable, server.__file__, NAME, str(os.getpid()), "1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=os.environ | own) as process:
        bound(process.pid)
        with launched(str(tmp_path / "keeping.py"), **own) as forked:
            assert said(forked) == [str(process.pid), "True", "True", "LD_PRELOAD", "MALLOC_CONF"]


@pytest.mark.parametrize("name", ["LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_CONF", "GLIBC_TUNABLES"])
def test_an_allocator_that_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    assert allocator() == {}


@pytest.mark.parametrize("place", ["nothing/ray", "with a space/ray", "with:colon/ray"])
def test_without_a_library_that_can_be_preloaded_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    package = tmp_path / place
    (package / "core").mkdir(parents=True)
    if place != "nothing/ray":
        (package / "core" / "libjemalloc.so").touch()
    (package / "__init__.py").touch()
    found = importlib.util.spec_from_file_location("ray", package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    assert allocator() == {}


def test_another_node_without_the_launcher_starts_the_interpreter_beside_ray(tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "python3" / "site-packages" / "ray"
    folder.mkdir(parents=True)
    (folder / "worker.py").write_text("import sys; print(sys.argv[1:], sys.executable)")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    interpreter = command("/nowhere/python", "/nowhere/launcher.py", "none")
    line = f"exec {interpreter} {shlex.quote(str(folder / 'worker.py'))} 'a b'"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert ended.stdout.split("] ") == ["['a b'", f"{tmp_path}/bin/python\n"]


def test_the_server_imports_torch_alone_and_uses_no_gpu() -> None:
    """In a process of its own: neither Ray, which reads its environment once, nor a thread comes through a fork."""
    code = (
        "import sys\nfrom ray_pcasgd.engines.ray.forkserver import server\n"
        "from ray_pcasgd.engines.ray.forkserver.owner import MODULES\n"
        "server.load(list(MODULES), '1')\nserver.require_fit()\n"
        "print(sys.modules['torch'].cuda.is_initialized(), *[m for m in MODULES if m not in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False"]


def test_agents_with_gpus_start_plainly() -> None:
    assert forks(RaySettings())
    assert not forks(RaySettings(gpus_per_agent=0.5))
    assert not forks(RaySettings(preload="never"))
