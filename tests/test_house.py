"""Imports go one way, down the list of wings in docs/architecture.md: read from the sources, importing none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
CORE = "anycharv_core"
# Of the folders and of one another, what each may import.
BESIDE = {CORE: {CORE}, "nodes": {CORE, "nodes"}, "training": {CORE, "training"}}
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "latent_preview",
    "nodes",
    "server",
}
# Libraries that take seconds to import, which the core loads when they are first needed.
DEFERRED = {"diffusers", "transformers", "onnxruntime"}
MOST_MODULES = 12  # directly in anycharv_core/

Import = tuple[int, str]
"""The line of an import and the module it takes in, by its full name."""


def sources() -> dict[str, Path]:
    """The files of each of our modules by its name; a package's is its __init__."""
    return {
        ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in BESIDE
        for path in sorted((REPO / folder).rglob("*.py"))
    }


SOURCES = sources()


def tree(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def imports(module: str, nodes: Iterator[ast.AST]) -> list[Import]:
    """What those of `nodes` that are import statements of `module` take in."""
    found: list[Import] = []
    package = module.split(".") if SOURCES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # In ComfyUI the nodes reach the core beside them by two dots.
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            found += [(node.lineno, name if name in SOURCES else base) for name in names]
    return found


def run_at_import(parent: ast.AST) -> Iterator[ast.AST]:
    """Every node that is neither inside a function nor for type checkers alone."""
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from run_at_import(child)


def wings() -> dict[str, int]:
    """The floor of each wing and of each module beside them, 0 the top, from the document's first drawing."""
    drawing = (REPO / "docs/architecture.md").read_text(encoding="utf-8").split("```")[1]
    rows = [re.split(r"\s{2,}", line)[0] for line in drawing.strip().splitlines()]
    names = [[name.strip().removesuffix("/").removesuffix(".py") for name in row.split(",")] for row in rows]
    return {name: floor for floor, row in enumerate(names) for name in row}


def upward(floors: dict[str, int], module: str, found: list[Import]) -> list[str]:
    """The imports that go from one wing of the core to a higher one, or to one that is not in the drawing."""
    here = module.split(".")[1]
    there = [(line, name, name.split(".")[1]) for line, name in found if name.startswith(f"{CORE}.")]
    return [
        f"{module}:{line} imports {name}"
        for line, name, wing in there
        if floors.get(wing, -1) < floors.get(here, len(floors))
    ]


ALL_IMPORTS = {module: imports(module, ast.walk(tree(module))) for module in SOURCES}


def test_an_import_points_down_the_list_of_wings() -> None:
    floors = wings()
    inside = [module for module in SOURCES if module.startswith(f"{CORE}.") and not module.endswith("__main__")]
    assert {module.split(".")[1] for module in inside} == {*floors}, "the drawing shows every wing, and no other"
    assert [arrow for module in inside for arrow in upward(floors, module, ALL_IMPORTS[module])] == []


def test_the_package_itself_imports_only_its_error_before_it_is_asked() -> None:
    names = {name for _, name in imports(CORE, run_at_import(tree(CORE)))}
    assert names == {"__future__", "typing", f"{CORE}.errors"}


def test_there_is_no_circle() -> None:
    graph = {
        module: {name for _, name in found if name in SOURCES and name != module}
        for module, found in ALL_IMPORTS.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" > ".join(error.args[1]))


@pytest.mark.parametrize("folder", BESIDE)
def test_a_folder_imports_no_other_than_it_may(folder: str) -> None:
    """The core and the trainer need no ComfyUI; the core knows neither of the two others."""
    barred = {*BESIDE, "tests", "benchmarks"} - BESIDE[folder] | (set() if folder == "nodes" else COMFYUI)
    assert [
        f"{module}:{line} imports {name}"
        for module, found in ALL_IMPORTS.items()
        for line, name in found
        if module.split(".")[0] == folder and name.split(".")[0] in barred
    ] == []


@pytest.mark.parametrize("folder", [CORE, "nodes"])
def test_slow_libraries_are_imported_on_first_use(folder: str) -> None:
    assert [
        f"{module}:{line} imports {name}"
        for module in SOURCES
        if module.split(".")[0] == folder
        for line, name in imports(module, run_at_import(tree(module)))
        if name.split(".")[0] in DEFERRED
    ] == []


def test_the_ground_floor_is_not_crowded() -> None:
    assert len([*(REPO / CORE).glob("*.py")]) <= MOST_MODULES


def test_every_package_is_installed() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11: no tomllib")
    setuptools = pytest.importorskip("setuptools", reason="needs setuptools")
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    found = setuptools.find_packages(
        str(REPO), include=project["tool"]["setuptools"]["packages"]["find"]["include"]
    )
    there = {
        module for module, path in SOURCES.items() if module.split(".")[0] == CORE and path.name == "__init__.py"
    }
    assert {*found} == there
    assert {".".join(path.relative_to(REPO).parent.parts) for path in (REPO / CORE).rglob("*.py")} == there


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("media.masks", "from ..inference import encode"),
        ("files", "from .media import video_read"),
        ("models.unet", "import anycharv_core.systems.anycharv"),
        ("bench.metrics", "def f():\n    from ..jobs.run import versions"),
        ("media.masks", "from ..not_drawn import thing"),
    ],
)
def test_an_arrow_up_is_seen(module: str, line: str) -> None:
    found = imports(f"{CORE}.{module}", ast.walk(ast.parse(line)))
    assert len(upward(wings(), f"{CORE}.{module}", found)) == 1
