"""Random and hostile strings against the grader: `python -m repro.verify.fuzz --strings 200000 --seed 0`.

Every generated string is graded against a number that none of them equals, against itself plus one, or against
itself, in both roles. Checked: no crash, no pair past its time limit, no positive verdict where none is due, memory of
this process and of the workers within limits, no file made, no process left over. Workers are killed from outside all
along. The last line of output is JSON; the exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from repro.verify.extract import extract_answer
from repro.verify.grader import Grader
from repro.verify.outcome import Outcome
from repro.verify.pool import PATIENCE
from repro.verify.reading import read

UNRELATED = "918273645"  # the grammar makes no number with this value
OVERHEAD = 1.0  # seconds on top of the limit for ending a worker, on a busy machine

_ATOM_LIST = (
    "0 1 2 3 7 10 42 100 -1 -7 0.5 .25 3.14 1e5 1e999999 1/2 22/7 x y n a b ab e i \\pi \\infty \\theta NaN nan inf "
    "-inf Infinity \\alpha \\emptyset \\mathbb{R} 50\\% $5 5cm 30^\\circ 52_8 A5_{11} (C) \\text{yes} \\text{cm} Tom "
    "１２ ٣ ४ Ⅷ ½ ² ∞ √2 π − ± ×"
)
_ATOMS = _ATOM_LIST.split()
_WRAPPED = (
    "\\frac{%s}{%s}|\\sqrt{%s}|\\sqrt[%s]{%s}|(%s)^{%s}|%s^{%s}|%s^{%s^{%s}}|9^{9^{%s}}|%s!|((%s!)!)!|(%s)|[%s,%s]|"
    "(%s,%s)|(%s,%s]|\\{%s,%s\\}|%s,%s|%s+%s|%s-%s|%s*%s|%s \\cdot %s|%s/%s|\\binom{%s}{%s}|\\log_{%s} %s|\\sin %s|"
    "\\left(%s\\right)|\\text{%s}|%s \\pm %s|%s = %s|%s < %s|%s \\le %s|%s \\cup %s|\\boxed{%s}|$%s$|%s\\text{ cm}^2|"
    "|%s||\\begin{pmatrix}%s & %s\\\\ %s & %s\\end{pmatrix}|\\lfloor %s \\rfloor|\\overline{%s}|%s_{%s}|"
    "%s \\text{ and } %s|\\sum_{k=1}^{%s} %s|\\int_{%s}^{%s} x dx|"
    "\\operatorname{eye}(%s)|\\lim_{x\\to %s} %s|\\gcd(%s,%s)|%s\\%%"
)
_TEMPLATES = [template for template in _WRAPPED.split("|") if template]
_HOSTILE = [
    "__import__('os').system('touch made_by_fuzz')",
    "().__class__.__bases__[0].__subclasses__()",
    "open('made_by_fuzz','w').write('x')",
    "exec('import os')",
    "eval(compile('1','','eval'))",
    "lambda: 0",
    "9**9**9**9",
    "9^{9^{9^{9^{9}}}}",
    "((((((9!)!)!)!)!)!)!",
    "10^{10^{10^{10}}}",
    "\\binom{10^{9}}{10^{8}}",
    "\\binom{999999999}{99999999}",
    "\\sqrt{" * 300,
    "(" * 900,
    "{" * 500 + "}" * 500,
    "\\frac{" * 40 + "1" + "}{2}" * 40,
    "\\boxed{" * 200,
    "1" * 990,
    "9" * 1_000_000,
    "x+" * 500_000,
    "\x00",
    "1\x00",
    "\ud800",
    "\\" * 999,
    "\u202e1",
    "(x+1)^{400}-(x-1)^{400}",
    "\\sin " * 60 + "x",
    "x^{" * 11 + "2" + "}" * 11,
    "(a+b+c)^{60}/(a-b)^{60}",
    "\\sqrt{1+" * 11 + "2" + "}" * 11,
    "%s%s%s%n",
    "${jndi:ldap://localhost}",
    "'; DROP TABLE answers; --",
    "\\input{/etc/passwd}",
    "5 " + "a" * 58 + "!",
    "a" * 900 + "=5",
    "\\text{a}" * 100 + "!",
    "1" + ",111" * 200_000 + "1",
    "the answer is 5" + " " * 1_000_000 + "x",
    "answer: " * 100_000,
    "\\write18{touch made_by_fuzz}",
]


def make_string(rng: random.Random) -> str:
    """One string: a LaTeX expression, a damaged one, a hostile one, or noise."""
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(_HOSTILE)
    if kind < 0.3:
        return "".join(chr(_code_point(rng)) for _ in range(rng.randrange(40)))
    text = _expression(rng, rng.randrange(5))
    if kind < 0.65 and text:
        for _ in range(rng.randrange(1, 4)):
            position = rng.randrange(len(text) + 1)
            text = (
                text[:position] + rng.choice(["", "{", "}", "\\", "^", "_", " ", "(", "]", "é"]) + text[position + 1 :]
            )
    if kind > 0.97:
        text = f"{text} {rng.choice(_HOSTILE)[:500]}"
    return text


def _code_point(rng: random.Random) -> int:
    return rng.randrange(32, 127) if rng.random() < 0.7 else rng.randrange(0x11000)


def _expression(rng: random.Random, depth: int) -> str:
    if depth == 0:
        return rng.choice(_ATOMS)
    template = rng.choice(_TEMPLATES)
    holes = template.replace("%%", "").count("%s")
    return template % tuple(_expression(rng, rng.randrange(depth)) for _ in range(holes))


def make_pair(rng: random.Random) -> tuple[tuple[str, str], bool]:
    """A pair and whether it may be equal."""
    text = make_string(rng)
    kind = rng.randrange(4)
    if kind == 0:
        return (text, text), True
    other = UNRELATED if kind < 3 else f"({text})+1"
    return ((text, other) if rng.random() < 0.5 else (other, text)), False


class _Watch:
    """Times every pair that goes to a worker, and kills a worker now and then."""

    def __init__(self, grader: Grader, rng: random.Random) -> None:
        self.slowest, self.asked, self.killed, self.lost = 0.0, 0, 0, 0
        self._rng, self._pool, self._ask = rng, grader.pool, grader.pool.ask
        self._lock = threading.Lock()
        grader.pool.ask = self.ask

    def ask(self, answer: str, reference: str):
        start = time.monotonic()
        reply = self._ask(answer, reference)
        with self._lock:
            self.asked += 1
            # The start of a worker is not part of a pair's time; it shows as a death, not as slowness.
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.lost += reply.died
        return reply

    def kill_one(self) -> None:
        ids = self._pool.process_ids()
        if ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._rng.choice(ids), signal.SIGKILL)
                self.killed += 1


def _resident_mib(pid: int | str = "self") -> float:
    """Peak resident memory of a process in MiB; 0 where the platform does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def run(strings: int, seed: int, seconds: float = 3.0, megabytes: int = 1024, quiet: bool = True) -> dict:
    """Fuzz with that many strings; the result has `failures`, a list that should be empty."""
    rng = random.Random(seed)
    grader = Grader(seconds=seconds, megabytes=megabytes)
    watch = _Watch(grader, random.Random(seed))
    failures: list[str] = []
    outcomes: Counter[str] = Counter()
    start, before, worker_peak = time.monotonic(), _resident_mib(), 0.0
    folder = Path.cwd()
    files = {path.name for path in folder.iterdir()}
    done = batch = 0
    slowest_here = 0.0
    try:
        while done < strings:
            made = [make_pair(rng) for _ in range(min(1000, strings - done))]
            for pair, _ in made:
                begin = time.thread_time()
                extract_answer(max(pair, key=len), last_number=True)
                read(pair[0]), read(pair[1])
                slowest_here = max(slowest_here, time.thread_time() - begin)
            results = grader.explain_many([pair for pair, _ in made])
            for (pair, may_be_equal), (outcome, how) in zip(made, results, strict=True):
                outcomes[str(outcome)] += 1
                if outcome is Outcome.EQUAL and not may_be_equal:
                    failures.append(f"positive verdict: {pair!r:.300} ({how})")
            worker_peak = max([worker_peak, *map(_resident_mib, grader.pool.process_ids())])
            if batch % 4 == 0:
                watch.kill_one()
            batch += 1
            done += len(made)
            if not quiet:
                rate = done / (time.monotonic() - start)
                print(f"{done}/{strings} strings, {rate:.0f}/s, {(strings - done) / rate:.0f} s left", file=sys.stderr)
    finally:
        ids = grader.pool.process_ids()
        grader.close()
    if watch.slowest > 2 * PATIENCE * seconds + 10 * OVERHEAD:  # two attempts and the starts of two workers
        failures.append(f"a pair took {watch.slowest:.1f} s")
    if slowest_here > 20 * OVERHEAD:
        failures.append(f"reading a string took {slowest_here:.1f} s")
    if worker_peak > megabytes:
        failures.append(f"a worker used {worker_peak:.0f} MiB")
    failures += [f"file made: {path.name}" for path in folder.iterdir() if path.name not in files]
    failures += [f"process {pid} is still there" for pid in ids if Path(f"/proc/{pid}").exists()]
    return {
        "strings": done,
        "seed": seed,
        "outcomes": dict(outcomes),
        "to_workers": watch.asked,
        "slowest_pair_seconds": round(watch.slowest, 3),
        "slowest_reading_seconds": round(slowest_here, 3),
        "workers_killed_from_outside": watch.killed,
        "verdicts_lost": watch.lost,
        "parent_growth_mib": round(_resident_mib() - before, 1),
        "worker_peak_mib": round(worker_peak, 1),
        "seconds": round(time.monotonic() - start, 1),
        "failures": failures[:20],
        "failed": len(failures),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m repro.verify.fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--strings", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where a file made by a hostile string would appear
        try:
            result = run(options.strings, options.seed, quiet=False)
        finally:
            os.chdir(home)
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
