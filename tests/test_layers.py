"""The architecture as tests: who may import whom, and how large things may be. Reads source; imports none of it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "models": {"models"},
    "ddp": {"ddp"},
    "bench": {"bench", "ddp", "models"},
    "launch": {"launch", "bench", "ddp", "models"},
}
ONLY_IN = {
    "subprocess": {"launch"},
    "tyro": {"launch/argv.py"},
    "argparse": {"launch/batch.py", "launch/member.py"},
}
FORBIDDEN = {"pickle", "apex", "torch.distributed.rpc", "yaml"}
LONGEST_FILE, LONGEST_FUNCTION = 300, 60


def files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            yield node.module or ""


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    for path in files(package):
        extra = {name.partition(".")[0] for name in imported(path)} & MAY_IMPORT.keys() - MAY_IMPORT[package]
        assert not extra, f"{path} imports {extra}; {package}/ may import {MAY_IMPORT[package]}"


@pytest.mark.parametrize("module", sorted(ONLY_IN))
def test_some_modules_are_used_in_one_place_only(module: str) -> None:
    for path in files(*MAY_IMPORT):
        place = path.relative_to(ROOT).as_posix()
        allowed = any(place == home or place.startswith(home + "/") for home in ONLY_IN[module])
        if not allowed:
            assert module not in {name.partition(".")[0] for name in imported(path)}, f"{path} imports {module}"


def test_nothing_forbidden_is_imported() -> None:
    for path in files(*MAY_IMPORT):
        used = {name for name in imported(path) if any(name == bad or name.startswith(bad + ".") for bad in FORBIDDEN)}
        assert not used, f"{path} imports {used}"


def test_only_entries_read_the_environment() -> None:
    for path in files("ddp", "bench", "models"):
        assert "environ" not in path.read_text().replace("Environ", "").replace("environment", "").replace(
            "environ: Mapping", ""
        ).replace("environ[name]", "").replace("in environ", ""), f"{path} reads the environment"


def test_imports_form_no_cycle() -> None:
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): {
            name for name in imported_at_load(path) if name.partition(".")[0] in MAY_IMPORT
        }
        for path in files(*MAY_IMPORT)
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"import cycle: {' -> '.join((*above, name))}"
        if name in done:
            return
        for below in graph.get(name, set()):
            visit(below, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def imported_at_load(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_files_and_functions_stay_short() -> None:
    for path in files(*MAY_IMPORT, "tests"):
        text = path.read_text()
        assert text.count("\n") <= LONGEST_FILE, f"{path} has more than {LONGEST_FILE} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_package_files_hold_a_docstring_only() -> None:
    for path in [path for path in files(*MAY_IMPORT, "slurm") if path.name == "__init__.py"]:
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, f"{path} holds more than a docstring"
        assert isinstance(body[0], ast.Expr), f"{path} has no docstring"


def test_public_things_say_what_they_are() -> None:
    for path in files(*MAY_IMPORT):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path} has no docstring"
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public:
                assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"  # type: ignore[arg-type, attr-defined]
