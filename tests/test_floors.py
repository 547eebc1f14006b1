"""The house: no wing imports from a floor above its own, nothing imports in a circle, few modules stand outside."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

FLOORS = {
    **{"verify": 0, "config": 0, "tasks": 1, "model": 2, "results": 3, "paper": 4, "launch": 4, "run": 5},
    **{"evaluation": 6, "methods": 6, "scripts": 6, "arm": 7, "bench": 7, "tiny": 7},
    **{"reproduce": 8, "skeleton": 8, "cli": 9},
}
MODULES = sorted((ROOT / "repro").rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Modules of the package that a file imports when it is loaded: not in functions, not for type checkers."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("repro"):
            found += [node.module] if "." in node.module else [f"repro.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("repro.")]
    return found


def wing(path: Path) -> str:
    first = path.relative_to(ROOT / "repro").parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards(path):
    if path == ROOT / "repro" / "__init__.py":
        assert imports(path) == []  # the package's names are loaded when they are asked for
        return
    for name in imports(path):
        target = name.split(".")[1]
        if name == "repro.tiny":  # the folder of the weights: a path, which stands below everything
            continue
        assert FLOORS[target] <= FLOORS[wing(path)], f"{path.name} imports {name} from a floor above"


def test_no_module_imports_itself_in_a_circle():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES}
    graph = {name: [n for n in imports(path) if n in names] for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for target in graph[name]:
                visit(target, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_papers_import_the_package_and_no_other_paper():
    for script in (ROOT / "papers").glob("*.py"):
        assert not [name for name in _everything(script) if name.split(".")[0] == "papers"]
    for path in MODULES:
        assert not [name for name in _everything(path) if name.split(".")[0] == "papers"]


def _everything(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]


def test_few_modules_stand_beside_the_wings():
    assert len(list((ROOT / "repro").glob("*.py"))) <= 10
