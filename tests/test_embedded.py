"""The shipped model: what it is, and that it does its job on characters it has never seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from anycharv_core import Pipeline
from anycharv_core.checkpoint import EMBEDDED_FILE, read_checkpoint
from anycharv_core.demo import run
from anycharv_core.metrics import psnr
from anycharv_core.puppets.task import BASELINES, sample_swap
from anycharv_core.video import probe

CONFIG = Path(__file__).parents[1] / "training" / "configs" / "embedded.yaml"


def test_it_is_small_and_made_by_the_config_in_the_repo() -> None:
    assert EMBEDDED_FILE.stat().st_size <= 40e6
    config, shipped = yaml.safe_load(CONFIG.read_text()), read_checkpoint("embedded")
    assert shipped.configs == config["networks"] and shipped.settings == config["settings"]
    record = json.loads((EMBEDDED_FILE.parent / "training.json").read_text())
    assert record["settings"]["networks"] == config["networks"]
    assert {"compose", "boost", "motion", "boost_clips"} <= set(record["log"])


def test_it_beats_copying_and_erasing_on_unseen_characters() -> None:
    pipe = Pipeline.from_pretrained("embedded")
    swaps = [sample_swap(seed, 2, 64) for seed in range(100, 108)]

    def score(frames_of) -> float:
        return float(np.mean([psnr(frames_of(s), s.truth.frames, s.region) for s in swaps]))

    shipped = {name: pipe.settings[name] for name in ("steps", "guidance_scale")}
    made = score(lambda s: pipe(s.reference, s.driving.frames, s.box, s.pose, **shipped).frames)
    for name in ("copy driving", "background only"):
        assert made > score(BASELINES[name]) + 1, name


def test_the_demo_leaves_a_video_a_sheet_and_a_report(tmp_path: Path) -> None:
    report = run(tmp_path / "new" / "demo", clips=1)
    info = probe(tmp_path / "new" / "demo" / "result.mp4")
    assert (info.frames, info.width, info.height) == (24, 4 * 256, 256)
    with Image.open(tmp_path / "new" / "demo" / "sheet.png") as sheet:
        assert np.asarray(sheet).std() > 20
    assert json.loads((tmp_path / "new" / "demo" / "report.json").read_text()) == report
    assert set(report["mean_region_psnr_db"]) == {"result", *BASELINES}
    assert report["mean_region_psnr_db"]["result"] == pytest.approx(report["region_psnr_db"][0]["result"])
