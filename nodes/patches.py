"""ComfyUI's patches of a model, called as SD1.5's own UNet calls them: at the same places, by the same numbers of
blocks, with the same options.

It follows `comfy/ldm/modules/diffusionmodules/openaimodel.py` and `comfy/ldm/modules/attention.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..anycharv_core.models.hooks import AttentionFunction, Half, Which

NAMES = {"self": "attn1", "cross": "attn2"}


class Patches:
    """The core's `Hooks` for one call of the network.

    options: ComfyUI's transformer_options, in which `cond_or_uncond` is in the order of the rows; plain: for each
    of its entries, whether those rows go without the bank; x, timesteps, context: what the network is called with.
    """

    def __init__(
        self, options: dict[str, Any], plain: Sequence[bool], x: Tensor, timesteps: Tensor, context: Tensor
    ):
        self.options = options | {"original_shape": list(x.shape), "transformer_index": 0}
        self._patches: dict[str, list[Any]] = options.get("patches", {})
        self._replace: dict[str, dict[Any, Any]] = options.get("patches_replace", {})
        self._inputs = {"x": x, "timesteps": timesteps, "context": context, "y": None}
        kinds = options["cond_or_uncond"]
        self._kinds = {way: [k for k, p in zip(kinds, plain, strict=True) if p is way] for way in (True, False)}
        self._begun: Counter[Half] = Counter()
        self._shape: dict[str, Any] = {}
        crossed = "attn2_patch" in self._patches or bool(self._replace.get("attn2"))
        self.context = context if crossed else None

    @staticmethod
    def of(options: dict[str, Any], *call: Any) -> Patches | None:
        """None where `options` have nothing that is called at blocks or asks which block it is called at."""
        used = ("patches", "patches_replace", "optimized_attention_override")
        return Patches(options, *call) if any(options.get(name) for name in used) else None

    def time(self, embedding: Tensor) -> Tensor:
        for patch in self._patches.get("emb_patch", ()):
            embedding = patch(embedding, embedding.shape[1] // 4, self.options)
        return embedding

    def block(self, half: Half) -> None:
        self.options["block"] = (half, self._begun[half])
        self._begun[half] += 1

    def transformer(self, shape: torch.Size, heads: int) -> None:
        if self._shape:
            self.options["transformer_index"] += 1
        self._shape = {"n_heads": heads, "dim_head": shape[1] // heads, "attn_precision": None}
        self.options |= {"activations_shape": list(shape), "block_index": 0}

    def sources(self, which: Which, x: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for patch in self._patches.get(f"{NAMES[which]}_patch", ()):
            x, key, value = patch(x, key, value, self._extra())
        return x, key, value

    def attention(self, which: Which, plain: bool) -> AttentionFunction:
        kinds = self.options["cond_or_uncond"] if which == "cross" else self._kinds[plain]
        options = self.options | {"cond_or_uncond": kinds}
        replaced = self._replace.get(NAMES[which], {})
        half, number = self.options["block"]
        patch = replaced.get((half, number, 0)) or replaced.get((half, number))
        if patch is None:
            return partial(optimized_attention, transformer_options=options)
        extra = self._extra() | {"cond_or_uncond": kinds}

        def patched(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            # A patch that gives back the values means those of the picture's own tokens, not the bank's behind.
            return patch(q, k, v, extra)[:, : q.shape[1]]

        return patched

    def added(self, which: Which, x: Tensor) -> Tensor:
        patches = self._patches.get(f"{NAMES[which]}_output_patch", ())
        if patches and which == "cross":
            x = x.clone()  # patches may write into it, and it may be one row seen many times
        for patch in patches:
            x = patch(x, self._extra())
        return x

    def between(self, x: Tensor) -> Tensor:
        for patch in self._patches.get("middle_patch", ()):
            x = patch(x, self._extra())
        return x

    def input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for patch in self._patches.get("input_block_patch", ()):
            x = patch(x, self.options)
        skip = x
        for patch in self._patches.get("input_block_patch_after_skip", ()):
            x = patch(x, self.options)
        return x, skip

    def middle(self, x: Tensor, time: Tensor) -> Tensor:
        for patch in self._patches.get("middle_block_after_patch", ()):
            x = patch({"h": x, "emb": time, "transformer_options": self.options, **self._inputs})["h"]
        return x

    def output(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        for patch in self._patches.get("output_block_patch", ()):
            x, skip = patch(x, skip, self.options)
        return x, skip

    def _extra(self) -> dict[str, Any]:
        """The options that a patch inside a transformer gets."""
        told = {k: v for k, v in self.options.items() if k not in ("patches", "patches_replace")}
        return told | self._shape
