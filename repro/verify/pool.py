"""Worker processes with a hard limit on the CPU time for each pair.

CPU time, because a verdict must not depend on what else the machine does. A pair that gets no CPU time is given up
after `PATIENCE` times its limit by the clock.

Workers are plain Python processes behind pipes (`worker.py`). That works from any thread, in a forked or
spawned process, in a notebook, and where `__main__` cannot be imported, which `multiprocessing` does not.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import psutil

# Like `python -m repro.verify.worker`, but without the current folder on the path: nothing that happens to lie there
# may be imported instead of the real module.
_START = """
import sys
root = sys.argv.pop(1)
sys.path[:] = [folder for folder in sys.path if folder]
root in sys.path or sys.path.insert(0, root)
from repro.verify.worker import main
main()
"""
STARTUP_SECONDS = 120.0  # importing SymPy on a busy machine; not part of a pair's limit
PATIENCE = 10  # by the clock: this many times the limit on CPU time, should a worker hang or the machine be overloaded
_ROOT = str(Path(__file__).resolve().parents[2])


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class WorkerDiedError(Exception):
    """The worker ended although nobody here ended it."""


@dataclass
class Reply:
    """What a worker said about a pair before it finished or its time was up; None for steps that did not end."""

    reference: bool | None = None
    answer: bool | None = None
    equal: bool | None = None
    died: bool = False  # the worker ended by itself or was ended from outside


class Worker:
    """One process. Not safe for use by two threads at a time; the pool sees to that."""

    def __init__(self, seconds: float, megabytes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-c", _START, _ROOT, str(seconds), str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Fixed hashes: SymPy orders some terms by hash, and a verdict must not depend on the run.
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        self.ready = False
        self._received = b""

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self) -> None:
        """Block until the worker has imported what it needs. Raises `WorkerDiedError`."""
        if not self.ready:
            if self._line(math.inf, time.monotonic() + STARTUP_SECONDS) is None:
                raise WorkerDiedError("the worker did not start")
            self.ready = True

    def send(self, answer: str, reference: str) -> None:
        try:
            self.process.stdin.write(json.dumps([answer, reference]).encode() + b"\n")
        except OSError:
            raise WorkerDiedError("the worker is gone") from None

    def cpu_seconds(self) -> float:
        """The CPU time that the process has used so far. Raises `WorkerDiedError`."""
        try:
            used = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            raise WorkerDiedError("the worker is gone") from None
        return used.user + used.system

    def receive(self, reply: Reply, cpu_limit: float, deadline: float) -> bool:
        """Fill in `reply` until it is complete (True) or a limit is reached (False): CPU time or the clock."""
        while reply.equal is None:
            line = self._line(cpu_limit, deadline)
            if line is None:
                return False
            step, verdict = json.loads(line)
            setattr(reply, step, verdict)
        return True

    def _line(self, cpu_limit: float, deadline: float) -> bytes | None:
        poll = select.poll()  # select.select cannot take a descriptor above 1023
        poll.register(self.process.stdout, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._received:
            # One thread uses at most as much CPU time as passes by the clock, so the limit is not missed.
            remaining = min(cpu_limit - self.cpu_seconds(), deadline - time.monotonic())
            if remaining <= 0:
                return None
            if not poll.poll(remaining * 1000):
                continue
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                raise WorkerDiedError("the worker ended")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def end(self) -> None:
        self.process.kill()
        self.close_pipes()
        self.process.wait()

    def close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class Pool:
    """At most `size` pairs at a time, each for `seconds` of CPU time at most, in a process of at most `megabytes`.

    Processes are started when they are needed. When a pair takes suspiciously long, a spare one is started, so that
    ending the slow one costs the pairs behind it no start-up time.
    """

    def __init__(self, size: int, seconds: float, megabytes: int) -> None:
        self.size, self.seconds, self.megabytes = size, seconds, megabytes
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._permits = threading.Semaphore(self.size)
        self._idle: deque[Worker] = deque()
        self._busy: set[Worker] = set()

    def forget(self) -> None:
        """In a forked child: the workers belong to the parent; drop this copy of their pipes and start afresh."""
        for worker in [*self._idle, *self._busy]:
            worker.close_pipes()
            worker.process.returncode = 0  # nothing to wait for, it is not our child
        self._reset()

    def ask(self, answer: str, reference: str) -> Reply:
        """What a worker finds out about the pair within its limits. Blocks; safe to call from any thread.

        A worker that dies for another reason is replaced and its pair tried once more. Raises `RuntimeError` if
        workers do not even start.
        """
        with self._permits:
            for _ in range(2):
                worker = self._ready_worker()
                reply = Reply()
                try:
                    if self._attempt(worker, answer, reference, reply):
                        self._give_back(worker)
                        worker = None
                    break
                except WorkerDiedError:
                    reply.died = True
                finally:
                    if worker is not None:
                        self._drop(worker)
        return reply

    def _ready_worker(self) -> Worker:
        for _ in range(3):
            worker = self._take()
            try:
                worker.wait_until_ready()
                return worker
            except WorkerDiedError:
                self._drop(worker)
        raise RuntimeError("the grader's workers do not start; `python -m repro.verify.worker 3 1024` shows why")

    def _attempt(self, worker: Worker, answer: str, reference: str, reply: Reply) -> bool:
        used = worker.cpu_seconds()
        worker.send(answer, reference)
        deadline = time.monotonic() + PATIENCE * self.seconds
        if worker.receive(reply, used + self.seconds / 3, deadline):
            return True
        self._start_spare()
        return worker.receive(reply, used + self.seconds, deadline)

    def _take(self) -> Worker:
        with self._lock:
            # Those that are still starting come last.
            for worker in sorted(self._idle, key=lambda worker: worker.ready, reverse=True):
                self._idle.remove(worker)
                if worker.alive():
                    self._busy.add(worker)
                    return worker
                worker.end()
            worker = Worker(self.seconds, self.megabytes)
            self._busy.add(worker)
            return worker

    def _start_spare(self) -> None:
        with self._lock:
            if len(self._idle) < self.size:
                self._idle.append(Worker(self.seconds, self.megabytes))

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            self._idle.append(worker)
            surplus = self._idle.popleft() if len(self._idle) + len(self._busy) > self.size + 1 else None
        if surplus is not None:
            surplus.end()

    def _drop(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
        worker.end()

    def process_ids(self) -> list[int]:
        """The ids of the running workers, for tests and monitoring."""
        with self._lock:
            return [worker.process.pid for worker in [*self._idle, *self._busy]]

    def close(self) -> None:
        """End all workers. The pool can be used again afterwards."""
        with self._lock:
            workers = [*self._idle, *self._busy]
            self._idle.clear()
            self._busy.clear()
        for worker in workers:
            worker.end()
