"""Arms of one or many papers side by side in processes; a failed arm stops no other."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from repro.config import ConfigError, Launch
from repro.launch.overview import Overview
from repro.launch.storage import RunFolderInUse
from repro.launch.task import Task
from repro.launch.track import choose_tracker
from repro.model.policy import Policy, pick_device
from repro.model.sampling import Decoding

Work = Callable[..., dict]


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


def run_tasks(tasks: Sequence[Task], work: Work, launch: Launch) -> list[dict | None]:
    """``work(*task.job)`` of each task, None for one that broke off; its error is told in one line when all are over.

    A task of a folder that an earlier one has made is that one's. When a worker is killed (by the system, for its
    memory), its pool is lost; what didn't finish then runs one by one.
    """
    once = list({task.folder: task for task in reversed(tasks)}.values())[::-1]
    workers = min(launch.workers or default_workers(launch.device), len(once))
    prepare(launch)
    if workers <= 1:
        made = {task.folder: _guarded(task, work) for task in once}
        return [made[task.folder] for task in tasks]
    with Overview(once) as overview:
        found = _in_processes(once, workers, work, overview.show, launch)
        for task in once:
            if isinstance(found[task.folder], BrokenProcessPool):
                found |= _in_processes([task], 1, work, lambda _: None, launch)
    for task in once:
        if isinstance(error := found[task.folder], BaseException):
            tell(task, error)
    return [one if isinstance(one := found[task.folder], dict) else None for task in tasks]


def _in_processes(
    tasks: Sequence[Task], workers: int, work: Work, show: Callable[[int], None], launch: Launch
) -> dict[Path, dict | BaseException]:
    gpus = 0 if launch.device == "cpu" else torch.cuda.device_count()
    threads = max(1, cores() // workers)
    context = get_context("spawn")
    turn = context.Value("i", 0)
    executor = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(), threads, gpus, turn, launch))
    waiting, running, made = list(tasks), {}, {}
    try:
        while waiting or running:
            late = {task.folder for task in waiting} | {task.folder for task in running.values()}
            for task in [task for task in waiting if task.needs not in late]:
                waiting.remove(task)
                running[executor.submit(work, *task.job)] = task
            over, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            for future in over:
                made[running.pop(future).folder] = future.exception() or future.result()
            show(len(made))
        return made
    except BaseException:
        for child in active_children():  # their finished steps are saved
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _guarded(task: Task, work: Work) -> dict | None:
    try:
        return work(*task.job)
    except Exception as error:
        tell(task, error)
        return None


def tell(task: Task, error: BaseException) -> None:
    """One line for the user, the rest into the run's folder where that can be written and is this process's."""
    if isinstance(error, RunFolderInUse):
        print(f"repro: {task.name} is left alone: {error}", file=sys.stderr, flush=True)
        return
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
