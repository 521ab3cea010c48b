"""AnyCharVSampler and AnyCharVLongVideo: the paper's sampler, and clips longer than a window."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, cfg_input, recipe_input, seed_input, steps_input

FUSES = ["ramp", "flat"]
LAYOUTS = ["linear", "looped"]


class AnyCharVSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVSampler",
            display_name="AnyCharV Sampler",
            category=CATEGORY,
            description="Samples with the paper's settings: DDIM on the checkpoint's own noise schedule and "
            "timesteps. Clips longer than 24 frames get overlapping windows, unless the model brings its own.",
            inputs=[
                io.Model.Input("model", tooltip="From AnyCharV Loader; LoRAs and context windows are honoured."),
                io.Conditioning.Input("positive", tooltip="From AnyCharV Conditioning."),
                io.Conditioning.Input("negative", tooltip="From AnyCharV Conditioning."),
                io.Latent.Input("latent", tooltip="From AnyCharV Conditioning; sets frame count and size."),
                steps_input(),
                cfg_input(),
                seed_input(),
                recipe_input(
                    "'official' samples as the release does: windows in a loop, all frames weighing the same, "
                    "overlaps summed up to cfg 1, and its order of drawing noise."
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, steps, cfg, seed, recipe) -> io.NodeOutput:
        from .native.sampler import sample_latent

        return io.NodeOutput(sample_latent(model, positive, negative, latent, steps, cfg, seed, recipe))


class AnyCharVLongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVLongVideo",
            display_name="AnyCharV Long Video",
            category=CATEGORY,
            description="Lets the model sample clips of any length in overlapping windows, whose predictions "
            "are fused at every step; memory is that of one window. Works with every sampler node.",
            search_aliases=["context windows", "temporal aggregation"],
            inputs=[
                io.Model.Input("model", tooltip="From AnyCharV Loader."),
                io.Int.Input(
                    "length",
                    default=24,
                    min=2,
                    max=1024,
                    tooltip="Frames per window; at most what the motion modules know (24 for AnyCharV's official "
                    "weights).",
                ),
                io.Int.Input(
                    "overlap",
                    default=6,
                    min=0,
                    max=1023,
                    tooltip="Frames neighbouring windows share, less than length. More is smoother and slower.",
                ),
                io.Combo.Input(
                    "fuse",
                    options=FUSES,
                    default="ramp",
                    tooltip="'ramp' hands over gradually inside an overlap; 'flat' weighs both the same.",
                ),
                io.Combo.Input(
                    "layout",
                    options=LAYOUTS,
                    default="linear",
                    tooltip="'linear' runs from the first frame to the last; 'looped' wraps around, for clips "
                    "that are played in a loop.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, length, overlap, fuse, layout) -> io.NodeOutput:
        from .native.windows import with_long_video

        return io.NodeOutput(with_long_video(model, length, overlap, fuse == "ramp", layout == "looped"))
