"""The rules of the house, read off the source: imports point down, heavy ones stay where they belong."""

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("raydr", "jobs") for path in (ROOT / folder).rglob("*.py"))
MAX_LINES = 300

# Highest first. A unit (a module of raydr/, or one of its packages) imports only units of lower levels.
LEVELS = (
    {"jobs"},
    {"__main__"},
    {"cli"},
    {"commands", "arguments"},
    {"upkeep", "grader_commands"},
    {"bench"},
    {"cluster"},
    {"diffusion", "report"},
    {"plan", "trainset", "garbage"},
    {"trials"},
    {"grading", "fundus", "selection", "leases"},
    {"acceptance"},
    {"shards", "record", "metrics", "statistics", "paired_tests"},
    {"checks"},
    {"attempts", "ledger", "parquet", "stopping", "spending"},
    {"storage"},
    {"locks"},
    {"backends"},
    {"recipes", "lineage", "treatments", "arms"},
    {"config", "prompts", "shapes", "prices"},
    {"graders"},
    {"finished", "identity", "images", "terminal", "sources", "kinds"},
    {"schema", "grades", "errors"},
)
LEVEL = {unit: number for number, units in enumerate(LEVELS) for unit in units}
RAY = {"cluster"}
TORCH = {"cluster", "diffusion", "grading", "bench"}
# Each of them imports torch, so they are as heavy.
TORCHY = {"torch", "torchvision", "diffusers", "transformers", "peft", "timm", "accelerate", "safetensors"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imports_of(source: str, name: str) -> Iterator[tuple[str, int]]:
    """(imported module, line) of every import, in functions and `if TYPE_CHECKING` too; raydr's as full names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else str(node.module)), node.lineno
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            # cluster/pipeline.py looks its stages up by name: inside one package, so no arrow of ours.
            assert name.startswith("raydr.cluster."), f"{name}:{node.lineno}: an import by name"


def unit_of(module: str) -> str | None:
    """`raydr.fundus.phantom` -> fundus; None for what is not ours."""
    parts = module.split(".")
    if parts[0] == "jobs":
        return "jobs"
    return parts[1] if parts[0] == "raydr" and len(parts) > 1 else None


def upward(source: str, name: str) -> list[str]:
    """Imports in `source` (of module `name`) that do not point down."""
    own, wrong = unit_of(name), []
    for module, line in imports_of(source, name):
        other = unit_of(module)
        if other is not None and other != own and LEVEL[other] <= LEVEL[own or ""]:
            wrong.append(f"{name}:{line} imports {module}")
    return wrong


def sources() -> Iterator[tuple[str, str]]:
    for path in FILES:
        yield module_name(path), path.read_text()


def test_every_unit_has_its_level():
    assert {unit_of(name) for name in MODULES} - {None} <= set(LEVEL)
    assert sum(map(len, LEVELS)) == len(LEVEL), "a unit stands in two levels"


def test_arrows_point_down():
    assert [line for name, source in sources() for line in upward(source, name)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("raydr.diffusion.training", "import raydr.report.page"),  # a sibling
        ("raydr.grading.training", "def f():\n    from raydr.fundus import phantom"),  # a sibling, lazily
        ("raydr.storage", "from raydr import shards"),  # up
        ("raydr.config", "from raydr.recipes import named"),
        ("raydr.report.page", "from raydr.cluster import pipeline"),
        ("raydr.metrics", "if TYPE_CHECKING:\n    from raydr.statistics import Bootstrap"),
    ],
)
def test_the_rule_sees_what_breaks_it(name, source):
    assert len(upward(source, name)) == 1


def test_no_import_goes_round_in_a_circle():
    graph = {
        name: {module for module, _ in imports_of(source, name) if module in MODULES} for name, source in sources()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in graph[name] - {"raydr"}:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(("heavy", "allowed"), [({"ray"}, RAY), (TORCHY, TORCH)])
def test_heavy_imports_stay_where_they_belong(heavy, allowed):
    found = {}
    for name, source in sources():
        lines = [line for module, line in imports_of(source, name) if module.split(".")[0] in heavy]
        if lines and unit_of(name) not in allowed:
            found[name] = lines
    assert found == {}


def test_init_files_are_empty():
    assert [str(path) for path in FILES if path.name == "__init__.py" and path.read_text().strip()] == []


def test_no_file_is_two_files():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_jobs_only_call_the_command_line():
    for name, source in sources():
        if unit_of(name) == "jobs":
            assert {module for module, _ in imports_of(source, name)} - {"sys"} == {"raydr.cli"}


def cpu_seconds(*arguments: str) -> float:
    """Least CPU time (user and system) of three runs of `python ARGUMENTS`: what others do to the machine adds."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT, env=os.environ)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


def test_help_answers_within_a_second():
    assert cpu_seconds("-m", "raydr", "--help") - cpu_seconds("-c", "pass") < 1


@pytest.mark.parametrize("command", [["status"], ["verify"], ["run", "--recipe", "demo", "--dry-run", "--out"]])
def test_looking_needs_neither_ray_nor_torch(command, tmp_path):
    recipe = (
        "import dataclasses, json, pathlib, sys; from raydr import cli, recipes;"
        "out = pathlib.Path(sys.argv[1]); record = {'recipe': dataclasses.asdict(recipes.debug())};"
        "(out / 'recipe.json').write_text(json.dumps(record));"
        "code = cli.main([*sys.argv[2:], str(out)]); assert code == 0, code;"
        "heavy = {'ray', 'torch', 'diffusers', 'transformers', 'timm'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", recipe, str(tmp_path), *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
