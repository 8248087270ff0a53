"""Training and embedding of the PyTorch peer: losses, augmentation, optimiser, compilation."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_tfds.errors import UserError
from facenet_jax.bench.torch_peer import FACENet, Outputs, load

TERMS = ("id", "triplet", "mask_kl", "mc", "flare")
"""The loss terms that the peer has; the others are only compared in the paper."""

FIXED = {"on": (), "of": "logits"}
"""Options of a loss that the peer has at one value only."""


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Batch-hard triplet loss, soft margin where `margin` is 0; mean over the valid anchors."""
    distance = (features[:, None] - features[None]).square().sum(-1).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    valid = positive.any(1) & ~same.all(1)
    farthest = distance.masked_fill(~positive, 0).max(1).values
    nearest = distance.masked_fill(same, torch.inf).min(1).values
    gap = torch.where(valid, farthest - nearest, 0)
    loss = F.relu(gap + margin) if margin else F.softplus(gap)
    return torch.where(valid, loss, 0).sum() / valid.sum().clamp_min(1)


def min_kl(a: Tensor, b: Tensor, reduction: str) -> Tensor:
    """The smaller of KL(a || b) and KL(b || a), per sample or, as the release, per batch."""
    log_a, log_b = F.log_softmax(a, -1), F.log_softmax(b, -1)
    a_to_b = (log_a.exp() * (log_a - log_b)).sum(-1)
    b_to_a = (log_b.exp() * (log_b - log_a)).sum(-1)
    if reduction == "batch":
        a_to_b, b_to_a = a_to_b.mean() / a.shape[1], b_to_a.mean() / a.shape[1]
    return torch.minimum(a_to_b, b_to_a).mean()


def missing(config: ml_collections.ConfigDict, labels: Sequence[str]) -> list[str]:
    """What the config asks for and the peer does not have, by the names of the options."""
    found = ["augment.erase"] if config.augment.erase else []
    for label in labels:
        section = config.losses[label]
        if section.term not in TERMS:
            found.append(f"losses.{label}.term = {section.term}")
        found += [
            f"losses.{label}.{name} = {section[name]}"
            for name, value in FIXED.items()
            if name in section and section[name] != value
        ]
    return found


def loss_terms(
    outputs: Outputs,
    identity: Tensor,
    flare: Tensor,
    sections: Sequence[ml_collections.ConfigDict],
) -> Tensor:
    """The losses of these sections of `config.losses`, unweighted [losses]."""
    logits = outputs.logits

    def both(c: ml_collections.ConfigDict) -> Tensor:
        pairs = zip(outputs.flare_logits, flare.T, strict=True)
        smooth = c.label_smoothing
        return sum(F.cross_entropy(x, y.long(), label_smoothing=smooth) for x, y in pairs)

    terms: dict[str, Callable[[ml_collections.ConfigDict], Tensor]] = {
        "id": lambda c: sum(
            F.cross_entropy(x, identity, label_smoothing=c.label_smoothing) for x in logits
        ),
        "triplet": lambda c: sum(
            batch_hard_triplet(x, identity, c.margin) for x in outputs.features
        ),
        "mask_kl": lambda c: min_kl(*outputs.flare_logits, c.reduction),
        "mc": lambda c: (
            min_kl(logits[0], logits[1], c.reduction) + min_kl(logits[2], logits[1], c.reduction)
        ),
        "flare": both,
    }
    return torch.stack([terms[c.term](c) for c in sections])


def crop(images: Tensor, rows: Tensor, flip: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """images[rows], flipped, on a black border of `pad` pixels, cropped at (top, left): uint8.

    One gather, [N, H, W, 3] and [B] of each to [B, H, W, 3].
    """
    height, width = images.shape[1:3]
    y = torch.arange(height, device=rows.device) + top[:, None] - pad
    x = torch.arange(width, device=rows.device) + left[:, None] - pad
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    x = torch.where(flip[:, None], width - 1 - x, x).clamp(0, width - 1)
    y = y.clamp(0, height - 1)
    pixels = images[rows[:, None, None], y[:, :, None], x[:, None]]
    return torch.where(inside[..., None], pixels, 0)


def augment(images: Sequence[Tensor], rows: Tensor, c: ml_collections.ConfigDict) -> Tensor:
    """Training images [3, B, H, W, 3] in [-1, 1] at rows [3, B], one row for each modality."""
    shape = tuple(rows.shape) if c.per_modality else (1, rows.shape[1])
    flip = (torch.rand(shape, device=rows.device) < c.flip).expand_as(rows)
    top, left = (
        torch.randint(2 * c.pad + 1, shape, device=rows.device).expand_as(rows) for _ in range(2)
    )
    modalities = zip(images, rows, flip, top, left, strict=True)
    return normalise(torch.stack([crop(*modality, c.pad) for modality in modalities]))


def normalise(images: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def make_optimizer(network: FACENet, c: ml_collections.ConfigDict) -> torch.optim.Optimizer:
    """SGD or AdamW, fused; the last of its groups are the biases."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    biases = [p for name, p in named if name.endswith("bias")]
    kernels = [p for name, p in named if name.endswith("weight") and p.ndim > 1]
    others = [p for name, p in named if name.endswith(("class_token", "position"))]
    others += [p for name, p in named if name.endswith("weight") and p.ndim == 1]
    if c.name == "sgd":
        groups = [{"params": kernels + others}, {"params": biases}]
        return torch.optim.SGD(
            groups, lr=0.0, momentum=c.momentum, weight_decay=c.weight_decay, fused=True
        )
    groups = [
        {"params": kernels, "weight_decay": c.weight_decay},
        {"params": others},
        {"params": biases},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=c.betas, weight_decay=0.0, fused=True)


def descend(
    optimizer: torch.optim.Optimizer, rates: Sequence[float], c: ml_collections.ConfigDict
) -> None:
    """One step from the gradients in place; rates of (others, biases)."""
    if c.clip:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(params, c.clip)
    for group in optimizer.param_groups:
        group["lr"] = rates[group is optimizer.param_groups[-1]]
    optimizer.step()


def choose_compile(wanted: bool | None, device: str) -> tuple[bool, str]:
    """(whether to use torch.compile, the same in words); by default wherever it can work."""
    if wanted is not None:
        return wanted, "torch.compile" if wanted else "eager, as asked"
    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return False, "eager, because torch.compile needs a C++ compiler on a CPU"
    return True, "torch.compile"


class Peer:
    """A network, an optimiser and resident data; steps and embeddings on request.

    `arrays` has images (three uint8 [N, H, W, 3]), identity [N] of `identities`, flare [N, 2] and,
    for every step, rows [steps, 3, B], rates [steps, 2] and weights [steps, losses] of the losses
    with these `labels`.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        arrays: Mapping[str, Any],
        labels: Sequence[str],
        compiled: bool | None,
    ):
        self.config, self.done = config, 0
        self.sections = [config.losses[label] for label in labels]
        lacks = missing(config, labels)
        if lacks:
            raise UserError(
                f"The PyTorch peer has no config.{', config.'.join(lacks)}; leave it out of the "
                "comparison."
            )
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX has it by default
        self.network = FACENet(config.model, config.data.image_size, arrays["identities"]).to(
            self.device
        )
        self.optimizer = make_optimizer(self.network, config.optim)
        self.images = [self.put(modality) for modality in arrays["images"]]
        self.identity, self.flare = self.put(arrays["identity"]).long(), self.put(arrays["flare"])
        self.rows, self.weights = self.put(arrays["rows"]).long(), self.put(arrays["weights"])
        self.rates = arrays["rates"].tolist()
        use, self.how = choose_compile(compiled, self.device)
        wrap = torch.compile if use else lambda function: function
        self.objective, self.embed = wrap(self.plain_objective), wrap(self.plain_embed)

    def put(self, array: np.ndarray) -> Tensor:
        """A tensor on the device."""
        return torch.from_numpy(np.array(array)).to(self.device)

    def load(self, variables: Mapping[str, Any]) -> None:
        """Start from our parameters."""
        load(self.network, variables)

    def plain_objective(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The weighted loss of the batch at rows [3, B]."""
        images = augment(self.images, rows, self.config.augment)
        identity, flare = self.identity[rows[0]], self.flare[rows[0]]
        outputs = self.network(images, flare)
        return (weights * loss_terms(outputs, identity, flare, self.sections)).sum()

    def plain_embed(self, rows: Tensor) -> Tensor:
        """Embeddings [B, E] of rows [B]."""
        images = normalise(torch.stack([modality[rows] for modality in self.images]))
        return self.network(images, self.flare[rows]).embedding

    def train(self, steps: int) -> float:
        """Steps of training; the last loss."""
        self.network.train()
        for step in range(self.done, self.done + steps):
            loss = self.objective(self.rows[step], self.weights[step])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            descend(self.optimizer, self.rates[step], self.config.optim)
        self.done += steps
        return loss.item()  # waits for the device

    def embeddings(self, batches: np.ndarray) -> np.ndarray:
        """Embeddings of the last of `batches` [count, B] of rows, all of them computed."""
        return self.last_embedding(self.embed, batches)

    def first_embeddings(self, batches: np.ndarray) -> np.ndarray:
        """The same, never compiled."""
        return self.last_embedding(self.plain_embed, batches)

    def last_embedding(self, embed: Callable[[Tensor], Tensor], batches: np.ndarray) -> np.ndarray:
        """All `batches` through `embed`, the last result."""
        self.network.eval()
        with torch.inference_mode():
            for rows in self.put(batches).long():
                embedding = embed(rows)
            return embedding.cpu().numpy()

    def facts(self) -> dict[str, Any]:
        """Version, compilation and device, for the report."""
        cuda = torch.cuda.get_device_name() if self.device == "cuda" else None
        return {
            "version": f"torch {torch.__version__}",
            "how": self.how,
            "device": cuda or f"cpu, {torch.get_num_threads()} threads",
        }
