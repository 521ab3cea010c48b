"""`--dry-run`: the plan of a training, also before all of its files are there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_training import PHASE, recipe, write

from anycharv_core.checkpoints.networks import untrained
from training import plan
from training.config_file import read_config
from training.plan import known_configs, missing_files
from training.train import main

CONFIGS = Path(__file__).parents[1] / "training" / "configs"


def planned(folder: Path, config: dict, capsys, *options: str) -> list[str]:
    path = write(folder, config)
    assert main([str(path), "--out", str(folder / "run"), "--dry-run", *options]) == 0
    assert not (folder / "run").exists()
    return capsys.readouterr().out.splitlines()


def starting(lines: list[str], start: str) -> str:
    (found,) = [line for line in lines if line.startswith(start)]
    return found


def test_a_single_phase_is_planned_alone(tmp_path: Path, capsys) -> None:
    config = recipe()
    config["phases"]["later"] = PHASE | {"steps": 9, "train": ["spatial"]}
    config["phases"]["pairs"] = {"task": "pairs", "frames": 3, "pairs": {"pairs": 24}}
    every = planned(tmp_path, config, capsys)
    assert starting(every, "compose:") and starting(every, "later:") and starting(every, "pairs:")
    alone = planned(tmp_path, config, capsys, "--phase", "later")
    assert starting(alone, "later: diffusion, 9 steps of 2 clips of 2 frames")
    assert not [line for line in alone if line.startswith(("compose:", "pairs:"))]
    made = planned(tmp_path, config, capsys, "--phase", "pairs")
    assert made[-2:] == ["pairs: makes 24 pairs of 3 frames", "  data: 8 clips from puppets, 3.00 epochs"]


def test_networks_in_the_recipe_need_no_files(tmp_path: Path, capsys) -> None:
    config = recipe()
    trains = starting(planned(tmp_path, config, capsys), "  trains ")
    config["init"] = {"model": "models/none"}
    lines = planned(tmp_path, config, capsys)
    assert "init.model (models/none)" in starting(lines, "Not there yet: ")
    assert starting(lines, "  trains ") == trains and "GiB" in starting(lines, "  memory")


def test_what_cannot_be_known_is_said_and_the_rest_planned(tmp_path: Path, capsys) -> None:
    config = recipe(data={"source": "shards", "path": str(tmp_path / "shards")})
    config |= {"networks": None, "init": {"model": "models/none"}}
    config["phases"]["puppets"] = dict(PHASE)
    lines = planned(tmp_path, config, capsys)
    said = starting(lines, "Parameters and memory are not computed")
    assert "denoising_unet" in said and "init.model (models/none)" in said
    assert starting(lines, "compose: diffusion, 6 steps of 2 clips of 2 frames")
    assert starting(lines, "  data: not counted: ").endswith("python -m training.prepare_dataset.")
    assert starting(lines, "  data: 8 clips from puppets, 1.50 epochs")
    assert not [line for line in lines if line.startswith(("  trains", "  memory"))]


STARTS = {"unet", "motion", "pose_guider", "vae", "image_encoder"}
TUNED = {"model", "vae", "image_encoder"}


@pytest.mark.parametrize(
    ("name", "channels", "files"),
    [("anycharv", 9, STARTS), ("animate_anyone", 4, STARTS), ("lora", 9, TUNED), ("distil", 9, TUNED)],
)
def test_published_files_have_known_sizes(name: str, channels: int, files: set[str]) -> None:
    config = read_config(CONFIGS / f"{name}.yaml")
    assert missing_files(config.init).keys() == files
    configs = known_configs(config)
    with torch.device("meta"):
        nets = untrained(configs)
    present = ((part, net) for part, net in vars(nets).items() if net)
    millions = {part: round(sum(p.numel() for p in net.parameters()) / 1e6) for part, net in present}
    assert millions == {
        "denoising_unet": 1313,
        "reference_unet": 860,
        "pose_guider": 1,
        "vae": 84,
        "image_encoder": 304,
    }
    assert configs["denoising_unet"]["in_channels"] == channels


def test_a_distillation_counts_its_teacher(tmp_path: Path, capsys) -> None:
    config = recipe()
    config["phases"]["few"] = PHASE | {"task": "distil", "train": ["denoising_unet"]}
    config["phases"]["more"] = PHASE | {"train": ["denoising_unet"]}
    few, more = (planned(tmp_path, config, capsys, "--phase", name) for name in ("few", "more"))
    assert starting(few, "few: distil, 6 steps of 2 clips of 2 frames")
    assert starting(few, "  trains ") == starting(more, "  trains ")
    assert "GiB" in starting(few, "  memory")


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("animate_anyone_2", {"joint": 2_153_749_390}),
        # The ReferenceNet has 122,735,872 parameters more, behind the last place where it is read.
        ("animate_anywhere", {"control": 2_565_218_816, "reference": 2_272_558_336, "joint": 4_969_897_728}),
    ],
)
def test_recipes_of_papers_without_code_train_what_was_reckoned(
    name: str, trained: dict[str, int], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where none of their files are
    monkeypatch.setattr(plan, "_memory", lambda *_: "not reckoned, which takes long")
    assert main([str(CONFIGS / f"{name}.yaml"), "--out", "run", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {}
    for heading, line in pairwise(lines):
        if line.startswith("  trains "):
            found[heading.partition(":")[0]] = int(line.split()[1].replace(",", ""))
    assert found == trained
