"""Parse the collectives (all-gather, all-reduce, ...) of a compiled XLA program."""

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""The collective operations of XLA that are recognised."""

BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}
"""Bits of one element, by XLA's name of the type."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array that a collective operation leaves on every device."""

    kind: str  # of KINDS
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def sent(self, devices: int) -> float:
        """Bytes that each of D = `devices` devices sends, all of them in one ring.

        For a result of n bytes: all-gather and all-to-all n (D - 1) / D, all-reduce twice that,
        reduce-scatter n (D - 1), collective-permute n.
        """
        amount, others = self.size * BITS[self.dtype] / 8, devices - 1
        share = others / devices
        return (
            amount
            * {
                "all-gather": share,
                "all-reduce": 2 * share,
                "reduce-scatter": others,
                "all-to-all": share,
                "collective-permute": 1,
            }[self.kind]
        )


def collectives(text: str) -> list[Collective]:
    """The collectives in `compiled.as_text()`, one for each array; those in a loop count once."""
    found = []
    for line in text.splitlines():
        for kind in KINDS:
            left, _, right = line.partition(f" {kind}")
            if right.startswith(("(", "-start(")) and " = " in left:
                for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", left.split(" = ")[1]):
                    lengths = tuple(int(length) for length in shape.split(",") if length)
                    found.append(Collective(kind, dtype, lengths))
    return found
