"""The schema of a training: what is wrong anywhere in it is one sentence, when the file is read."""

from __future__ import annotations

import re
import sys
import typing
from pathlib import Path

import pytest
import yaml
from tiny_training import RECIPES, long_recipe, recipe, write

from anycharv_core.errors import UserError
from training.config import Lora, Pairs, Phase, Validate
from training.config_file import parse, read_config
from training.sections import plain
from training.train import main
from training.trainee import TRAINABLE

CONFIGS = Path(__file__).parents[1] / "training" / "configs"


def fails(capsys, *arguments: str) -> str:
    """The one line that the command ends with."""
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("training: ") and said.count("\n") == 1
    return said


# (change, what the sentence holds)
MISTAKES = [
    # unknown keys, with the closest one that exists
    ("phases.compose.batchsize=3", "'phases.compose.batchsize'; the closest valid one is 'phases.compose.b"),
    ("phases.lora.lora={rnak: 16}", "'phases.lora.lora.rnak'; the closest valid one is 'phases.lora.lora.rank'"),
    (
        "phases.pairs.pairs.stepz=1",
        "the closest valid one is 'phases.pairs.pairs.steps'",
    ),
    (
        "phases.last.data.sorce=pairs",
        "the closest valid one is 'phases.last.data.source'",
    ),
    ("phases.last.validate.data.sizes=1", "the closest valid one is 'phases.last.validate.data.size'"),
    ("phases.compose.validate.evry=1", "no key 'phases.compose.validate.evry'"),
    ("init.poseguider=x", "'init.poseguider'; the closest valid one is 'init.pose_guider'"),
    ("settings.guidance=2", "'settings.guidance'; the closest valid one is 'settings.guidance_scale'"),
    ("engine.trakcer=none", "'engine.trakcer'; the closest valid one is 'engine.tracker'"),
    ("data.sizes=[8, 8]", "'data.sizes'; the closest valid one is 'data.size'"),
    ("objective.dropp=1", "no key 'objective.dropp'"),
    ("networks.denoising_unt={}", "'networks.denoising_unt'; the closest valid one is 'networks.denoising_unet'"),
    ("sed=1", "no key 'sed'; the closest valid one is 'seed'"),
    ("networks.denoising_unet.block_out_channels=64", "networks.denoising_unet"),
    ("networks.pose_guider.conditioning_channels=many", "networks.pose_guider"),
    # names
    ("phases.last.train=[spatail]", "'spatail', but it must be one of denoising_unet, spatial, motion"),
    ("phases.last.train=[spatail]", "'spatial' is the closest"),
    ("phases.last.export.parts=[unet]", "'phases.last.export.parts[0]' is 'unet'"),
    ("phases.last.schedule=linear", "must be one of constant, cosine"),
    ("phases.last.data.made_by=pears", "'pears', which is not an earlier phase that makes pairs"),
    ("phases.compose.data.made_by=pairs", "not an earlier phase that makes pairs"),
    ("phases.pairs.pairs.model=compos", "'compos', which is not an earlier phase that trains"),
    # kinds
    ("phases.compose.steps=many", "'phases.compose.steps' is 'many', but it must be a whole number"),
    ("phases.compose.ema=true", "'phases.compose.ema' is True, but it must be a number"),
    ("phases.lora.lora.targets=to_q", "'phases.lora.lora.targets' is 'to_q', but it must be a list"),
    ("phases.lora.lora=16", "'phases.lora.lora' is 16, but it must hold keys"),
    ("phases.last.betas=[0.9]", "must be a list of 2 values"),
    ("phases=3", "'phases' is 3, but it must hold keys"),
    ("data.path=" + '"a\\0b"', "holds damaged text"),
    # ranges
    ("phases.last.lr=.inf", "'phases.last.lr=.inf' holds a number that is too large or not finite"),
    ("phases.last.lr=nan", "'phases.last.lr' is 'nan', but it must be a finite number"),
    ("phases.last.lr=0", "'phases.last.lr' is 0.0, but it must be above 0"),
    ("phases.last.frames=0", "'phases.last.frames' is 0, but it must be at least 1"),
    ("phases.last.data.box_share=1.5", "must be at least 0 and at most 1"),
    ("phases.last.data.size=[8, 99999]", "'phases.last.data.size[1]' is 99999"),
    ("phases.last.data.strength=[2, 1]", "give the lower number first"),
    ("phases.last.validate={every: 1, timesteps: [1000]}", "'phases.last.validate.timesteps[0]' is 1000"),
    ("phases.lora.lora.rank=0", "'phases.lora.lora.rank' is 0, but it must be at least 1"),
    ("phases.pairs.pairs.min_quality=2", "at most 1"),
    ("seed=-1", "seed' is -1, but it must be at least 0"),
    ("engine.workers=100000", "at most 1,024"),
    # what does not go together
    ("phases.last.accumulate=4", "does not divide"),
    ("phases.last.steps=0", "'phases.last.steps' is 0: give the number"),
    ("phases.last.train=[]", "'phases.last.train' is empty"),
    ("phases.lora.train=[motion]", "'phases.lora.train' must be empty"),
    ("phases.last.train=[motion]", "'phases.last.motion' is false"),
    ("phases.last.data={source: shards, made_by: null}", "'phases.last.data.path' names no folder"),
    ("phases.pairs.pairs.pairs=0", "'phases.pairs.pairs.pairs' is 0"),
    ("phases.compose.clip=1", "'phases.compose.clip' is the old name of 'grad_clip'"),
    ("phases={}", "'phases' is empty"),
    ("phases={../out: {}}", "names a folder: use letters"),
    ("phases.cache={steps: 1, train: [motion]}", "names a folder"),
    (
        "settings.noise_scheduler_kwargs={prediction_type: x}",
        "prediction_type='x', but it must be one of 'epsilon', 'v_prediction', 'sample'",
    ),
    # the change itself
    ("phases.compose", "write it like"),
    ("seed.x=1", "'seed' holds a value, so no key can be set in it"),
    ("seed=[", "--set 'seed=[' is not valid YAML"),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES)
def test_a_mistake_in_any_phase_is_named_when_the_file_is_read(
    tmp_path: Path, capsys, change: str, said: str
) -> None:
    config = long_recipe()
    config["phases"]["compose"]["grad_clip"] = 1.0
    path, out = write(tmp_path, config), tmp_path / "run"
    assert said in fails(capsys, str(path), "--out", str(out), "--cpu", "--set", change)
    assert not out.exists()


def test_an_optimizer_that_is_not_installed_is_named(tmp_path: Path, capsys) -> None:
    if "bitsandbytes" in sys.modules:
        pytest.skip("needs a machine without bitsandbytes")
    path, change = write(tmp_path, recipe()), "phases.compose.optimizer=adamw8bit"
    assert "bitsandbytes" in fails(capsys, str(path), "--out", str(tmp_path / "run"), "--cpu", "--set", change)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_own_recipes_are_read_and_say_themselves_in_full(path: Path) -> None:
    config = read_config(path)
    assert parse(yaml.safe_load(yaml.safe_dump(plain(config), sort_keys=False))) == config


def test_sections_are_laid_over_each_other() -> None:
    config = recipe(validate={"every": 2, "data": {"clips": 3}}, data={"flip": 0.5})
    config["seed"], config["engine"]["clip"] = 7, 0.25
    phase = parse(config).phases["compose"]
    assert (phase.data.size, phase.data.flip, phase.data.seed) == ((16, 16), 0.5, 7)
    held_out = phase.validate.data
    assert (held_out.split, held_out.clips, held_out.flip, held_out.size) == ("heldout", 3, 0.5, (16, 16))
    assert phase.grad_clip == 0.25, "the key's older name"


def test_set_changes_a_value(tmp_path: Path) -> None:
    changes = ["phases.compose.lr=1e-6", "phases.compose.train=[reference_unet]"]
    config = read_config(write(tmp_path, recipe()), changes)
    assert config.phases["compose"].lr == 1e-6 and config.phases["compose"].train == ("reference_unet",)


def test_the_schema_and_the_trainer_name_the_same_parts() -> None:
    names = typing.get_args(typing.get_args(typing.get_type_hints(Phase)["train"])[0])
    assert set(names) == set(TRAINABLE)


def test_every_section_has_defaults_that_are_valid() -> None:
    for section in (Phase(), Validate(), Pairs(), Lora()):
        assert section == type(section)()
    assert parse({"phases": {"a": {"steps": 1, "train": ["spatial"]}}}).phases["a"].lora is None


NO_CONFIGS = {
    "empty": "",
    "a list": "[]",
    "torn": "a: [",
    "zero byte": "\x00",
    "a word": "x",
    "an empty phase": "phases: {a: null}",
    "itself": "a: &a [*a]",
    "deep": "[" * 5000,
    "a date": "seed: 2020-01-01",
    "a huge number": "seed: " + "9" * 5000,
}


@pytest.mark.parametrize("text", NO_CONFIGS.values(), ids=NO_CONFIGS)
def test_what_is_no_config_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        read_config(path)


def test_the_command_for_24_gb_in_the_docs_changes_what_the_recipe_s_comments_name() -> None:
    page = (CONFIGS.parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    command = next(block for block in page.split("```") if "engine.optimizer=adamw8bit" in block)
    changes = re.findall(r"--set (\S+)", command)
    phases = read_config(CONFIGS / "anycharv.yaml", changes).phases
    trained = [phase for phase in phases.values() if phase.task != "pairs"]
    assert [phase.batch // phase.accumulate for phase in trained] == [2, 2, 1, 1]
    assert all(phase.checkpointing and phase.optimizer == "adamw8bit" for phase in trained)
    assert {phase.cache.variants for phase in trained} == {4} and phases["boost_clips"].frames == 16
    # Each of them is what a comment of the recipe asks for.
    comments = (CONFIGS / "anycharv.yaml").read_text(encoding="utf-8").count("# 24 GB:")
    assert comments == len(changes) + 1, "the frames of motion stay"
