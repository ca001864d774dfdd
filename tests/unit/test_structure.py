"""The import order of the subjects: each imports only subjects to its left, and the layers only those below."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACT = (ROOT / "pipeline_lib" / "README.md").read_text("utf-8")
# modules beside the subjects
TOP = {
    "stages", "run", "status", "preview", "trace", "metrics", "trainings", "fork", "export", "promotion", "extensions", "errors",
    "hub", "possible", "pretrained", "secrets", "terminal",
}  # fmt: skip
FOR_ALL = {"errors", "extensions", "hub", "pretrained", "secrets", "terminal"}  # what every subject may import


def subjects():
    """The order as the contract states it: subjects between two arrows are beside each other."""
    (line,) = re.findall(r"^config → .*$", CONTRACT, re.MULTILINE)
    return [tuple(name.strip() for name in group.split(",")) for group in line.split("→")]


ORDER = {name: rank for rank, group in enumerate(subjects()) for name in group}


def imports(path):
    """(line, module, only for type checking) of everything a file imports."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", getattr(branch.test, "attr", "")) == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "pipeline_lib" else [node.module]
            yield from ((node.lineno, name, id(node) in typing_only) for name in names)


def files(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def test_the_contract_names_every_subject():
    folders = {path.name for path in (ROOT / "pipeline_lib").iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders == set(ORDER)
    modules = {path.stem for path in (ROOT / "pipeline_lib").glob("*.py")} - {"__init__"}
    assert modules == TOP


@pytest.mark.parametrize("subject", list(ORDER))
def test_a_subject_imports_only_to_its_left(subject):
    wrong = []
    for path in files(f"pipeline_lib/{subject}"):
        for line, module, typing_only in imports(path):
            parts = module.split(".")
            if parts[0] != "pipeline_lib" or len(parts) < 2 or parts[1] == subject or parts[1] in FOR_ALL:
                continue
            # tables and hardware may be beside workspace, but nothing to the right of a subject is known to it
            if parts[1] not in ORDER or ORDER[parts[1]] > ORDER[subject]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}" + (" (types)" if typing_only else ""))
    assert wrong == []


def _imports_of(folder, *forbidden):
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files(folder)
        for line, module, _ in imports(path)
        if module.split(".")[0] in forbidden
    ]


def test_the_library_knows_no_prefect_and_no_layer_above():
    assert _imports_of("pipeline_lib", "prefect", "flows", "tasks") == []


def test_tasks_know_no_flows():
    assert _imports_of("tasks", "flows") == []


def test_mlflow_is_called_in_tracking_only():
    elsewhere = [*_imports_of("pipeline_lib", "mlflow"), *_imports_of("tasks", "mlflow"), *_imports_of("flows", "mlflow")]
    assert [line for line in elsewhere if not line.startswith("pipeline_lib/tracking/")] == []


def test_duckdb_is_opened_by_tables_only():
    opened = [
        path.relative_to(ROOT).as_posix()
        for folder in ("pipeline_lib", "tasks", "flows")
        for path in files(folder)
        if re.search(r"duckdb\.connect\(", path.read_text("utf-8"))
    ]
    assert opened == ["pipeline_lib/tables/duck.py"]


@pytest.mark.parametrize(
    "module", ["pipeline_lib.run", "pipeline_lib.status", "pipeline_lib.workspace.gc", "pipeline_lib.workspace.sql"]
)
def test_reuse_loads_neither_torch_nor_transformers(module):
    import subprocess
    import sys

    code = (
        f"import sys, {module}; print([name for name in ('torch', 'transformers', 'mlflow', 'prefect') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def test_every_make_target_that_is_named_is_there():
    """What messages and guides tell people to type."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    pages = [*files("flows"), *files("pipeline_lib"), ROOT / "README.md", *(ROOT / "deployments").rglob("*.md")]
    named = {
        target: path
        for path in pages
        for words in re.findall(r"(?:`|^\$ )make ([a-z ]+)", path.read_text("utf-8"), re.MULTILINE)
        for target in words.split()
    }
    assert named.keys() >= {"run", "test", "install"}
    assert named.keys() <= targets, named
