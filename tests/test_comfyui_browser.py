"""The pack in ComfyUI's page: the shipped workflows, a run, help, templates and languages.

What the page needs is in comfyui_page.py. Screenshots are kept in ANYCHARV_SCREENSHOTS where that is set.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import two_wires
from comfyui_page import lacking, visit
from comfyui_server import PACK, shared_server
from embedded_graphs import on_embedded_models
from PIL import Image

REPO = Path(__file__).parents[1]
WORKFLOWS = REPO / "workflows"
RUN = "quick_start"
# A workflow with most of our nodes, saved before AnyCharV Composite had its last input.
EARLIER = REPO / "tests" / "data" / "saved_earlier.json"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
APPS = ["animate_anyone", "folder_of_videos", "preprocess_video", "quick_start", "replace_character"]
# What the page takes for the name of a model file; it looks for no others.
MODEL_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".onnx", ".gguf")
LACKING = lacking()
pytestmark = [pytest.mark.comfyui, pytest.mark.skipif(LACKING is not None, reason=str(LACKING))]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that the page showed, from one visit."""
    folder = Path(os.environ.get("ANYCHARV_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    workflows = tmp_path_factory.mktemp("workflows")
    for name in NAMES:
        shutil.copy(WORKFLOWS / f"{name}.json", workflows)
    shutil.copy(EARLIER, workflows)
    apps, server = workflows / "apps", shared_server()
    apps.mkdir()
    two_wires.write_inputs(apps)
    for name in APPS:
        (apps / f"{name}.json").write_text(json.dumps(on_embedded_models(load(name))), encoding="utf-8")
    videos = server.base / "input" / "videos"  # whose videos folder_of_videos takes
    videos.mkdir(exist_ok=True)
    shutil.copy(apps / two_wires.VIDEO, videos / "first.mp4")
    return visit(server, workflows, folder, RUN, EARLIER.stem)


def load(name: str) -> dict[str, Any]:
    path = EARLIER if name == EARLIER.stem else WORKFLOWS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def ours(errors: list[str]) -> list[str]:
    """Console errors that this pack is to blame for.

    The page's own affair are other files that it does not find, and other hosts, which the server forbids it to
    ask for the sizes of models. Of a help page it always asks for a translation first.
    """
    return [
        error
        for error in errors
        if "Content Security Policy" not in error
        and (not error.startswith("Failed to load resource") or f"/{PACK}/" in error)
        and not error.endswith("/en.md)")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_without_errors(page: dict[str, Any], name: str) -> None:
    workflow, seen = load(name), page["workflows"][name]
    assert sorted((node["id"], node["type"]) for node in seen["nodes"]) == sorted(
        (node["id"], node["type"]) for node in workflow["nodes"]
    )
    assert seen["dialogs"] == []
    # Models to download are asked for; nothing else may be wrong.
    assert seen["groups"].keys() <= {"missing-model"}
    asked_for = {"models": [], "nodes": []}
    for node in workflow["nodes"]:
        named = {model["name"] for model in node.get("properties", {}).get("models", [])}
        missing = [
            value
            for value in node.get("widgets_values") or []
            if isinstance(value, str) and value in named and value.endswith(MODEL_ENDINGS)
        ]
        asked_for["models"] += missing
        asked_for["nodes"] += [node["id"]] * bool(missing)
    models = seen["groups"].get("missing-model", {"models": []})["models"]
    assert sorted(models) == sorted(set(asked_for["models"]))
    wrong = [node["id"] for node in seen["nodes"] if node["hasErrors"]]
    assert sorted(wrong) == sorted(asked_for["nodes"])
    assert ours(seen["errors"]) == []


@pytest.mark.parametrize("name", [RUN, EARLIER.stem])
def test_workflows_that_need_nothing_show_no_error(page: dict[str, Any], name: str) -> None:
    seen = page["workflows"][name]
    assert len(seen["nodes"]) == len(load(name)["nodes"])
    assert seen["groups"] == {}
    assert not [node for node in seen["nodes"] if node["hasErrors"]]


def test_start_shows_no_error_of_ours(page: dict[str, Any]) -> None:
    # The page's own start has errors without any pack.
    assert [error for error in page["start"]["errors"] if "anycharv" in error.lower()] == []


def test_run_button_gives_videos(page: dict[str, Any]) -> None:
    assert page["run"]["outcome"]["kind"] == "execution_success", page["run"]["outcome"]
    saving = [node["id"] for node in load(RUN)["nodes"] if node["type"] == "SaveVideo"]
    assert sorted(video["id"] for video in page["run"]["results"]) == sorted(saving)
    for video in page["run"]["results"]:
        assert "type=output" in video["src"]
        assert video["width"] >= 64
        assert video["seconds"] > 0
    assert ours(page["run"]["errors"]) == []


@pytest.mark.parametrize("name", two_wires.BLUEPRINTS)
def test_a_blueprint_with_wires_shows_what_comes_out_of_it(page: dict[str, Any], name: str) -> None:
    seen = page["wired"][name]
    assert seen["outcome"]["kind"] == "execution_success", seen["outcome"]
    (result,) = seen["results"]
    assert "type=output" in result["src"] and result["width"] > 0
    if name != "Prepare Video":
        assert result["seconds"] == pytest.approx(1, abs=0.1)
        # Who is in the video, where sampling is going, and finished frames.
        assert seen["outcome"]["previews"] >= 3


def test_a_replaced_video_keeps_its_size(page: dict[str, Any]) -> None:
    (video,) = page["wired"]["Replace Character"]["results"]
    assert video["width"] == 256


def test_help_panel_shows_our_pages(page: dict[str, Any]) -> None:
    nodes = load(EARLIER.stem)["nodes"]
    assert page["help"].keys() == {n["type"] for n in nodes if n["type"].startswith("AnyCharV")}
    for node, shown in page["help"].items():
        source = (REPO / f"web/docs/{node}.md").read_text(encoding="utf-8")
        headings = [line[3:] for line in source.splitlines() if line.startswith("## ")]
        assert [heading for heading in headings if heading not in shown["text"]] == [], node
        assert shown["tables"] == sum(line.startswith("|---") for line in source.splitlines()) >= 2, node
        assert source.split("\n\n")[0].split()[:5] == shown["text"].split()[:5], node
    assert ours(page["help_errors"]) == []


def test_template_browser_shows_the_workflows_with_their_thumbnails(page: dict[str, Any]) -> None:
    assert sorted(card["name"] for card in page["templates"]) == NAMES
    for card in page["templates"]:
        with Image.open(WORKFLOWS / f"{card['name']}.jpg") as thumbnail:
            assert card["size"] == list(thumbnail.size), card
    assert ours(page["templates_errors"]) == []


def test_apps_show_a_form(page: dict[str, Any]) -> None:
    assert list(page["apps"]) == APPS == [name for name in NAMES if "linearData" in load(name)["extra"]]
    for name, app in page["apps"].items():
        shown = [shown_name(load(name), *entry) for entry in load(name)["extra"]["linearData"]["inputs"]]
        assert len(set(shown)) == len(shown)
        assert set(shown) <= set(app["form"].splitlines()), (name, app["form"])


def shown_name(workflow: dict[str, Any], node: str, widget: str) -> str:
    """What the page calls a widget of a workflow."""
    inputs = next(each["inputs"] for each in workflow["nodes"] if str(each["id"]) == node)
    labels = [entry.get("label") for entry in inputs if entry.get("widget", {}).get("name") == widget]
    return next(filter(None, labels), widget.rpartition(".")[2])


@pytest.mark.parametrize("name", APPS)
def test_app_runs_by_its_form(page: dict[str, Any], name: str) -> None:
    outcome = page["apps"][name]["outcome"]
    assert outcome["kind"] == "execution_success", outcome


def test_blueprints_and_nodes_are_found_by_what_they_are_called(page: dict[str, Any]) -> None:
    for path in (REPO / "subgraphs").glob("*.json"):
        seen = page["searched"][path.stem]
        (inner,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
        assert seen["added"]["title"] == path.stem, seen
        assert sorted(seen["added"]["within"]) == sorted(node["type"] for node in inner["nodes"])
    for words in ("character swap", "视频换人"):
        assert any("AnyCharV Replace Character" in text for text in page["searched"][words]["offered"]), words


def test_page_speaks_chinese(page: dict[str, Any]) -> None:
    shown = page["chinese"]
    entry = json.loads((REPO / "locales/zh/nodeDefs.json").read_text(encoding="utf-8"))["AnyCharVConditioning"]
    assert shown["title"] == entry["display_name"]
    assert shown["inputs"] == {name: part["name"] for name, part in entry["inputs"].items()}
    assert shown["outputs"][:2] == [entry["outputs"]["0"]["name"], entry["outputs"]["1"]["name"]]
