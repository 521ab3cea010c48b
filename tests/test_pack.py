"""The node pack as ComfyUI and its registry see it, without ComfyUI."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

REPO = Path(__file__).parents[1]
SHIPPED = ("anycharv_core", "nodes", "web", "locales", "workflows", "subgraphs")
SHIPPED_FILES = ("__init__.py", "requirements.txt", "pyproject.toml", "README.md", "LICENSE")
LEFT_OUT = ("tests", "training", "benchmarks", ".ci", "docs")
SOURCES = [
    REPO / "__init__.py",
    *(path for folder in ("nodes", "anycharv_core") for path in sorted((REPO / folder).rglob("*.py"))),
]
# Networks, processes and HTTP routes, each of which a node pack in the registry has to do without.
UNWANTED_MODULES = {
    "aiohttp",
    "ctypes",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "pip",
    "requests",
    "server",
    "socket",
    "subprocess",
    "urllib",
    "urllib3",
    "webbrowser",
}
ONLY_EXCEPTIONS = {"huggingface_hub.errors"}
UNWANTED_CALLS = re.compile(
    r"(eval|exec|__import__|os\.(system|popen|exec\w+|spawn\w+|fork)|.*\.eval|torch\.hub\..*)"
)
# Characters that mean something in the frontend's message format.
FORMAT = set("{}@|")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    """The top-level modules that an import statement takes in; relative imports are our own."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [(node.module or "").partition(".")[0]]
    return []


def unwanted(module: ast.AST) -> list[str]:
    """What a registry scan would object to, with line numbers."""
    found = []
    for node in ast.walk(module):
        if not (isinstance(node, ast.ImportFrom) and node.module in ONLY_EXCEPTIONS):
            found += [f"{node.lineno}: import {name}" for name in imported(node) if name in UNWANTED_MODULES]
        if isinstance(node, ast.Call) and UNWANTED_CALLS.fullmatch(name := ast.unparse(node.func)):
            found.append(f"{node.lineno}: {name}()")
    return found


class Kind:
    """Stands for a type of comfy_api's io: what is declared with it is kept as it was written."""

    def __init__(self, name: str):
        self.name = name

    def Input(self, name: str, *_: Any, **settings: Any) -> SimpleNamespace:
        return SimpleNamespace(**{"name": name, "tooltip": None} | settings)

    def Option(self, key: str, inputs: list[SimpleNamespace]) -> SimpleNamespace:
        return SimpleNamespace(key=key, inputs=inputs)

    def TemplatePrefix(self, grown: SimpleNamespace, **_: Any) -> SimpleNamespace:
        return grown

    def __getattr__(self, name: str) -> str:
        """Of io.Hidden."""
        return name

    def Output(self, display_name: str | None = None, tooltip: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(name=display_name or self.name, tooltip=tooltip)


class RecordingIO(ModuleType):
    """comfy_api.latest.io as far as schemas need it."""

    ComfyNode = type("ComfyNode", (), {})
    Schema = SimpleNamespace
    NodeOutput = SimpleNamespace
    Custom = Kind

    def __getattr__(self, name: str) -> Kind:
        if name.startswith("__"):
            raise AttributeError(name)
        return Kind(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper())


class StandIn(ModuleType):
    """A module of ComfyUI's whose every name is a class of its own, which can be inherited from."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


COMFYUI_MODULES = (
    "comfy",
    "comfy.clip_vision",
    "comfy.conds",
    "comfy.context_windows",
    "comfy.latent_formats",
    "comfy.ldm",
    "comfy.ldm.modules",
    "comfy.ldm.modules.attention",
    "comfy.model_base",
    "comfy.model_management",
    "comfy.model_patcher",
    "comfy.model_sampling",
    "comfy.ops",
    "comfy.patcher_extension",
    "comfy.sample",
    "comfy.samplers",
    "comfy.sd",
    "comfy.supported_models_base",
    "comfy.utils",
    "comfy_api",
    "comfy_api.latest",
    "comfy_execution",
    "comfy_execution.graph_utils",
    "folder_paths",
    "latent_preview",
)


@pytest.fixture(scope="module")
def schemas() -> Iterator[dict[str, Any]]:
    """Every node's schema by its id, from the pack's own code with recorders in ComfyUI's place."""
    recorder = RecordingIO("io")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for name in COMFYUI_MODULES:
            patch.setitem(sys.modules, name, StandIn(name))
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, sys.modules[name])
        vars(sys.modules["comfy_api.latest"]).update(io=recorder, ui=None, ComfyExtension=object)
        sys.modules["folder_paths"].get_folder_paths = lambda key: []
        sys.modules["folder_paths"].get_output_directory = lambda: "nowhere"
        spec = importlib.util.spec_from_file_location("pack_with_stand_ins", REPO / "__init__.py")
        pack = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, pack)
        spec.loader.exec_module(pack)
        extension = asyncio.run(pack.comfy_entrypoint())
        classes = asyncio.run(extension.get_node_list())
        assert set(classes) == set(recorder.ComfyNode.__subclasses__()), "a node is not in get_node_list"
        yield {schema.node_id: schema for schema in (node.define_schema() for node in classes)}
    for name in set(sys.modules) - before:
        if name.startswith("pack_with_stand_ins"):
            del sys.modules[name]


@pytest.fixture(scope="module", params=sorted(path.name for path in (REPO / "locales").iterdir()))
def locale(request: pytest.FixtureRequest) -> SimpleNamespace:
    folder = REPO / "locales" / request.param
    read = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("main", "nodeDefs")]
    return SimpleNamespace(main=read[0], nodes=read[1])


def texts(value: Any) -> list[str]:
    return [text for part in value.values() for text in texts(part)] if isinstance(value, dict) else [value]


def inputs_of(schema: Any) -> list[tuple[str, Any]]:
    """All inputs, those of a dynamic combo's choices included, under the keys that locales have for them."""
    found = []
    for part in schema.inputs:
        inner = [entry for option in getattr(part, "options", []) for entry in getattr(option, "inputs", [])]
        found += [(part.name, part), *((f"{part.name}_{entry.name}", entry) for entry in inner)]
    return found


def test_importing_the_pack_needs_neither_comfyui_nor_torch(tmp_path: Path) -> None:
    script = (
        "import importlib.util, inspect, sys\n"
        f"spec = importlib.util.spec_from_file_location('pack', {str(REPO / '__init__.py')!r})\n"
        "pack = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(pack)\n"
        "assert inspect.iscoroutinefunction(pack.comfy_entrypoint)\n"
        "print(pack.WEB_DIRECTORY, sorted({'torch', 'comfy', 'numpy', 'folder_paths'} & {*sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "./web []\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_sources_hold_nothing_a_registry_scan_rejects(path: Path) -> None:
    # Fetching weights is what this one file, which no node imports a function of, is for.
    allowed = ": import huggingface_hub" if path.name == "download.py" else " "
    assert [found for found in unwanted(tree(path)) if not found.endswith(allowed)] == []
    assert "NODE_CLASS_MAPPINGS" not in path.read_text(encoding="utf-8"), "it would hide comfy_entrypoint"


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec('1')",
        "import subprocess",
        "from urllib import request",
        "net.eval()",
        "os.system('x')",
        "from server import PromptServer",
        "def f():\n    import requests",
    ],
)
def test_the_scan_sees_what_it_is_for(line: str) -> None:
    assert unwanted(ast.parse(line))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_pickles_are_read_as_weights_only(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
            assert "weights_only=True" in ast.unparse(node)


def test_every_input_has_a_tooltip(schemas: dict[str, Any]) -> None:
    assert len(schemas) == 19
    for node, schema in schemas.items():
        assert [key for key, part in inputs_of(schema) if not part.tooltip] == [], node


def test_every_node_is_found_in_english_and_chinese(schemas: dict[str, Any]) -> None:
    for node, schema in schemas.items():
        assert any(alias.isascii() for alias in schema.search_aliases), node
        assert any(re.search("[\u4e00-\u9fff]", alias) for alias in schema.search_aliases), node


def test_what_nodes_show_stays_when_only_another_branch_runs(schemas: dict[str, Any]) -> None:
    marks = {
        flag: {node for node, schema in schemas.items() if getattr(schema, flag, False)}
        for flag in ("is_output_node", "has_intermediate_output")
    }
    assert (
        marks["is_output_node"]
        == marks["has_intermediate_output"]
        == {"AnyCharVFindPeople", "AnyCharVPrepareVideo"}
    )


def test_there_is_no_english_copy_of_the_schemas() -> None:
    assert not (REPO / "locales/en").exists(), "ComfyUI shows the schemas' own text where there is no locale"


def test_locales_describe_exactly_the_nodes(schemas: dict[str, Any], locale: SimpleNamespace) -> None:
    assert list(locale.nodes) == list(schemas)
    for node, schema in schemas.items():
        entry = locale.nodes[node]
        inputs = {key for key, _ in inputs_of(schema)}
        if any(getattr(part, "control_after_generate", False) for part in schema.inputs):
            inputs.add("control_after_generate")  # a widget of the frontend's own, named in its locales too
        assert sorted(entry["inputs"]) == sorted(inputs), node
        assert list(entry["outputs"]) == [str(index) for index in range(len(schema.outputs))], node
        for key, _ in inputs_of(schema):
            assert entry["inputs"][key].keys() == {"name", "tooltip"}, (node, key)
        for index, part in enumerate(schema.outputs):
            assert ("tooltip" in entry["outputs"][str(index)]) == bool(part.tooltip), (node, index)
    assert all(text.strip() for text in texts(locale.nodes))
    assert not [text for text in texts(locale.nodes) if FORMAT & set(text)]
    assert locale.main["nodeCategories"].keys() == {schema.category for schema in schemas.values()}


def test_chinese_locale_is_translated() -> None:
    chinese = json.loads((REPO / "locales/zh/nodeDefs.json").read_text(encoding="utf-8"))
    for node, entry in chinese.items():
        tooltips = [part["tooltip"] for part in entry["inputs"].values() if "tooltip" in part]
        for text in (entry["display_name"], entry["description"], *tooltips):
            assert re.search("[\u4e00-\u9fff]", text), (node, text)


def test_every_node_has_a_help_page(schemas: dict[str, Any]) -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (REPO / "web/docs").glob("*.md")}
    assert pages.keys() == schemas.keys()
    for node, schema in schemas.items():
        lines = re.sub(r"!\[.*\n\n", "", pages[node]).splitlines()
        # The Loader's also lists ComfyUI's own tools, a row each; the node that does everything has many inputs.
        longer = node in ("AnyCharVLoader", "AnyCharVReplaceCharacter")
        assert 20 <= len(lines) <= (75 if longer else 50), node
        # The page's own header repeats neither; names in prose do not count as documented.
        tables = " ".join(line.split("|")[1] for line in lines if line.startswith("|"))
        for part in (*(part for _, part in inputs_of(schema)), *schema.outputs):
            assert f"`{part.name}`" in tables, (node, part.name)
        for part in schema.inputs:
            options = [getattr(option, "key", option) for option in getattr(part, "options", [])]
            assert all(f"`{option}`" in pages[node] for option in options), (node, part.name)


def test_chinese_help_pages_say_what_the_english_ones_do() -> None:
    pages = sorted((REPO / "web/docs").glob("*/zh.md"))
    assert [page.parent.name for page in pages] == sorted(page.stem for page in (REPO / "web/docs").glob("*.md"))
    for page in pages:
        chinese = page.read_text(encoding="utf-8").splitlines()
        english = page.parent.with_suffix(".md").read_text(encoding="utf-8").splitlines()
        for start in ("## ", "|", "- "):
            shape = [[line.count("|") for line in text if line.startswith(start)] for text in (english, chinese)]
            assert shape[0] == shape[1], (page.parent.name, start)
        code = [re.findall("`[^`]+`", "\n".join(text)) for text in (english, chinese)]
        assert set(code[0]) == set(code[1]), page.parent.name
        assert re.search("[\u4e00-\u9fff]", chinese[0])


def test_help_pages_show_pictures_that_are_there() -> None:
    folder, shown = REPO / "web/docs", set()
    for page in folder.rglob("*.md"):
        # The page looks for them beside the pages, whatever the language.
        named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        assert named, page
        shown |= {folder / name for name in named}
    assert shown == set((folder / "pictures").iterdir())
    assert max(picture.stat().st_size for picture in shown) < 40_000


@pytest.fixture(scope="module")
def ignored() -> Any:
    """Whether .comfyignore leaves a path out, by the part of gitignore's rules that it uses."""
    lines = (REPO / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert not [pattern for pattern in patterns if pattern.startswith("!") or "**" in pattern]

    def matches(path: str) -> bool:
        parts = path.split("/")
        for pattern in patterns:
            inner = pattern.rstrip("/")
            depth = len(parts) - pattern.endswith("/")
            anchored = ["/".join(parts[: end + 1]) for end in range(depth)]
            candidates = anchored if "/" in inner else parts[:depth]
            if any(fnmatch(candidate, inner.lstrip("/")) for candidate in candidates):
                return True
        return False

    return matches


def files(folder: str) -> list[str]:
    found = (path for path in (REPO / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path.relative_to(REPO).as_posix() for path in found]


def test_the_registry_gets_what_the_nodes_need_and_nothing_else(ignored: Any) -> None:
    assert all(files(folder) for folder in SHIPPED)
    needed = [path for folder in SHIPPED for path in files(folder)]
    assert "anycharv_core/weights/embedded.safetensors" in needed
    assert "anycharv_core/weights/embedded_animate.safetensors" in needed
    assert "anycharv_core/puppets/task.py" in needed
    assert "web/docs/AnyCharVLoader.md" in needed
    assert [path for path in (*needed, *SHIPPED_FILES) if ignored(path)] == []
    for folder in LEFT_OUT:
        assert files(folder), folder
        assert [path for path in files(folder) if not ignored(path)] == []
    assert ignored("Makefile")
    assert ignored("constraints.txt")


def test_registry_metadata() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11: no tomllib")
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    comfy, metadata = project["tool"]["comfy"], project["project"]
    assert metadata["name"] == "anycharv"
    assert comfy["PublisherId"] and comfy["DisplayName"]
    repository = metadata["urls"]["Repository"]
    assert repository.startswith("https://github.com/")
    assert all(url.startswith(repository) for url in metadata["urls"].values())
    # By these the registry says where the pack runs.
    assert "Operating System :: OS Independent" in metadata["classifiers"]
    # comfy-cli drops a bound that has not three numbers, and other names for the page of issues.
    readme = " ".join((REPO / "README.md").read_text(encoding="utf-8").split())
    (tested,) = re.findall(r"tested with ComfyUI (\d+\.\d+)", readme)
    assert comfy["requires-comfyui"] == f">={tested}.0"
    assert metadata["urls"]["Issues"] == f"{repository}/issues"
    # The registry runs no code to find a dynamic version: it reads this file.
    assert metadata["dynamic"] == ["version"]
    source = (REPO / comfy["version"]["path"]).read_text(encoding="utf-8")
    assert re.search(r'^__version__ = "\d+\.\d+\.\d+"$', source, re.MULTILINE)
    assert "web" not in comfy, "it would serve the pages under another path than the help panel asks for"
    root = repository.replace("github.com", "raw.githubusercontent.com") + "/main/"
    assert comfy["Icon"].startswith(root)
    with Image.open(REPO / comfy["Icon"].removeprefix(root)) as icon:
        assert icon.size == (400, 400)


def test_requirements_leave_comfyuis_own_packages_alone() -> None:
    lines = (REPO / "requirements.txt").read_text().splitlines()
    names = [re.match(r"[\w-]+", line).group() for line in lines]
    assert names
    assert not {"torch", "torchvision", "numpy", "pillow"} & set(names)
    assert len([name for name in names if name.startswith("opencv")]) <= 1
    assert len([name for name in names if name.startswith("onnxruntime")]) <= 1
