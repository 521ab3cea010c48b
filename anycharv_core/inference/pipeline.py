"""A character and a video, or poses alone, in; the finished video out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..media.camera import CONTEXT, Box
from ..media.canvas import AUTO, FRAME, PERSON, CanvasPath, choose_path, nearest_multiple, pose_canvas
from ..media.frames import Frames, Reopened, Source, eight_bit, together
from ..media.imaging import Size
from ..media.masks import block_masks, mask_box
from ..media.pose import Poses
from ..models.windows import Windows
from ..preprocess.shots import find_cuts
from ..systems import System, read_checkpoint
from ..systems.recipes import Recipe
from .anywhere import AnywhereBackend
from .backend import DEPTH, OBJECTS, Backend, TorchBackend
from .encode import (
    EncodedVideo,
    Person,
    Watch,
    cut_scene,
    encode_people,
    encode_scene,
    frames_at_a_time,
    place_poses,
)
from .finish import Finish, PasteBack, keyed, paste_reach, whole
from .latents import Latents
from .phases import Phases
from .plan import Plan, Prepared
from .reference import Reference, check_background, refer, split_reference
from .sampling import Progress, Sampled, Sampling, to_the_end
from .shortcuts import NONE, Shortcuts, check_cache, check_shortcuts
from .skeletons import PictureSkeletons, PointSkeletons


@dataclass
class Output:
    """frames: uint8 [F, H, W, 3], or an iterator of [H, W, 3] where the scene, or without one the pose, was one.

    denoised: the latents before decoding; `latents` brings them all into memory, float32 [F, c, h, w]. seconds:
    time spent by phase; "decode" grows as an iterator is consumed.
    """

    frames: np.ndarray | Iterator[np.ndarray]
    denoised: Latents
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def latents(self) -> Tensor:
        return self.denoised.whole()


class Pipeline:
    """Runs the networks of one model, which a backend holds."""

    def __init__(self, backend: Backend, folder: Path | None = None):
        """folder: where the temporary files of a long video lie, None = where the system has them."""
        self.backend = backend
        self.folder = folder

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        vae: str | Path | nn.Module | None = None,
        image_encoder: str | Path | nn.Module | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        base: str | Path | None = None,
    ) -> Pipeline:
        """Loads a model by its name in `places.EMBEDDED`, a .safetensors file, or a folder in a system's layout.

        vae, image_encoder: a folder or a module that takes the place of the checkpoint's own; needed
        where the checkpoint has none. compile: the denoising UNet goes through torch.compile, see
        `TorchBackend.compile`. base: the folder of the model that one of AnimateAnywhere was trained on,
        CogVideoX1.5-5B-I2V, needed where it does not hold that itself. Raises UserError when a file is missing or
        not what it should be.
        """
        checkpoint = read_checkpoint(path, None if base is None else Path(base))
        kind = AnywhereBackend if checkpoint.is_dit else TorchBackend
        return cls(kind.of_checkpoint(checkpoint, path, vae, image_encoder, device, dtype, compile))

    @property
    def system(self) -> System:
        """The system the model belongs to."""
        return self.backend.system

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model's recommended settings."""
        return self.backend.settings

    def __call__(
        self,
        reference: np.ndarray,
        scene: Frames | None = None,
        mask: Frames | None = None,
        pose: Frames | Poses | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 42,
        noise: Tensor | None = None,
        size: Size | None = None,
        recipe: str = "default",
        progress: Progress | None = None,
        reference_mask: np.ndarray | None = None,
        canvas: str = AUTO,
        context: float = CONTEXT,
        objects: Frames | None = None,
        depth: Frames | None = None,
        shortcuts: Shortcuts = NONE,
        match_colour: bool = False,
        background: np.ndarray | None = None,
    ) -> Output:
        """Puts the character of `reference` in the place of the masked person of `scene`, or animates it.

        reference: uint8 [H, W, 3], or [H, W, 4] whose alpha cuts the character out; reference_mask: uint8
        [H, W] that does the same. scene: uint8 [F, H, W, 3], or uint16 as colour.py has them, which the frames of
        the output then are too; mask: uint8 [F, H, W], 255 = replace; pose:
        uint8 [F, H, W, 3] skeletons or `Poses`; each may be an iterable of frames instead, which is then read as
        a stream. steps, guidance_scale: None = the release's. noise: float32 [F, c, h, w] to start from,
        instead of what `seed` draws. size: (width, height) the networks work at; None = the scene's own
        (recipe "official": the pose frames'). The default recipe returns frames of the scene's size
        whatever `size` is. progress(done, total) is called after every denoising call; what it raises stops it.

        canvas: "frame" shows the networks whole frames, "person" a window of each that follows the person, with
        `context` around the mask as a fraction of its longer side, and "auto" (default) the person where that at
        least halves the background that the networks would see. Windows have the size asked for as `size`, rounded
        to latent pixels. Only a recipe that pastes into a scene can follow; all others see whole frames.
        match_colour: before it is pasted the picture gets the colours of what is around the mask, see
        colour_match.py.

        shortcuts: how to sample faster, see `Shortcuts`; recipe "official" takes none.

        A model of Animate Anyone needs only reference and pose, gives frames of the poses' size or `size`
        (divisible by `multiple`) and takes the background from the reference. Where a scene is given all the same,
        the finished character is put in front of it: by the masks where there are any, and else by its colours,
        for which the reference must have a matte, alpha or reference_mask (see chroma_key.py).

        A model of Animate Anyone 2 sees nothing of the scene inside the mask, of which it makes a coarse picture
        first. objects: uint8 [F, H, W], 255 on what the person holds or touches, which then stays; depth: uint8 or
        uint16 [F, H, W], nearer is larger and 0 unknown, of which it reads what lies along the skeleton (section
        3.4). Both may be iterables too, and both may be missing.

        A model of AnimateAnywhere needs reference, pose and `background`, uint8 [H, W, 3]: the picture of a place
        with nobody in it, which the first frame shows. It makes clips of 8k or 8k + 1 frames of the poses'
        proportions, each at once; `noise` is float32 [T, c, h, w] then, T from `System.latents_of`.

        Raises UserError for input that does not fit together, or not to the model.
        """
        # What a model's own settings recommend is for the caller to ask for, as the command line does.
        steps, guidance_scale = self.system.sampling({}, steps, guidance_scale)
        check_steps(steps)
        streamed = not isinstance(pose if scene is None else scene, (np.ndarray, Poses))
        chosen = self.system.recipe(recipe)
        chosen = chosen.matching_colour() if match_colour else chosen
        spooled = partial(Source, replayed=True, folder=self.folder)
        given = None if scene is None else spooled("scene", scene, 3, deep=True)
        shown = given and eight_bit(given)
        regions = None if mask is None else self.given_masks(spooled("mask", mask, None))
        held = None if objects is None else Source("objects", objects, None)
        far = None if depth is None else Source("depth", depth, None, deep=True)
        phases = Phases()
        check_shortcuts(chosen.recorded, shortcuts)
        if self.system.clips:
            check_cache(self.system.title, shortcuts)
        self.system.check_inputs(scene, mask, pose, chosen, background)
        background = None if background is None else check_background(background)
        if isinstance(pose, Poses):
            self.system.check_poses(pose)
        split_reference(reference, reference_mask)  # says what is wrong with it before the video is looked at
        pictures = Source("pose", () if pose is None or isinstance(pose, Poses) else pose, 3)
        skeletons = PointSkeletons(pose) if isinstance(pose, Poses) else PictureSkeletons(pictures)
        with phases("encode"):
            plan = self.plan(chosen, shown.size if shown else None, skeletons.size, size, size)
            path = CanvasPath(plan.canvas)
            if self.can_follow(chosen, canvas) and shown and regions:
                path = self.follow(plan, canvas, context, list(map(mask_box, regions)), partial(find_cuts, shown))
            drawn = Source("pose", skeletons.drawn(plan.drawn_at(path), path), 3)
            given_parts = plan, reference, shown, regions, drawn, reference_mask, path, held, far
            made = self.prepare(*given_parts, background)
        if noise is not None and tuple(noise.shape) != made.shape:
            raise UserError(
                f"noise has shape {tuple(noise.shape)}, but this video's latents are {made.shape}; give noise of "
                "that shape."
            )
        start = self.noise(made, seed) if noise is None else [noise]
        latents = Latents.begun(start, self.folder, shortcuts.parts)
        to_the_end(self.sample(made, latents, steps, guidance_scale, phases, progress, shortcuts))
        finish = self.finish(made, given, regions)
        frames = self.decode(made, latents, finish, phases, given is not None and given.deep)
        return Output(frames if streamed else np.stack(list(frames)), latents, phases.seconds)

    def prepare(
        self,
        plan: Plan,
        reference: np.ndarray,
        scene: Source | None,
        mask: Source | None,
        pose: Source,
        reference_mask: np.ndarray | None = None,
        path: CanvasPath | None = None,
        objects: Source | None = None,
        depth: Source | None = None,
        background: np.ndarray | None = None,
    ) -> Prepared:
        """All that comes before sampling, of what `__call__` is given; scene and mask are read once at most.

        scene, mask and pose are such as `system.check_inputs` lets through. mask: as `given_masks` gives it; pose:
        skeletons of what `path` shows, None = whole frames. Raises UserError as `__call__` does.
        """
        recipe = plan.recipe
        path = path or CanvasPath(plan.canvas)
        self.check_extras(scene.size if scene else None, objects, depth)
        seen = refer(recipe, reference, reference_mask, keyed=scene is not None and mask is None)
        if scene and mask and recipe.composites and mask.size != scene.size:
            raise UserError(
                f"The mask is {mask.size} but the scene is {scene.size} (width, height); give masks of the "
                "scene's size."
            )
        if self.system.reads_scene and scene and mask:
            (video,) = self.encode(recipe, scene, [Person(mask, pose, path, objects, depth)])
            if recipe.paste_back and not any(video.present):
                raise UserError("The mask is empty in every frame; mark the person to replace with 255.")
        else:
            video = place_poses(path, pose, [given for given in (scene, mask) if given], self.folder)
        if background is not None:
            video = replace(video, background=path.canvas.cover(background))
        return self.prepared(recipe, seen, video)

    def given_masks(self, mask: Source) -> Source:
        """The masks as the networks are given them, for those of a person: a coarse picture of them where the
        system makes one."""
        blocks = self.system.mask_blocks(self.settings)
        if blocks is None:
            return mask
        coarse = Reopened(lambda: (block_masks(each[None], *blocks)[0] for each in mask), mask.count)
        return Source(mask.name, coarse, None)

    def check_extras(self, scene: Size | None, objects: Source | None, depth: Source | None) -> None:
        """Raises UserError where objects or depth are given to a model that does not read them, or are of another
        size than the scene."""
        for name, given in ((OBJECTS, objects), (DEPTH, depth)):
            if given is None:
                continue
            if name not in self.backend.extras:
                raise UserError(
                    f"This model of {self.system.title} reads no {name}: leave {name} out, or load a model of "
                    "Animate Anyone 2 that does."
                )
            if scene is not None and given.size != scene:
                raise UserError(
                    f"The {given.name} is {given.size} but the scene is {scene} (width, height); give {name} of "
                    "the scene's size."
                )

    def working_size(self, recipe: Recipe, shown: Size, asked: Size | None) -> Size | None:
        """The size to plan with: the one asked for, or else what the model was made for.

        shown: the size of the scene, or else of the poses. None, their own, where the model names no size.
        """
        area = self.settings.get("size")
        if asked or area is None:
            return asked
        return recipe.working_size(area, shown, self.multiple)

    @property
    def multiple(self) -> int:
        """What the sides of a canvas are multiples of, in pixels."""
        return self.backend.multiple * self.system.patch

    def plan(
        self, recipe: Recipe, scene: Size | None, pose: Size, size: Size | None, asked: Size | None = None
    ) -> Plan:
        """What follows from the sizes of scene (None where there is none) and poses, and the size to work at.

        asked: the size the caller asked for, of which `working_size` made `size`; without one, a window has just
        the size that the model was made for. Raises UserError where sizes do not fit together.
        """
        canvas = recipe.canvas(scene, pose, size, self.multiple)
        working = canvas.inner if recipe.keeps_aspect else size or pose
        scale = self.settings.get("pose_scale", 1) if size else 1
        own = self.settings.get("size", canvas.padded) if size else canvas.padded
        window = nearest_multiple(asked or (own[0], own[1]), self.multiple)
        return Plan(recipe, canvas, size, pose_canvas(working, scale), window, pose_canvas(window, scale))

    def can_follow(self, recipe: Recipe, choice: str) -> bool:
        """Whether this model and recipe can follow a person, and `choice` allows it.

        Raises UserError where the person was chosen, but `recipe` cannot follow one.
        """
        able = self.system.reads_scene and recipe.paste_back
        if choice == PERSON and not able:
            raise UserError(
                "The canvas can't follow a person here: that takes a model that replaces one in a scene, and its "
                "recipe 'default'; use 'frame'."
            )
        return able and choice != FRAME

    def follow(
        self,
        plan: Plan,
        choice: str,
        context: float,
        boxes: Sequence[Box | None],
        cuts: Callable[[], Sequence[int]],
    ) -> CanvasPath:
        """What the networks see of every frame, for the boxes of a person's masks.

        choice, context: as in `__call__`; cuts: the first frame of every shot but the first, asked for only where
        the path depends on it. Raises UserError as `choose_path` does.
        """
        keep = paste_reach(plan.canvas.source, boxes, plan.recipe.paste_growth)
        decide = partial(choose_path, choice, plan.canvas, plan.window, boxes, context=context, keep=keep)
        # Frames each on their own have the smallest windows: if those are too large, shots need not be known.
        if decide(range(len(boxes))).windows is None or not any(boxes):
            return CanvasPath(plan.canvas)
        return decide(cuts())

    def encode(
        self, recipe: Recipe, scene: Source, people: Sequence[Person], watch: Watch | None = None
    ) -> list[EncodedVideo]:
        """The scene, for each of the people to replace in it, see `encode_people`."""
        return encode_people(
            self.backend.encode, self.backend.multiple, recipe, scene, people, watch, self.folder, self.cuts
        )

    def encode_again(self, video: EncodedVideo, scene: Source, mask: Source) -> EncodedVideo:
        """The video with another scene, see `encode_scene`; mask: as it was encoded with."""
        shown = (cut_scene(*rows) for rows in together(scene, mask)) if self.cuts else scene
        return replace(video, scene=encode_scene(self.backend.encode, video.path, shown, self.folder))

    @property
    def cuts(self) -> bool:
        """Whether the networks see nothing of a scene inside its masks."""
        return self.system.blocks is not None

    def prepared(self, recipe: Recipe, reference: Reference, video: EncodedVideo) -> Prepared:
        width, height = (side // self.backend.multiple for side in video.path.canvas.padded)
        latents, _ = self.system.latents_of(len(video.poses))
        shape = (latents, self.backend.latent_channels, height, width)
        reference = reference.beside(video.path)
        return Prepared(recipe, reference, self.backend.embed(recipe.clip_view(reference.picture)), video, shape)

    def noise(self, made: Prepared, seed: int) -> Iterator[Tensor]:
        """What sampling begins with: float32 latents of `made.shape` in blocks."""
        return made.recipe.noise(made.shape, torch.Generator("cpu").manual_seed(seed))

    def reference_tokens(self, made: Prepared) -> list[Tensor]:
        """The ReferenceNet's tokens [1, T, C] per spatial block."""
        recipe, reference = made.recipe, made.reference
        placed = self.backend.encode(recipe.reference(reference.picture, made.video.path.canvas)[None])
        tokens = self.backend.reference_tokens(placed, made.image_embed)
        if recipe.bank_dtype is not None:
            tokens = [x.to(recipe.bank_dtype).to(x.dtype) for x in tokens]
        return tokens

    def sample(
        self,
        made: Prepared,
        latents: Latents,
        steps: int,
        guidance_scale: float,
        phases: Phases,
        progress: Progress | None = None,
        shortcuts: Shortcuts = NONE,
    ) -> Sampled:
        """Takes latents, noise before the first round and with `shortcuts.parts`, to those of the video with the
        character in it. progress: as in `__call__`."""
        recipe, video = made.recipe, made.video
        windows = recipe.windows(len(latents), guidance_scale)
        if recipe.paste_back:
            windows = _windows_with_person(windows, video.present)
        scene = video.scene if recipe.paste_back else None
        unseen = sorted(set(range(len(latents))).difference(*windows.indices)) if scene else []

        def show_scene() -> None:
            for frame in unseen:
                latents.replace([frame], torch.from_numpy(scene.take([frame])))  # type: ignore[union-attr]

        with phases("sample"):
            # Before, as rounds leave them as they are; and after, as other backends' don't.
            if latents.rounds == 0:
                show_scene()
            how = Sampling(steps, guidance_scale, windows, progress, shortcuts)
            sampled = self.backend.denoise(video, self.reference_tokens(made), made.image_embed, latents, how)
        finished = 0
        # That all are finished is said by the end, when those without anybody are right, too.
        while finished < len(latents):
            yield finished
            with phases("sample"):
                finished = next(sampled, len(latents))
        with phases("sample"):
            show_scene()
            if unseen:
                latents.settle()

    def finish(self, made: Prepared, scene: Source | None, mask: Source | None) -> Finish:
        """How frames get in front of a scene, where the recipe does that: by masks if given, else by colours."""
        if scene is None or not made.recipe.composites:
            return whole
        if made.reference.key is not None:
            return keyed(scene, made.reference.key)
        if mask is None:
            return whole
        return PasteBack(scene, mask, made.recipe)

    def decode(
        self,
        made: Prepared,
        latents: Latents,
        finish: Finish,
        phases: Phases,
        deep: bool = False,
        sampled: Iterable[int] = (),
    ) -> Iterator[np.ndarray]:
        """The finished frames uint8 [H, W, 3], or uint16 if deep, made by `finish` of what the networks drew.

        sampled: what `sample` gave for these latents, which goes on as frames are asked for.
        """
        path = made.video.path
        _, first = self.system.latents_of(len(made.video.poses))
        batch = len(latents) if self.system.clips else frames_at_a_time(path.canvas.padded)
        done = finished = 0
        goes_on = iter(sampled)
        for start in range(first, len(latents), batch):
            end = min(start + batch, len(latents))
            while finished < end:
                finished = next(goes_on, len(latents))
            with phases("decode"):
                rows = latents.take(range(start, end))
                decoded = self.backend.decode(rows, made.recipe.round, deep)
            # One by one: of pictures as small as a canvas many are decoded together, but frames may be large.
            for picture in decoded:
                with phases("decode"):
                    frame = finish(picture, path.at(done))
                done += 1
                yield frame


def check_steps(steps: int) -> None:
    """Raises UserError for a number of denoising steps that DDIM cannot take."""
    if steps < 1 or steps > 1000:
        raise UserError(f"steps is {steps}; use 1 to 1000.")


def _windows_with_person(windows: Windows, present: Sequence[bool]) -> Windows:
    """Drops windows in which there is nobody to replace."""
    pairs = zip(windows.indices, windows.weights, strict=True)
    indices, weights = zip(*((i, w) for i, w in pairs if any(present[frame] for frame in i)), strict=True)
    return replace(windows, indices=indices, weights=weights)
