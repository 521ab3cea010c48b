"""The schema of a training: one YAML file per model, with its networks, its data and its phases.

Every section is a dataclass here, and every phase is checked when the file is read. A phase may override what
`engine`, `data` and `objective` at the top set for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from anycharv_core.models.schedule import TRAIN_STEPS, NoiseSchedule, schedule_of
from training.sections import Range, plain

# What no training of this kind exceeds, so that a typing mistake is reported before it exhausts the memory.
Count = Annotated[int, Range(0, 10**9)]
Some = Annotated[int, Range(1, 10**9)]
Side = Annotated[int, Range(8, 16384)]
Steps = Annotated[int, Range(1, TRAIN_STEPS)]
Share = Annotated[float, Range(0, 1)]
Amount = Annotated[float, Range(0, 10**6)]
Decay = Annotated[float, Range(0, 1 - 1e-9)]
BACKGROUND = "background"  # the condition that AnimateAnywhere's clips have
JOURNEYS = "travel", "wander"  # puppet worlds with cameras
ANYWHERE = "anywhere"  # the name of AnimateAnywhere in a model's settings
DIFFUSION = "diffusion", "distil"  # tasks that train the networks by what they predict
CACHE = "cache"  # the folder of encoded clips in a run's, beside those of the phases
Part = Literal[
    "denoising_unet",
    "reference_unet",
    "pose_guider",
    "object_guider",
    "vae",
    "image_encoder",
    "transformer",
    "control",
    "reference",
    "prompt",
    "bml",
]
Counts = tuple[Annotated[int, Range(1, 1000)], Annotated[int, Range(1, 1000)]]


@dataclass(frozen=True)
class Data:
    """What a phase trains on (training/data/).

    A clip is what one sample holds: a short run of successive frames of one video.

    source: "puppets" renders `clips` of them; "shards" reads what prepare_dataset wrote to `path`; "pairs" reads
    what make_pairs wrote to `path`, or what the phase named by `made_by` wrote to the run's own folder.
    world: of puppets, "first", "bold" (anycharv_core/puppets/bold.py), "acts", in which the bold ones touch things
    (interact.py), "travel", in which they go on journeys with the camera (travel.py), or "wander", in which the
    camera goes its own way and is shown the first frame.
    context: puppets are seen on a canvas that follows them (media/camera.py), with a context from this range;
    None shows whole frames.
    size: [width, height] in pixels; None takes each shard's own bucket, and 64 x 64 for puppets.
    mask: the kind of mask the network gets (paper 3.2 and 3.3): "fine" is exact, with an irregular border if
    `augment`; "box"; or "block", which is Animate Anyone 2's.
    rows, columns: of the blocks of that, lowest and highest number; drawn once for every clip, all orders of
    magnitude being as likely.
    strength: lowest and highest factor on the reach of that border (`masks.augment_mask`).
    box_share: share of clips that get a box instead of an augmented mask.
    padding: lowest and highest margin of a box, as a fraction of its size.
    conditions: what else a clip has: masks of "objects" that the person holds, and structured "depth"
    (anycharv_core/media/depth.py); or, for AnimateAnywhere, the "background" of the first frame, whose person is
    painted over, masks of the hands, and cameras where they were prepared. With objects, masks are of the body
    alone, and references show empty hands.
    backgrounds: folder of a shard's videos with nobody in them, which "background" then shows: of each a folder
    of its name without suffix, one PNG a frame, as large as the video.
    scale: lowest and highest factor by which person and objects are made larger or smaller, in a share of
    `scale_share` of the clips, while scene and mask stay those of their own size (Animate Anyone 2, section 3.2).
    depth_twins: share of puppets' clips whose limbs are in front where they would be behind, which skeletons don't
    tell: otherwise a pose gives its depth away, and the depth need not be read.
    carried: share of clips whose first frame is given whole, as the last one of the clip before is at inference.
    reference: "cutout" shows the person in another frame on black, as in the paper; "picture" does so with the
    background; "background" with another one, of another clip, of one colour, or noise; "frame" is Animate
    Anyone's, a whole frame of the same clip. With "frame", puppets perform and stand in front of a plain wall.
    pose_scale: how many times larger skeletons are drawn before they are scaled down; None: 4 for puppets, as
    the embedded model needs it, else 1.
    stride: frames of a real video from one frame of a clip to the next.
    flip: probability of mirroring a real clip, and independently its reference.
    split: "train" or "heldout". seed: of the choice of puppets and of all random draws.
    """

    source: Literal["puppets", "shards", "pairs"] = "puppets"
    path: str | None = None
    made_by: str | None = None
    size: tuple[Side, Side] | None = None
    clips: Annotated[int, Range(1, 10**7)] = 1000
    world: Literal["first", "bold", "acts", "travel", "wander"] = "first"
    context: tuple[Amount, Amount] | None = None
    mask: Literal["fine", "box", "block"] = "fine"
    rows: Counts = (10, 10)
    columns: Counts = (10, 10)
    conditions: tuple[Literal["objects", "depth", "background"], ...] = ()
    backgrounds: str | None = None
    scale: tuple[Annotated[float, Range(0.1, 10)], Annotated[float, Range(0.1, 10)]] | None = None
    scale_share: Share = 0.5
    depth_twins: Share = 0.0
    carried: Share = 0.0
    augment: bool = True
    strength: tuple[Amount, Amount] = (0.2, 2.0)
    box_share: Share = 0.0
    padding: tuple[Amount, Amount] = (0.0, 0.2)
    reference: Literal["cutout", "picture", "background", "frame"] = "cutout"
    pose_scale: Annotated[int, Range(1, 16)] | None = None
    stride: Some = 1
    flip: Share = 0.0
    split: Literal["train", "heldout"] = "train"
    seed: Count = 0


# Options that data had not before; caches and pairs that were made without them are of their defaults.
_LATER = ("rows", "columns", "conditions", "scale", "scale_share", "depth_twins", "carried", "backgrounds")


def data_facts(data: Data) -> dict[str, Any]:
    """The options of data as JSON can hold them, by which what was made with them is known again."""
    defaults, facts = plain(Data()), plain(data)
    return {key: value for key, value in facts.items() if key not in _LATER or value != defaults[key]}


@dataclass(frozen=True)
class Epipolar:
    """AnimateAnywhere's loss of attention off epipolar lines (equations 3 and 4), of clips with cameras.

    weight: 0 is off. mask: what is punished, all attention "outside" the lines, or of that, "adaptive", only what
    is below the `percentile` of a head's and query's values for a slot. band: half the width of a line, in
    diagonals of a token. queries: background tokens of each clip for which it is computed; blocks: of the
    transformer, drawn at random, 0 being all.
    """

    weight: Amount = 0.0
    mask: Literal["adaptive", "outside"] = "adaptive"
    percentile: Share = 0.3
    band: Amount = 0.5
    queries: Some = 128
    blocks: Count = 0


@dataclass(frozen=True)
class Vgg:
    """AnimateAnywhere's distance of decoded pictures to VGG16, hands counting twice (equations 6 and 7), of clips
    whose timestep is less than `below`.

    weight: 0 is off. file: torchvision's weights. crop: latent pixels a side that are decoded, all frames of them.
    """

    weight: Amount = 0.0
    file: str | None = None
    below: Annotated[int, Range(1, TRAIN_STEPS)] = 300
    crop: Some = 32


@dataclass(frozen=True)
class Objective:
    """Options of the loss, off unless the config says so.

    drop: share of clips trained without reference, for classifier-free guidance.
    terminal: extra share of clips at pure noise, where sampling starts.
    outside, inside: loss weights of the scene, and of the masked area around the character; the character's own
    weight is 1.
    min_snr: the gamma of Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy"; 0 is off.
    noise_offset: strength of a noise that is equal in all pixels and frames of a clip.
    mask_input: whether the network gets the mask, as in the paper; false is for the ablation.
    object_input: whether objects are shown as a part of the scene, outside the mask, in place of by their guider;
    true is for the ablation (Animate Anyone 2, Table 4).
    order: further loss weight of what is seen otherwise if the limbs in front are behind, where data has
    `depth_twins`: so few pixels would have the depth read late.
    drop_objects, drop_depth: share of clips trained without them, so that either may be missing in use.
    epipolar, vgg: further losses of AnimateAnywhere.
    """

    drop: Share = 0.0
    terminal: Share = 0.0
    outside: Amount = 1.0
    inside: Amount = 1.0
    order: Amount = 0.0
    min_snr: Amount = 0.0
    noise_offset: Amount = 0.0
    mask_input: bool = True
    object_input: bool = False
    drop_objects: Share = 0.0
    drop_depth: Share = 0.0
    epipolar: Epipolar = field(default_factory=Epipolar)
    vgg: Vgg = field(default_factory=Vgg)


@dataclass(frozen=True)
class Validate:
    """Every `every` steps (0: never), on `clips` held-out clips: the loss at `timesteps`, and a sheet of the
    first `sheet` clips, sampled in `steps` with `guidance`. data: the phase's, with the split "heldout" and
    with what is set here."""

    every: Count = 0
    clips: Some = 8
    timesteps: tuple[Annotated[int, Range(0, TRAIN_STEPS - 1)], ...] = (100, 300, 500, 700, 900, 999)
    sheet: Count = 3
    steps: Steps = 10
    guidance: Amount = 1.0
    data: Data = field(default_factory=lambda: Data(split="heldout"))


@dataclass(frozen=True)
class Cache:
    """Encodes each clip once, in `variants` augmentations that return every `variants` epochs; 0 is off.

    resident: all of them lie in the memory of the device that trains; small networks on a card would wait for
    files.
    """

    variants: Count = 0
    resident: bool = False


@dataclass(frozen=True)
class Export:
    """How the trained model is written: as a "single" file, the official "folder", or "both"; in `dtype`; `parts`:
    None = all there are."""

    layout: Literal["single", "folder", "both"] = "folder"
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    parts: tuple[Part, ...] | None = None


@dataclass(frozen=True)
class Pairs:
    """How a phase of task "pairs" makes them (paper 3.3): `pairs` of them, `per_shard` to a file, sampled in
    `steps` with `guidance`.

    model: the phase whose model makes them; by default the one before.
    motion: whether its motion modules run; without them all frames of a clip start from the same noise, which
    keeps a frame-wise model from flickering.
    min_quality: pairs of lower quality are dropped; 0 keeps all. A pair's quality is how near the generated region
    is to the original in sharpness: min(e, 1 / e) with e = `metrics.gradient_energy` over the masks, 1 at best.
    sharpen: how far pairs are blurred or sharpened at random, for models whose results are all equally soft.
    """

    pairs: Annotated[int, Range(0, 10**8)] = 0
    model: str | None = None
    per_shard: Annotated[int, Range(1, 10**5)] = 100
    steps: Steps = 30
    guidance: Amount = 3.0
    motion: bool = False
    min_quality: Share = 0.0
    sharpen: Annotated[float, Range(0, 100)] = 0.0


@dataclass(frozen=True)
class Distil:
    """What a phase of task "distil" makes of the model before it (training/distil.py): one of `steps` steps
    without guidance, each of which leads where the teacher comes in `substeps` of its own with `guidance`."""

    steps: Steps = 4
    substeps: Annotated[int, Range(2, 100)] = 4
    guidance: Amount = 3.0


@dataclass(frozen=True)
class Lora:
    """A LoRA of the denoising UNet (Hu et al., 2021). alpha: scale times rank, by default the rank itself;
    targets: ends of the names of linear layers; start: a file of an earlier training to go on from."""

    rank: Annotated[int, Range(1, 4096)] = 16
    alpha: Annotated[float, Range(0, 10**6, above=True)] | None = None
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    start: str | None = None


@dataclass(frozen=True)
class Phase:
    """One phase of the training.

    task: "diffusion" is eq. 2 and 3; "distil" makes the model before it one of few steps, as its section `distil`
    says; "codec" and "decoder" train the embedded model's PatchCodec; "pairs" makes the self-boosting pairs, as
    its section `pairs` says.
    train: what is trained; "spatial" is the denoising UNet without its motion modules, "motion" these alone. Of
    AnimateAnywhere's transformer, control, reference and bml, those that are not named are not used either, but
    for the transformer.
    motion: whether the motion modules run.
    batch: clips per optimizer step over all processes, in `accumulate` portions one after another.
    lr: the peak learning rate, after a linear `warmup` of so many steps; then `schedule` keeps it "constant" or
    lets it fall to a tenth ("cosine").
    optimizer: "adamw8bit" keeps AdamW's averages in 8 bits (bitsandbytes), "adamw_offload" in main memory.
    ema: decay of the moving average that is validated and exported; 0 is off.
    grad_clip: largest gradient norm; 0 is off.
    checkpointing: whether activations are computed again in the backward pass, to save memory.
    graphs: whether a step's kernels are recorded once as CUDA graphs, for small networks on one card, which Python
    cannot call fast enough.
    save_every: steps between checkpoints, of which the last `keep` are kept.
    lora: trained instead of `train`.
    """

    task: Literal["diffusion", "distil", "codec", "decoder", "pairs"] = "diffusion"
    train: tuple[
        Literal[
            "denoising_unet",
            "spatial",
            "motion",
            "reference_unet",
            "pose_guider",
            "object_guider",
            "image_encoder",
            "transformer",
            "control",
            "reference",
            "bml",
        ],
        ...,
    ] = ()
    motion: bool = False
    steps: Count = 0
    batch: Annotated[int, Range(1, 10**6)] = 1
    accumulate: Some = 1
    frames: Annotated[int, Range(1, 10**4)] = 1
    lr: Annotated[float, Range(0, 100, above=True)] = 1e-5
    warmup: Count = 0
    schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["adamw", "adamw8bit", "adamw_offload"] = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: Annotated[float, Range(0, 100)] = 0.01
    ema: Decay = 0.0
    grad_clip: Annotated[float, Range(0, 10**6)] = 1.0
    checkpointing: bool = False
    graphs: bool = False
    log_every: Some = 50
    save_every: Some = 500
    keep: Some = 2
    data: Data = field(default_factory=Data)
    objective: Objective = field(default_factory=Objective)
    validate: Validate = field(default_factory=Validate)
    cache: Cache = field(default_factory=Cache)
    export: Export = field(default_factory=Export)
    pairs: Pairs = field(default_factory=Pairs)
    distil: Distil = field(default_factory=Distil)
    lora: Lora | None = None


@dataclass(frozen=True)
class Engine:
    """What holds for the whole run. Every key of `Phase` may also be set in `engine`, for all phases.

    precision: of the arithmetic; weights stay float32; "auto" is bf16 where the device has it, else fp32.
    workers: processes that read or render samples.
    tracker: what plots the losses.
    """

    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    workers: Annotated[int, Range(0, 1024)] = 0
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"


@dataclass(frozen=True)
class Init:
    """The files a training starts from (training/start/); every one may be left out.

    model: a folder or single file to fine-tune, of the system that the recipe's networks are of. AnimateAnywhere's
    may lack the motion learner, which then starts fresh, and the base, which `base` names.
    scene: whether the denoising UNet takes scene and mask (AnyCharV) or neither (Animate Anyone); None: as the
    model or the networks say, by default true. False turns an AnyCharV model into one of Animate Anyone; true
    gives one of Animate Anyone the channels, which begin at zero, as Animate Anyone 2 needs them.
    unet: Stable Diffusion 1.5 as diffusers' folder (of the whole model or of its `unet`), a weights file in it, or
    a CompVis .safetensors or .ckpt file.
    reference_unet: the same for the ReferenceNet; by default `unet`.
    motion: AnimateDiff's motion file.
    pose_guider: a ControlNet, such as control_v11p_sd15_openpose.
    vae, image_encoder: their folders.
    base: CogVideoX1.5-5B-I2V, the folder as it is published, on which AnimateAnywhere is built; it brings the VAE.
    prompt: a .safetensors file of the text that every clip has, `embeds` [n, width]; without it, zeros.
    additions: settings laid over the configs of parts that come from files, such as what Animate Anyone 2 has
    beyond the model or the published networks it starts from; what they add starts fresh.
    """

    model: str | None = None
    scene: bool | None = None
    unet: str | None = None
    reference_unet: str | None = None
    motion: str | None = None
    pose_guider: str | None = None
    vae: str | None = None
    image_encoder: str | None = None
    base: str | None = None
    prompt: str | None = None
    additions: dict[str, dict[str, Any]] | None = None

    def files(self) -> dict[str, str]:
        """The paths that are given, by key."""
        return {key: value for key, value in vars(self).items() if isinstance(value, str)}


@dataclass(frozen=True)
class Settings:
    """What the pipeline uses by default with the trained model, and the noise schedule that it is trained with
    (diffusers' names; AnyCharV's where it is left out). world: the puppet world it knows (data.world), in which
    the demo and the benchmark then show it. frames: of a clip of AnimateAnywhere; image_scale: what
    its picture latents are multiplied by, 1 where it is left out."""

    size: tuple[Side, Side] | None = None
    pose_scale: Annotated[int, Range(1, 16)] | None = None
    steps: Steps | None = None
    blocks: Counts | None = None
    guidance_scale: Amount | None = None
    frames: Some | None = None
    image_scale: Annotated[float, Range(1e-6, 10**6)] | None = None
    world: Literal["first", "bold", "acts", "travel"] | None = None
    noise_scheduler_kwargs: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The settings that are given, as a checkpoint stores them."""
        return {name: value for name, value in plain(self).items() if value is not None}


@dataclass(frozen=True)
class Config:
    """The whole file. networks: config of each part, which is freshly initialised; None where `init` names the
    files to start from."""

    phases: dict[str, Phase]
    seed: Count = 0
    networks: dict[str, dict[str, Any]] | None = None
    init: Init = field(default_factory=Init)
    settings: Settings = field(default_factory=Settings)
    engine: Engine = field(default_factory=Engine)

    def settings_of(self, phase: Phase) -> dict[str, Any]:
        """What the pipeline uses by default with the model of a phase: of a distilled one, its own steps."""
        own = {"steps": phase.distil.steps, "guidance_scale": 1.0} if phase.task == "distil" else {}
        system = {"system": ANYWHERE, "image_scale": 1.0} if self.is_dit else {}
        return system | self.settings.to_dict() | own

    @property
    def is_dit(self) -> bool:
        """Whether it trains AnimateAnywhere, whose networks are transformers."""
        return self.init.base is not None or "transformer" in (self.networks or {})

    @property
    def schedule(self) -> NoiseSchedule:
        """What is predicted, on which noise: `noise_scheduler_kwargs` of the settings, or AnyCharV's."""
        return schedule_of(self.settings.to_dict())
