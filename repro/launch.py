"""Arms of one or many papers side by side: processes, a live overview, estimates; a failed arm stops no other."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from repro.config import ConfigError, Launch
from repro.experiment import run_arm, run_folder
from repro.policy import Policy
from repro.track import choose_tracker

if TYPE_CHECKING:
    from repro.config import RunConfig
    from repro.experiment import Paper

Load = Callable[[Path], "Paper"]


@dataclass(frozen=True)
class Task:
    """One arm with one seed."""

    script: Path
    paper: Paper
    config: RunConfig
    arm: str
    seed: int
    out: str

    @property
    def name(self) -> str:
        return f"{self.paper.slug}/{self.arm} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return run_folder(self.paper, self.config, self.arm, self.seed, self.out)

    def finished(self) -> bool:
        """Is there a result that needn't be made again?"""
        file = self.folder / "result.json"
        return file.exists() and json.loads(file.read_text())["status"] == "ok"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One process per GPU, or per core where there is none."""
    return torch.cuda.device_count() or cores()


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
    limit_memory(launch.memory_limit)
    Policy.merge = launch.merge
    choose_tracker(launch.track)


def run_tasks(tasks: Sequence[Task], load: Load, launch: Launch) -> list[dict | None]:
    """The result of each task, None for one that broke off; its error is told in one line when all are over.

    When a worker is killed (by the system, for its memory), its pool is lost; what didn't finish then runs one by one.
    """
    workers = min(launch.workers or default_workers(), len(tasks))
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
    gpus = torch.cuda.device_count()
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


# --- the overview -----------------------------------------------------------------------------------------------------


class Overview:
    """Lines that are drawn anew in place: one per running arm, and one for the whole. Silent where nobody looks."""

    def __init__(self, tasks: Sequence[Task]):
        self.tasks = tasks
        self.live = sys.stderr.isatty()
        self.began = time.time()
        self.lines = 0

    def __enter__(self) -> Overview:
        if self.live:
            os.environ["REPRO_QUIET"] = "1"  # the workers' lines would tear the picture apart
        return self

    def __exit__(self, *error) -> None:
        os.environ.pop("REPRO_QUIET", None)

    def show(self, done: int) -> None:
        """Draw the state of all arms; ``done`` of them are over."""
        if not self.live:
            return
        width = shutil.get_terminal_size().columns
        rows = [line for task in self.tasks if (line := self.state(task))]
        spent = datetime.timedelta(seconds=round(time.time() - self.began))
        rows.append(f"{done} of {len(self.tasks)} arms are over, {spent} so far")
        back = f"\x1b[{self.lines}A" if self.lines else ""
        text = "".join(f"\x1b[2K{row[: width - 1]}\n" for row in rows)
        print(back + text + "\x1b[0J", end="", file=sys.stderr, flush=True)
        self.lines = len(rows)

    def state(self, task: Task) -> str | None:
        """The last step of a running arm, None for one that hasn't begun or is over."""
        file = task.folder / "progress.txt"
        try:
            if (task.folder / "result.json").exists() or file.stat().st_mtime < self.began:
                return None
            return file.read_text()
        except FileNotFoundError:
            return None


# --- what would be run ------------------------------------------------------------------------------------------------


def plan(tasks: Sequence[Task], known: Sequence[dict], workers: int) -> tuple[list[list[str]], str]:
    """Header and one row per paper of what is left to do, with minutes and memory measured in ``known`` results."""
    rows = [["paper", "preset", "arms", "seeds", "left to run", "minutes", "GB a process"]]
    total, unknown = 0.0, 0
    for slug in dict.fromkeys(task.paper.slug for task in tasks):
        mine = [task for task in tasks if task.paper.slug == slug]
        left = [task for task in mine if not task.finished()]
        settings = json.loads(json.dumps(asdict(mine[0].config)))
        alike = [r for r in known if r["paper"] == slug and r["settings"].items() <= settings.items()]
        seconds = {arm: [r["seconds"] for r in alike if r["arm"] == arm] for arm in {t.arm for t in mine}}
        missing = sum(not seconds[task.arm] for task in left)
        cost = sum(sum(seconds[t.arm]) / len(seconds[t.arm]) for t in left if seconds[t.arm])
        peak = max((e["peak_memory_bytes"] for r in alike for e in r["phases"].values()), default=0)
        total, unknown = total + cost, unknown + missing
        arms, seeds = len({t.arm for t in mine}), len({t.seed for t in mine})
        time_ = "not measured" if missing else f"{cost / 60 / workers:.0f}"
        memory = f"{peak / 1e9:.1f}" if peak else "not measured"
        rows.append([slug, mine[0].config.preset, str(arms), str(seeds), f"{len(left)} of {len(mine)}", time_, memory])
    text = f"about {total / 60 / workers:.0f} minutes with {workers} side by side, as on the machine of the results"
    return rows, text + (f", and {unknown} arms that were never measured with these settings" if unknown else "")
