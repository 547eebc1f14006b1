"""Math-Verify by itself, for comparison in the benchmark: its `parse` and `verify` in the main thread of one process.

Reads pairs from standard input, one JSON list a line, and answers each with `[verdict, seconds]`. It is a process of
its own because some pairs hang it for ever; the benchmark then ends it and starts another one. Unlike the grader it
lets Math-Verify execute text (`parse_expr`), so it is only for files of pairs that can be trusted.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from repro.verify.worker import limit_resources


def main() -> None:
    from math_verify import parse, verify

    limit_resources(4096)
    logging.disable(logging.CRITICAL)
    replies = sys.stdout
    sys.stdout = sys.stderr
    verify(parse(r"\\boxed{1}"), parse(r"\\boxed{1}"))  # compiles its patterns
    replies.write("[]\n")
    replies.flush()
    for line in sys.stdin:
        answer, reference = json.loads(line)
        start = time.perf_counter()
        try:
            verdict = bool(verify(parse(rf"\boxed{{{reference}}}"), parse(rf"\boxed{{{answer}}}")))
        except Exception:  # its failures count as "not equal"
            verdict = False
        replies.write(json.dumps([verdict, time.perf_counter() - start]) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
