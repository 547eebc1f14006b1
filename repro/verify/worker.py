"""A worker process: reads pairs from standard input, one JSON list a line, and answers on standard output.

For `[answer, reference]` it writes one line as soon as each step is done, so that the parent knows which one did not
end: "reference" and "answer" (each after a verdict whether it is readable), then the verdict on equality.

Isolation: nothing can be written, opened for writing, started or connected from here (an audit hook, and resource
limits where the platform has them), no text can be compiled, memory is limited, and the kernel's timer ends the process
should the parent be gone. Run it as `python -m repro.verify.worker SECONDS MEGABYTES`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TextIO

# Audit events that no comparison needs. "compile" of source text is what eval, exec, sympify and parse_expr do; SymPy
# itself compiles one function from a template of its own, the product of monomials.
_COMPILES = "sympy.polys.monomials"
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
)
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "os.kill",
)


def refuse(event: str, arguments: tuple) -> None:
    """Audit hook: raise `PermissionError` for anything that a comparison has no business doing."""
    if event == "compile":
        # Importing a module compiles its file; only text from nowhere is refused.
        from_file = arguments[0] is None or os.path.isabs(str(arguments[1]))
        if not from_file and sys._getframe(1).f_globals.get("__name__") != _COMPILES:
            raise PermissionError("a worker compiles no text")
    elif event == "open":
        flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError("a worker writes no file")
    elif event.startswith(_FORBIDDEN) or event.startswith(_CHANGES):
        raise PermissionError(f"a worker does not use {event}")


def limit_resources(megabytes: int) -> None:
    """Limits that the kernel keeps, each one where the platform has it (macOS ignores the limit on memory)."""
    try:
        import resource
    except ImportError:  # not a POSIX system; the audit hook and the time limit remain
        return
    size = megabytes * 2**20
    for name, value in (("AS", size), ("DATA", size), ("FSIZE", 0), ("NPROC", 0), ("CORE", 0)):
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is None:
            continue
        try:
            hard = resource.getrlimit(number)[1]
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError):
            continue


def serve(requests: TextIO, replies: TextIO, seconds: float) -> None:
    """Answer requests until the input ends."""
    from repro.verify import compare, symbolic
    from repro.verify.reading import read

    def reply(step: str, verdict: bool) -> None:
        replies.write(json.dumps([step, verdict]) + "\n")
        replies.flush()

    def readable(text: str) -> bool:
        form = read(text)
        if form is None:
            return False
        try:
            symbolic.check(form)
        except Exception:  # whatever SymPy raises on an expression, the expression has no usable value
            return False
        return True

    def equal(answer: str, reference: str) -> bool:
        # Always in the same order, so that the verdict cannot depend on it.
        first, second = sorted((answer, reference))
        try:
            return compare.same(read(first), read(second), symbolic.same_value, symbolic.same_relation)
        except Exception:  # no proof of equality
            return False

    for line in requests:
        answer, reference = json.loads(line)
        if hasattr(signal, "setitimer"):
            # The default action ends the process even inside one long operation on big integers.
            signal.setitimer(signal.ITIMER_PROF, seconds + 2)  # of CPU time, as the parent's limit
        good = [readable(reference)]
        reply("reference", good[0])
        good.append(readable(answer))
        reply("answer", good[1])
        reply("equal", all(good) and equal(answer, reference))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers itself
    requests, replies = sys.stdin, sys.stdout
    sys.stdout = sys.stderr  # a stray print must not look like a reply
    sys.dont_write_bytecode = True
    # SymPy imports some modules on first use; one of them makes its constants with `sympify`. Do it before that is
    # refused.
    import sympy.physics.units  # noqa: F401

    from repro.verify import symbolic

    symbolic.is_zero(symbolic.value_of(r"\sqrt{3+2\sqrt{2}}-\sqrt{2}-1+\sin{x}^{2}+\cos{x}^{2}-1"))
    limit_resources(megabytes)
    sys.addaudithook(refuse)
    replies.write('["ready", true]\n')
    replies.flush()
    serve(requests, replies, seconds)


if __name__ == "__main__":
    main()
