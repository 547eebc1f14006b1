"""The grader: outcomes, extraction, safety, isolation, batches. None of these tests needs data from outside."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro import verify
from repro.verify import Grader, Outcome, compare, equivalent, extract_answer, fuzz, grade, grade_many, latex
from repro.verify.cli import main
from repro.verify.grader import default_grader
from repro.verify.pairs import load_pairs, summarise
from repro.verify.reading import read

PACKAGE = Path(verify.__file__).parent
PAIRS = Path(__file__).parent / "data" / "verify_pairs.jsonl"
WORKER_PAIR = (r"\sqrt{8}", r"2\sqrt{2}")  # equal, and only a worker can tell


@pytest.fixture(scope="module")
def pairs():
    return load_pairs(PAIRS)


# --- outcomes ---------------------------------------------------------------------------------------------------


def test_file_of_pairs(pairs):
    assert len(pairs) >= 400
    assert sum(not pair.equal for pair in pairs) >= len(pairs) / 2
    outcomes = grade_many([(pair.answer, pair.reference) for pair in pairs])
    wrong = [pair for pair, out in zip(pairs, outcomes, strict=True) if pair.equal != (out is Outcome.EQUAL)]
    summary = summarise(pairs, outcomes)
    assert summary["precision"] == 1.0, wrong
    assert summary["recall"] >= 0.97, wrong


def test_symmetry(pairs):
    forth = grade_many([(pair.answer, pair.reference) for pair in pairs])
    back = grade_many([(pair.reference, pair.answer) for pair in pairs])
    assert [out is Outcome.EQUAL for out in forth] == [out is Outcome.EQUAL for out in back]
    units = ["5, 5 cm", "5 cm, 5 kg", "5, 5 kg", "5 kg, 5 cm", "5, 5"]  # leaving out units is not transitive
    assert all(equivalent(a, b) == equivalent(b, a) and grade(a, b) == grade(b, a) for a in units for b in units)
    for pair in pairs[::10]:
        assert equivalent(pair.answer, pair.reference) == equivalent(pair.reference, pair.answer) == pair.equal


def test_the_four_outcomes():
    assert grade("1/2", "0.5") is Outcome.EQUAL
    assert grade("1/3", "0.5") is Outcome.DIFFERENT
    assert grade(None, "0.5") is Outcome.UNREADABLE_ANSWER
    assert grade("", "0.5") is Outcome.UNREADABLE_ANSWER
    assert grade(r"\frac{1", r"\sqrt{2}") is Outcome.UNREADABLE_ANSWER
    assert grade("0.5", r"\frac{1}{") is Outcome.UNREADABLE_REFERENCE
    assert grade("0.5", r"\frac{1}{0}") is Outcome.UNREADABLE_REFERENCE
    assert grade(None, "") is Outcome.UNREADABLE_REFERENCE
    assert Outcome.EQUAL == "equal" and json.dumps(Outcome.EQUAL) == '"equal"'


def test_exact_values():
    assert not equivalent(r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}")
    assert not equivalent(r"\frac{1}{2004!}", r"\frac{1}{2006!}")
    assert equivalent(r"\frac{1}{2^{99}}", r"2^{-99}")
    assert not equivalent("0." + "3" * 50, "1/3")
    assert not equivalent(r"\sqrt{2}+10^{-60}", r"\sqrt{2}")


def test_batch_keeps_order_and_decides_repeated_pairs_once():
    batch = [("1", "1"), WORKER_PAIR, ("2", "1"), WORKER_PAIR, (None, "1"), ("1", "{")] * 3
    names = ["equal", "equal", "different", "equal", "unreadable_answer", "unreadable_reference"] * 3
    assert grade_many(batch) == names
    assert grade_many([]) == []


@settings(max_examples=300, deadline=None)
@given(st.integers(), st.integers())
def test_integers(a, b):
    assert equivalent(str(a), str(b)) == (a == b)
    assert equivalent(f"{a:,}", rf"\boxed{{{a}}}")


@settings(max_examples=300, deadline=None)
@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_fractions(a, b):
    left, right = rf"\frac{{{a.numerator}}}{{{a.denominator}}}", f"{b.numerator}/{b.denominator}"
    assert equivalent(left, f"{a.numerator * 3}/{a.denominator * 3}")
    assert equivalent(left, right) == (a == b)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60), st.text(alphabet=r"0123456789\{}()[]^_+-*/.,!=<>% abxfrcsqt$", max_size=40))
def test_reading_is_total_and_comparison_symmetric(noise, mathematical):
    for text in (noise, mathematical):
        if "918273645" in text:
            continue  # the number that stands below for "something else"
        form = read(text)
        extract_answer(text, last_number=True)
        if form is not None:
            assert compare.same(form, read("918273645")) is False
            assert compare.same(read("918273645"), form) is False


def _arithmetic(rng: random.Random, depth: int) -> tuple[str, Fraction]:
    """A random LaTeX expression and its value, worked out here and not by a parser."""
    if depth == 0:
        number = rng.randrange(1, 12)
        return (f"{number}.5", Fraction(2 * number + 1, 2)) if rng.random() < 0.2 else (str(number), Fraction(number))
    (a, x), (b, y) = _arithmetic(rng, rng.randrange(depth)), _arithmetic(rng, rng.randrange(depth))
    choices = [
        (f"({a})+({b})", x + y),
        (f"{a}-({b})", x - y),
        (f"({a})({b})", x * y),
        (rf"({a})\cdot({b})", x * y),
        (rf"\left({a}\right) \times \left({b}\right)", x * y),
        (rf"-({a})", -x),
        (rf"({a})^{{2}}", x * x),
        (rf"({a})^3({b})", x**3 * y),
    ]
    if y:
        choices += [(rf"\frac{{{a}}}{{{b}}}", x / y), (rf"({a})/({b})", x / y), (rf"({b})^{{-1}}({a})", x / y)]
        choices += [(rf"7\cdot\frac{{{a}}}{{{b}}}", 7 * x / y), (rf"\frac{{{a}}}{{{b}}}(5)", 5 * x / y)]
    return rng.choice(choices)


def test_random_arithmetic_against_our_own_values():
    rng = random.Random(0)
    cases = [_arithmetic(rng, 3) for _ in range(80)]
    right = grade_many([(latex, f"{value.numerator}/{value.denominator}") for latex, value in cases])
    wrong = grade_many([(latex, f"{value.numerator + 1}/{value.denominator}") for latex, value in cases])
    assert [case for case, outcome in zip(cases, right, strict=True) if outcome is not Outcome.EQUAL] == []
    assert [case for case, outcome in zip(cases, wrong, strict=True) if outcome is Outcome.EQUAL] == []


# --- extraction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{12}.", "12"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed{\text{a } \boxed{3}}", "3"),
        ("16 - 4 = <<16-4=12>>12\n#### 12", "12"),
        ("#### 1,234\n", "1,234"),
        ("The final answer is 42.", "42"),
        ("The final answer is $x^2$. I hope it is correct.", "$x^2$"),
        ("Final Answer: The final answer is $5$. I hope it is correct.", "$5$"),
        ("**Answer:** 3.5", "3.5"),
        ("answer: $5", "$5"),
        ("So the answer is 7 apples. That was easy.", "7 apples"),
        ("Answer: 1\nAnswer: 2", "2"),
        ("I have 5 apples", None),
        ("", None),
        (r"\boxed{}", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I have 5 apples and 7", "7"),
        ("it costs $1,234.50.", "$1,234.50"),
        ("from 10-5", "5"),
        ("the change is -5", "-5"),
        ("about 3/4 of it", "3/4"),
        ("that is 25%", "25%"),
        ("only .5", ".5"),
        ("no number", None),
        (r"\boxed{3} of 8", "3"),
    ],
)
def test_last_number_where_the_caller_allows_it(text, answer):
    assert extract_answer(text, last_number=True) == answer


# --- safety -----------------------------------------------------------------------------------------------------


def test_no_text_is_executed():
    """No call of eval, exec, compile, sympify, parse_expr, S(...) or Number(...) in the package.

    Math-Verify's own calls are guarded otherwise. Its `parse` hands plain expressions to `parse_expr`; the package does
    not use it. The LaTeX parser behind it, `latex2sympy2_extended`, has one place that executes text: `parse_number`
    gives the literal to `sympy.Number`, which calls `sympify`, `parse_expr` and `eval`. `symbolic._Parser` overrides
    it by a checked pattern of digits. `latex.is_safe` lets only known commands and characters through to the parser,
    and in the worker an audit hook refuses to compile text at all (`test_a_worker_refuses`).
    """
    forbidden = {
        "eval",
        "exec",
        "compile",
        "sympify",
        "parse_expr",
        "__import__",
        "S",
        "Number",
        "nsimplify",
        "latex2sympy",
    }
    found = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                owner = getattr(getattr(node.func, "value", None), "id", "")
                allowed = (owner, name) == ("re", "compile") or (owner == "" and name == "Number")  # our own class
                if name in forbidden and not allowed:
                    found.append(f"{path.name}:{node.lineno} {name}")
            if isinstance(node, (ast.Import, ast.ImportFrom)) and path.name != "math_verify_alone.py":
                modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                found += [f"{path.name}:{node.lineno} {name}" for name in modules if name.startswith("math_verify")]
    assert found == []
    source = (PACKAGE / "symbolic.py").read_text(encoding="utf-8")
    assert "Number(" not in source.replace("Number | Symbolic", "")  # there the name would be SymPy's


def test_a_worker_refuses_text_files_processes_and_sockets():
    code = """
import os, socket, subprocess, sys
from repro.verify import symbolic, worker
import sympy.physics.units
worker.limit_resources(1024)
sys.addaudithook(worker.refuse)
def sympify(): sympy.sympify("1+1")
def number(): sympy.Number("12")
def text(): eval("1+1")
def write(): open("made", "w")
def start(): subprocess.run(["true"])
def shell(): os.system("true")
def fork(): os.fork()
def connect(): socket.socket()
def remove(): os.remove("nothing")
for action in (sympify, number, text, write, start, shell, fork, connect, remove):
    try:
        action()
    except PermissionError:
        continue
    sys.exit(action.__name__)
print(symbolic.value_of(r"\\frac{12}{5}"))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert (result.stdout, result.returncode) == ("12/5\n", 0), result.stderr


def test_memory_of_a_worker_is_limited():
    if not sys.platform.startswith("linux"):
        pytest.skip("the platform does not limit memory")
    code = """
from repro.verify import worker
worker.limit_resources(256)
try:
    block = bytearray(512 * 2**20)
except MemoryError:
    print("refused")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert result.stdout == "refused\n", result.stderr


@pytest.mark.parametrize(
    "text",
    [
        r"\input{x}",
        r"\operatorname{eye}(10)",
        "__import__",
        "a.__class__",
        "import os",
        "x;y",
        "x@y",
        "'x'",
        "é",
        "١",
        r"\sqrt{",
        "(1]",
        "x" * 500,
        "(" * 20 + ")" * 20,
        "x^{" * 6 + "}" * 6,
        "52_8",
    ],
)
def test_unsafe_text_does_not_reach_the_parser(text):
    assert not latex.is_safe(text)


def test_import_is_light():
    code = """
import sys, repro.verify, repro.verify.cli
print([name for name in ("torch", "sympy", "math_verify", "latex2sympy2_extended") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert result.stdout == "[]\n", result.stderr


def test_small_fuzz_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fuzz.run(strings=1000, seed=7)
    assert result["failures"] == []
    assert result["strings"] == 1000 and result["to_workers"] > 0


# --- workers ----------------------------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parents[1])}


def test_a_pair_past_its_time_limit_is_ended_and_the_others_are_decided():
    grader = Grader(seconds=2.0)
    slow = (r"(a+b+c+d+f)^{40}", r"((a+b)^2+2(a+b)(c+d+f)+(c+d+f)^2)^{20}")  # equal, but nobody waits for the proof
    try:
        batch = [slow, *[(rf"\sqrt{{{n}}}+1", rf"1+\sqrt{{{n}}}") for n in range(2, 12)]]
        outcomes = grader.grade_many(batch)
    finally:
        grader.close()
    assert outcomes[1:] == ["equal"] * 10
    assert outcomes[0] is Outcome.DIFFERENT


def test_time_that_a_worker_does_not_get_is_not_counted():
    grader = Grader(seconds=0.5, workers=1)
    try:
        assert grader.grade(*WORKER_PAIR) is Outcome.EQUAL
        (pid,) = grader.pool.process_ids()
        os.kill(pid, signal.SIGSTOP)
        waker = threading.Timer(1.5, os.kill, (pid, signal.SIGCONT))
        waker.start()
        assert grader.grade(r"\sqrt{18}", r"3\sqrt{2}") is Outcome.EQUAL
        waker.join()
        assert grader.pool.process_ids() == [pid]
    finally:
        grader.close()


@pytest.fixture
def one_core():
    """All processes that the test starts share one core."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def test_verdicts_beside_busy_processes(one_core):
    """With a ninth of a core, some of these pairs take longer by the clock than the limit on their CPU time.

    The limit leaves room for a processor that is slow or shares its caches: only the clock may run out, not CPU time.
    """
    batch = [
        ("(a-b)(a+b)", "a^2-b^2"),
        ("(a+b+c+d)^{10}", "((a+b)^2+2(a+b)(c+d)+(c+d)^2)^{5}"),
        (r"\cos(3x)", r"4\cos^3{x}-3\cos{x}"),
        (r"\sqrt[3]{2+\sqrt{5}}", r"\frac{1+\sqrt{5}}{2}"),
        ("(x+y)^2", "x^2+y^2"),
        (r"\sqrt{x^2}", "x"),
    ]
    alone, beside = Grader(seconds=2.0, workers=1), Grader(seconds=2.0, workers=1)
    busy = []
    try:
        expected = alone.grade_many(batch)
        assert expected == ["equal"] * 4 + ["different"] * 2
        assert beside.grade(*WORKER_PAIR) is Outcome.EQUAL  # its worker has started
        busy += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
        assert beside.grade_many(batch) == expected
    finally:
        for process in busy:
            process.kill()
            process.wait()
        alone.close()
        beside.close()


def test_hanging_worker_is_killed():
    """A worker that gets no CPU time (stopped by a signal) is given up by the clock; the next pair is decided."""
    grader = Grader(seconds=0.5, workers=1)
    try:
        assert grader.grade(*WORKER_PAIR) is Outcome.EQUAL
        (pid,) = grader.pool.process_ids()
        os.kill(pid, signal.SIGSTOP)
        outcome, how = grader.explain(r"\sqrt{18}", r"3\sqrt{2}")
        assert outcome is Outcome.UNREADABLE_REFERENCE and "within 0.5 s" in how
        assert grader.grade(r"\sqrt{32}", r"4\sqrt{2}") is Outcome.EQUAL
        assert pid not in grader.pool.process_ids()
    finally:
        grader.close()


def test_a_killed_worker_is_replaced_and_no_verdict_is_lost():
    grader = Grader(seconds=30.0, workers=1)
    try:
        for number in (2, 3):  # killed while it has nothing to do
            assert grader.grade(rf"\sqrt{{{9 * number}}}", rf"3\sqrt{{{number}}}") is Outcome.EQUAL
            os.kill(grader.pool.process_ids()[0], signal.SIGKILL)
        assert grader.grade(*WORKER_PAIR) is Outcome.EQUAL
        (pid,) = grader.pool.process_ids()  # killed while it works on a pair
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
        killer.start()
        assert grader.grade(r"\sqrt{32}", r"4\sqrt{2}") is Outcome.EQUAL
        killer.join()
    finally:
        grader.close()


def test_from_threads():
    found: list[Outcome] = []
    threads = [threading.Thread(target=lambda: found.append(grade(*WORKER_PAIR))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Outcome.EQUAL] * 8


def _in_child(queue, number: int) -> None:
    queue.put((grade(rf"\sqrt{{{4 * number}}}", rf"2\sqrt{{{number}}}"), default_grader().pool.process_ids()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_from_child_processes(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("not on this platform")
    assert grade(*WORKER_PAIR) is Outcome.EQUAL
    ours = set(default_grader().pool.process_ids())
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, 7))
    child.start()
    outcome, theirs = queue.get(timeout=120)
    child.join()
    assert outcome is Outcome.EQUAL
    assert ours.isdisjoint(theirs)
    assert grade(r"\sqrt{20}", r"2\sqrt{5}") is Outcome.EQUAL  # our own workers still answer


def test_where_main_cannot_be_imported_and_workers_end_with_the_parent():
    code = f"""
from repro.verify import grade
from repro.verify.grader import default_grader
print(grade(*{WORKER_PAIR!r}), default_grader().pool.process_ids()[0])
"""
    result = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, env=_environment())
    outcome, pid = result.stdout.split()
    assert outcome == "equal"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_grader_can_be_used_after_close():
    grader = Grader()
    assert grader.grade(*WORKER_PAIR) is Outcome.EQUAL
    grader.close()
    assert grader.pool.process_ids() == []
    assert grader.grade(r"\sqrt{27}", r"3\sqrt{3}") is Outcome.EQUAL
    grader.close()


# --- command line -----------------------------------------------------------------------------------------------


def test_command_for_one_pair(capsys):
    assert main(["-5", "-5.0"]) == 0
    assert capsys.readouterr().out == "equal  (exact path: Number against Number)\n"
    assert main([r"-\frac12", "0.5"]) == 0
    assert capsys.readouterr().out.startswith("different ")


@pytest.mark.parametrize(
    ("solution", "final"),
    [
        ("#### 72", "72"),
        (r"**Answer:** \boxed{10}", "10"),
        (r"First \boxed{1}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("She has 3 + 4 apples.\nThe answer is 7.", "7"),
    ],
)
def test_commands_take_the_final_answer_of_a_solution_and_say_so(tmp_path, capsys, solution, final):
    main([solution, final])
    assert (
        capsys.readouterr().out
        == f"equal  (final answer of the solution: {final}; exact path: Number against Number)\n"
    )
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"answer": solution, "reference": final, "equal": True}))
    main(["--pairs", str(path)])
    row, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["answer"] == solution and row["outcome"] == "equal"
    assert row["how"].startswith(f"final answer of the solution: {final}; ")
    assert last["summary"]["agreement"] == 1.0


def test_commands_leave_plain_answers_as_they_are(capsys):
    for answer in ("72", r"\boxed{", "the result: 72"):
        main([answer, "72"])
        assert "final answer of" not in capsys.readouterr().out


def test_command_for_a_file(tmp_path, capsys):
    rows = [
        {"answer": "1", "reference": "1", "equal": True},
        {"answer": None, "reference": "1", "equal": False},
        {"answer": "2", "reference": "{", "equal": False},
        {"answer": "2", "reference": "3", "equal": True},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    main(["--pairs", str(path)])
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [line["outcome"] for line in lines] == ["equal", "unreadable_answer", "unreadable_reference", "different"]
    assert last["summary"]["agreement"] == 0.75
    assert last["summary"]["precision"] == 1.0 and last["summary"]["recall"] == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"answer": "1", "reference": "1"}\n{"answer"', ":2: not JSON"),
        ('{"answer": "1"}', ":1: the field reference is missing"),
        ('{"answer": 1, "reference": "1"}', ":1: answer must be text or null"),
        ("[]", ":1: not a JSON object"),
        ('{"answer": "1", "reference": "1", "equal": "yes"}', ":1: equal must be true or false"),
        (None, "No such file"),
    ],
)
def test_wrong_files_give_one_line_and_exit_code_2(tmp_path, capsys, content, message):
    path = tmp_path / "pairs.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["--pairs", str(path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error and str(path) in error and error.count("\n") == 1
