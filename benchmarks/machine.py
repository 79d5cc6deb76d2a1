"""What the operating system tells: cores, CPU time and memory of a process and its children. Linux only."""

import contextlib
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "Cores",
    "core_busy_seconds",
    "cpu_seconds",
    "describe",
    "on_core",
    "open_files",
    "process_tree",
    "raise_file_limit",
    "resident_kb",
    "speed",
]

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


class Cores:
    """The core of the servers and that of the load generator; the same one where there is only one."""

    def __init__(self) -> None:
        available = sorted(os.sched_getaffinity(0))
        self.server = available[0]
        self.client = available[1] if len(available) > 1 else available[0]

    @property
    def shared(self) -> bool:
        return self.server == self.client


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Move this thread to `core`; processes started meanwhile inherit that and stay."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_file_limit(wanted: int = 8192) -> int:
    """Raise the soft limit of open files towards `wanted`; return what it is now. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def process_tree(pid: int) -> list[int]:
    """Return `pid` and all its living descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
    return found


def _stat(pid: int) -> list[str]:
    # The second field is the command in parentheses and may hold anything; count from its last parenthesis.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pids: list[int]) -> float:
    """Return user plus system time of the processes, all threads included."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


def core_busy_seconds(core: int) -> float:
    """Return the time `core` has not been idle, time taken by other virtual machines included."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            return (user + nice + system + irq + softirq + steal) / _TICK
    raise LookupError(f"/proc/stat knows no core {core}")


def resident_kb(pids: list[int]) -> int:
    """Return the resident memory of the processes; pages shared between them are counted in each."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(_stat(pid)[21])
    return pages * _PAGE_KB


def open_files(pids: list[int]) -> int:
    """Return the number of open file descriptors of the processes."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return count


def speed(core: int) -> float:
    """Return how fast a piece of Python runs on `core` just now, in loops per microsecond of wall time."""
    with on_core(core):
        started = time.perf_counter()
        total = 0
        for number in range(200_000):
            total += number & 7
        return 0.2 / (time.perf_counter() - started)


def describe() -> dict[str, str | int]:
    """Return what a reader of the results needs to know of this machine, and nothing that names it."""
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }
