"""A robot's policy on a real GPU: what `make bench-fleet ARGS='--device cuda'` serves. Needs torch and an NVIDIA GPU.

A vision transformer of ViT-H/16's size (Dosovitskiy et al., 2021): 0.63 billion weights, bfloat16. It looks at an image of 224 x 224
pixels and a state of 7 numbers, and plans 50 actions of 7. The weights are random: a trained network of this shape costs the same.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import nn

SIDE, PATCH, STATE, ACTIONS = 224, 16, 7, 50
WIDTH, BLOCKS, HEADS = 1280, 32, 16
CURVE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)


class Network(nn.Module):
    """Tokens: one for each patch, one for the state, and one for each action of the plan."""

    def __init__(self) -> None:
        super().__init__()
        patches = (SIDE // PATCH) ** 2
        self.look = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.feel = nn.Linear(STATE, WIDTH)
        self.asked = nn.Parameter(0.02 * torch.randn(1, ACTIONS, WIDTH))
        self.places = nn.Parameter(0.02 * torch.randn(1, patches + 1 + ACTIONS, WIDTH))
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.think = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.act = nn.Linear(WIDTH, STATE)

    def forward(self, images: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 224, 224, 3] and bfloat16 [n, 7] to bfloat16 [n, 50, 7]."""
        pixels = images.permute(0, 3, 1, 2).to(torch.bfloat16) / 127.5 - 1
        seen = self.look(pixels).flatten(2).transpose(1, 2)
        asked = self.asked.expand(len(images), -1, -1)
        tokens = torch.cat([seen, self.feel(states)[:, None], asked], dim=1) + self.places
        planned: torch.Tensor = self.act(self.think(tokens)[:, -ACTIONS:])
        return planned


class CudaGpu:
    """The policy on this machine's GPU. `run` is not thread-safe."""

    max_batch_size = 64

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._network = Network().to("cuda", torch.bfloat16).eval()
        # Pinned: the GPU copies from there by itself.
        self._images = torch.empty((self.max_batch_size, SIDE, SIDE, 3), dtype=torch.uint8, pin_memory=True)
        self._states = torch.empty((self.max_batch_size, STATE), dtype=torch.float32, pin_memory=True)

    def warm_up(self) -> None:
        """Each batch size once, in the thread that will call: plans of some 60 ms each are kept for each thread."""
        some = {"image": np.zeros((SIDE, SIDE, 3), np.uint8), "x": np.zeros(STATE, np.float32), "seq": np.zeros(1)}
        for size in range(1, self.max_batch_size + 1):
            self.run([some] * size)

    def run(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The plans of a batch; each with the sequence number of its observation."""
        size = len(batch)
        with torch.inference_mode():
            np.stack([obs["image"] for obs in batch], out=self._images[:size].numpy())
            np.stack([obs["x"] for obs in batch], out=self._states[:size].numpy())
            images = self._images[:size].to("cuda", non_blocking=True)
            states = self._states[:size].to("cuda", torch.bfloat16, non_blocking=True)
            plans = self._network(images, states).float().cpu().numpy()
        return [{"actions": plan, "seq": obs["seq"]} for plan, obs in zip(plans, batch, strict=True)]


def measured_curve() -> dict[str, Any]:
    """What a call takes by itself, nothing beside it: ms by batch size (medians of 20), and the line through them."""
    gpu = CudaGpu()
    gpu.warm_up()
    chance = np.random.default_rng(0)
    taken: dict[str, float] = {}
    for size in CURVE_SIZES:
        batch = [
            {
                "image": chance.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
                "x": chance.standard_normal(STATE, np.float32),
                "seq": np.zeros(1),
            }
            for _ in range(size)
        ]
        times = []
        for _ in range(20):
            began = time.perf_counter()
            gpu.run(batch)
            times.append(1e3 * (time.perf_counter() - began))
        taken[str(size)] = round(statistics.median(times), 3)
    item_ms, call_ms = np.polyfit([int(size) for size in taken], list(taken.values()), 1).tolist()
    return {
        "name": torch.cuda.get_device_name(),
        "call_ms": round(max(0.0, call_ms), 3),
        "item_ms": round(item_ms, 3),
        "ms_by_batch_size": taken,
    }
