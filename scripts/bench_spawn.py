# ruff: noqa: INP001 - a part of scripts/bench, not a module of a package
"""Runs one command and prints what it took: bench_spawn.py TIMEOUT WORD...

Exec does not reset a process's peak of memory: a child begins with what its parent takes. So this is a process of its own,
which imports next to nothing (python3 -I -S). It prints the seconds from exec to exit, those of CPU time, the peak of memory
in KiB, whether the command was stopped after TIMEOUT seconds, and its status.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time


def main() -> None:
    """Run it to its end."""
    timeout, words = float(sys.argv[1]), sys.argv[2:]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        become(words, writer)
    os.close(writer)
    stopped = not select.select([os.pidfd_open(child)], [], [], timeout)[0]
    if stopped:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    end = time.perf_counter()
    start, before = map(float, os.read(reader, 100).split())
    cpu = usage.ru_utime + usage.ru_stime - before  # of the command and of all that it waited for
    print(end - start, cpu, usage.ru_maxrss, int(stopped), os.waitstatus_to_exitcode(status))  # noqa: T201 - the result


def become(words: list[str], clock: int) -> None:
    """Turn this forked child into the command; tell the time of the start, and the CPU time until then."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.write(clock, f"{time.perf_counter()} {time.process_time()}".encode())
        os.execv(words[0], words)  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(127)  # as shells have it


if __name__ == "__main__":
    main()
