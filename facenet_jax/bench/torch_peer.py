"""The same network in PyTorch, as one would write it there, for scripts/benchmark_torch.py alone.

Module names are those of our parameters (docs/architecture.md), so that `load` can copy them by
name. It uses what PyTorch offers for speed: scaled_dot_product_attention, autocast, a channels-last
convolution for the patches. The class token alone goes through the last block, as in
ours, so that both sides do the same arithmetic.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_tfds.errors import UserError
from facenet_jax.models import vit


class Outputs(NamedTuple):
    """What the network computes for a batch; logits in training only."""

    embedding: Tensor  # [B, 3 D] float32
    features: list[Tensor]  # three of [B, D] float32, before the neck
    logits: list[Tensor]  # three of [B, C] float32
    flare_logits: list[Tensor]  # two of [B, 2]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, drop_rate: float):
        super().__init__()
        self.heads, self.drop_rate = heads, drop_rate
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1+n, D] to the same."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        return self.after(x, *qkv.permute(2, 0, 3, 1, 4))

    def class_token(self, x: Tensor) -> Tensor:
        """[B, 1+n, D] to the class token [B, 1, D]; the others give keys and values alone."""
        y, width = self.norm1(x), x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(y[:, :1], weight[:width], bias[:width]).unflatten(-1, (self.heads, -1))
        kv = F.linear(y, weight[width:], bias[width:]).unflatten(-1, (2, self.heads, -1))
        return self.after(x[:, :1], q.transpose(1, 2), *kv.permute(2, 0, 3, 1, 4))

    def after(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Everything that follows the projections to q, k and v."""
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.drop(self.proj(y))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def drop(self, y: Tensor) -> Tensor:
        """Drop path: whole samples zeroed, the others scaled up."""
        if not self.training or not self.drop_rate:
            return y
        keep = 1 - self.drop_rate
        return y * (y.new_empty(len(y), 1, 1).bernoulli_(keep) / keep)


class Trunk(nn.Module):
    """Patch embedding, class token, positions and all blocks but the last."""

    def __init__(self, sizes: Mapping[str, int], grid: Sequence[int], c: ml_collections.ConfigDict):
        super().__init__()
        width, self.remat = sizes["width"], c.remat == "full"
        self.patch = nn.Conv2d(3, width, c.patch, c.stride or c.patch)
        self.class_token = nn.Parameter(torch.zeros(1, width))
        self.position = nn.Parameter(torch.zeros(1 + grid[0] * grid[1], width))
        rates = drop_rates(sizes["depth"], c.drop_path)[:-1]
        self.blocks = nn.ModuleList(Block(width, sizes["heads"], rate) for rate in rates)

    def forward(self, images: Tensor) -> Tensor:
        """[B, H, W, 3] in [-1, 1] to tokens [B, 1+n, D]."""
        x = self.patch(images.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.position
        for block in self.blocks:
            recompute = self.remat and self.training
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


class LastBlock(nn.Module):
    """The last block and the final LayerNorm, for the class token."""

    def __init__(self, width: int, heads: int, drop_rate: float):
        super().__init__()
        self.block = Block(width, heads, drop_rate)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 1+n, D] to [B, D]."""
        return self.norm(self.block.class_token(tokens)[:, 0])


class FlareHead(LastBlock):
    """Two flare logits from a class token and a predicted mask."""

    def __init__(self, width: int, heads: int, drop_rate: float):
        super().__init__(width, heads, drop_rate)
        self.neck = neck(width)
        self.classifier = nn.Linear(width, 2, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 1+n, D] to [B, 2]."""
        feature = self.neck(super().forward(tokens).float())
        with torch.autocast(tokens.device.type, enabled=False):
            return self.classifier(feature)


class MFMP(nn.Module):
    """Mask prediction of one direction: attention from LN(a) to b, added to a."""

    def __init__(self, width: int, c: ml_collections.ConfigDict):
        super().__init__()
        self.heads, self.windows, inner = c.heads, c.split == "windows", c.head_width or width
        inner *= c.heads
        self.norm = nn.LayerNorm(width, eps=c.norm_epsilon)
        if c.norms == 2:
            self.norm2 = nn.LayerNorm(width, eps=c.norm_epsilon)
        self.query, self.key, self.value = (
            nn.Linear(width, inner, bias=False) for _ in ("query", "key", "value")
        )
        self.out = nn.Linear(inner, width)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Patch tokens a, b [B, n, D] to [B, n, D]."""
        x = self.norm(a)
        x = self.norm2(x) if hasattr(self, "norm2") else x
        q, k, v = (self.split(y) for y in (self.query(x), self.key(b), self.value(b)))
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.reshape(*a.shape[:2], -1) if self.windows else y.transpose(1, 2).flatten(2)
        return a + self.dropout(self.out(y))

    def split(self, x: Tensor) -> Tensor:
        """[B, n, heads * width] to [B, heads, n, width]."""
        batch, n, _ = x.shape
        if self.windows:
            return x.view(batch, self.heads, n, -1)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


MODELS = ("facenet", "three_stream")


class FACENet(nn.Module):
    """FACENet with every field of config.model that changes the arithmetic."""

    def __init__(
        self, c: ml_collections.ConfigDict, image_size: Sequence[int], identities: int
    ) -> None:
        super().__init__()
        if c.name not in MODELS or c.backbone != "vit":
            raise UserError(
                f"config.model is {c.name} on {c.backbone}; the PyTorch peer has "
                f"{' and '.join(MODELS)} on vit."
            )
        if c.remat == "dots":
            raise UserError(
                "config.model.remat is 'dots', which the PyTorch peer does not have; compare with "
                "'none' or 'full'."
            )
        sizes = vit.size(c)
        width, self.c = sizes["width"], c
        # The baseline has none of these sections.
        self.use_mfmp, self.use_fce = (x in c and c[x].enabled for x in ("mfmp", "fce"))
        self.use_flare_heads = "flare_heads" in c and c.flare_heads
        grid = vit.grid(tuple(image_size), c.patch, c.stride or c.patch)
        rate = drop_rates(sizes["depth"], c.drop_path)[-1]
        trunks = [Trunk(sizes, grid, c) for _ in range(1 if c.shared_trunk else 3)]
        self.trunk = trunks[0] if c.shared_trunk else nn.ModuleList(trunks)
        self.last = nn.ModuleList(LastBlock(width, sizes["heads"], rate) for _ in range(3))
        self.neck = nn.ModuleList(neck(width) for _ in range(3))
        self.classifier = nn.ModuleList(nn.Linear(width, identities, bias=False) for _ in range(3))
        if self.use_mfmp:
            self.mfmp = nn.ModuleList(MFMP(width, c.mfmp) for _ in range(2))
        if self.use_flare_heads:
            self.flare_head = nn.ModuleList(
                FlareHead(width, sizes["heads"], rate) for _ in range(2)
            )

    def forward(self, images: Tensor, flare: Tensor) -> Outputs:
        """Outputs for images [3, B, H, W, 3] in [-1, 1] and flare labels [B, 2] bool."""
        low = self.c.dtype == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            if self.c.shared_trunk:
                r, n, t = self.trunk(images.flatten(0, 1)).chunk(3)
            else:
                r, n, t = (trunk(x) for trunk, x in zip(self.trunk, images, strict=True))
            masks = [r[:, 1:], n[:, 1:]]
            if self.use_mfmp:
                masks = [self.mfmp[0](*masks), self.mfmp[1](*masks[::-1])]
            flare_logits = []
            if self.use_flare_heads and self.training:
                marked = [torch.cat([x[:, :1], m], 1) for x, m in zip((r, n), masks, strict=True)]
                flare_logits = [f(x) for f, x in zip(self.flare_head, marked, strict=True)]
            if self.use_fce:
                r, n = self.enhance(r, n, t, masks, flare)
            features = [last(x).float() for last, x in zip(self.last, (r, n, t), strict=True)]
        after = self.c.neck_feature == "after"
        necks, logits = features, []
        if self.training or after:
            necks = [layer(x) for layer, x in zip(self.neck, features, strict=True)]
        if self.training:
            logits = [layer(x) for layer, x in zip(self.classifier, necks, strict=True)]
        return Outputs(torch.cat(necks if after else features, 1), features, logits, flare_logits)

    def enhance(
        self, r: Tensor, n: Tensor, t: Tensor, masks: list[Tensor], flare: Tensor
    ) -> list[Tensor]:
        """R and N with thermal patches where the masks are open, in the samples with flare."""
        c, enhanced = self.c.fce, []
        if c.gate == "batch":
            flare = flare.any().expand_as(flare)
        opened = [openness(m.float() + c.mask_bias, c.mask) for m in masks]
        for own, mask, gate in zip((r, n), opened, flare.T, strict=True):
            keep = 1 - (mask if c.keep == "own" else opened[1])
            patches = mask * t[:, 1:] + keep * own[:, 1:]
            patches = torch.where(gate[:, None, None], patches, own[:, 1:])
            enhanced.append(torch.cat([own[:, :1], patches], 1))
        return enhanced


def neck(width: int) -> nn.BatchNorm1d:
    """BNNeck: a BatchNorm whose bias is never trained."""
    layer = nn.BatchNorm1d(width)
    layer.bias.requires_grad_(False)
    return layer


def drop_rates(depth: int, last: float) -> list[float]:
    """The drop-path rate of every block."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def openness(x: Tensor, kind: str) -> Tensor:
    """The mask g(x) in [0, 1]."""
    soft, hard = torch.sigmoid(x), (x > 0).float()
    return {"soft": soft, "hard": hard, "straight_through": hard + soft - soft.detach()}[kind]


def ours(tree: Mapping[str, Any], name: str, shape: Sequence[int]) -> np.ndarray:
    """Our array for the peer's tensor `name` of this shape, in the peer's layout.

    `tree` is {"params": ..., "batch_stats": ...}, or gradients under "params".
    """
    parts = name.split(".")
    index = tuple(int(part) for part in parts if part.isdigit())
    *path, leaf = [part for part in parts if not part.isdigit()]
    kept = leaf.startswith("running_") or (leaf == "bias" and path[-1] == "neck")
    if leaf == "weight":
        leaf = "scale" if len(shape) == 1 else "kernel"
    node = tree["batch_stats" if kept else "params"]
    for key in (*path, leaf.removeprefix("running_")):
        node = node[key]
    array = np.asarray(node, np.float32)[index]
    if len(shape) == 4:  # rows are (y, x, channel)
        array = array.reshape(*shape[2:], shape[1], shape[0]).transpose(3, 2, 0, 1)
    elif leaf == "kernel":
        array = array.T
    return array


def load(network: FACENet, variables: Mapping[str, Any]) -> None:
    """Give the network our parameters and statistics."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.from_numpy(np.array(ours(variables, name, tensor.shape))))
