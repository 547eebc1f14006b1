"""Arms of one or many papers side by side in processes; a failed arm stops no other."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from repro.arm import run_arm
from repro.config import ConfigError, Launch
from repro.launch.overview import Overview
from repro.launch.task import Task
from repro.launch.track import choose_tracker
from repro.model.policy import Policy, pick_device
from repro.model.sampling import Decoding

if TYPE_CHECKING:
    from repro.paper import Paper

Load = Callable[[Path], "Paper"]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """One process per GPU, or per core where there is none or ``device`` is "cpu"."""
    return (device != "cpu" and torch.cuda.device_count()) or cores()


def limit_memory(gigabytes: float) -> None:
    """Let this process use so much GPU memory and no more; 0 is no limit. Raises ConfigError where that can't be."""
    if not gigabytes:
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"--memory-limit {gigabytes:g}: no GPU was found")
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if not 0 < gigabytes * 2**30 <= total:
        raise ConfigError(f"--memory-limit {gigabytes:g}: the GPU has {total / 2**30:.0f} GB")
    torch.cuda.set_per_process_memory_fraction(gigabytes * 2**30 / total)


def prepare(launch: Launch) -> None:
    """What holds for all arms of this process."""
    Policy.on = launch.device
    Decoding.sampler = launch.sampler
    pick_device()
    limit_memory(launch.memory_limit)
    Policy.merge = launch.merge
    choose_tracker(launch.track)


def run_tasks(tasks: Sequence[Task], load: Load, launch: Launch) -> list[dict | None]:
    """The result of each task, None for one that broke off; its error is told in one line when all are over.

    When a worker is killed (by the system, for its memory), its pool is lost; what didn't finish then runs one by one.
    """
    workers = min(launch.workers or default_workers(launch.device), len(tasks))
    prepare(launch)
    if workers <= 1:
        return [_guarded(task) for task in tasks]
    with Overview(tasks) as overview:
        made = _in_processes(tasks, workers, load, overview.show, launch)
        for i, one in enumerate(made):
            if isinstance(one, BrokenProcessPool):
                (made[i],) = _in_processes([tasks[i]], 1, load, lambda _: None, launch)
    for task, one in zip(tasks, made, strict=True):
        if isinstance(one, BaseException):
            tell(task, one)
    return [one if isinstance(one, dict) else None for one in made]


def _in_processes(
    tasks: Sequence[Task], workers: int, load: Load, show: Callable[[int], None], launch: Launch
) -> list[dict | BaseException]:
    gpus = 0 if launch.device == "cpu" else torch.cuda.device_count()
    threads = max(1, cores() // workers)
    context = get_context("spawn")
    turn = context.Value("i", 0)
    executor = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(), threads, gpus, turn, launch))
    futures = [
        executor.submit(_work, load, task.script, asdict(task.config), task.arm, task.seed, task.out) for task in tasks
    ]
    try:
        open_ones = set(futures)
        while open_ones:
            _, open_ones = wait(open_ones, timeout=1)
            show(len(futures) - len(open_ones))
        return [future.exception() or future.result() for future in futures]
    except BaseException:
        for child in active_children():  # their finished steps are saved
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _guarded(task: Task) -> dict | None:
    try:
        return run_arm(task.paper, task.config, task.arm, task.seed, task.out)
    except Exception as error:
        tell(task, error)
        return None


def tell(task: Task, error: BaseException) -> None:
    """One line for the user, the rest into the run's folder where that can be written."""
    text = f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[-1]}"
    with contextlib.suppress(OSError):
        task.folder.mkdir(parents=True, exist_ok=True)
        file = task.folder / "error.txt"
        file.write_text("".join(traceback.format_exception(error)))
        text += f" ({file})"
    print(f"repro: {task.name} broke off: {text}", file=sys.stderr, flush=True)


def _start_worker(parent: int, threads: int, gpus: int, turn, launch: Launch) -> None:
    torch.set_num_threads(threads)
    if gpus:
        with turn.get_lock():
            torch.cuda.set_device(turn.value % gpus)
            turn.value += 1
    prepare(launch)

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _work(load: Load, script: Path, settings: dict, arm: str, seed: int, out: str) -> dict:
    paper = load(script)
    return run_arm(paper, paper.config(**settings), arm, seed, out)
