"""What a compiled program says of itself: which arrays travel between the devices."""

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""The collective operations of XLA."""

BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
"""Of the number formats that travel."""


@dataclasses.dataclass(frozen=True)
class Moved:
    """An array that a collective gives to every device."""

    kind: str  # of KINDS
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def sent(self, devices: int) -> float:
        """Bytes that each device sends in a ring of all `devices`.

        Of an array of n bytes (as it comes out) n (D - 1) / D to gather it, twice that to sum it,
        n (D - 1) to sum and scatter it, n to pass it on.
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


def collectives(text: str) -> list[Moved]:
    """The collectives of a program `compiled.as_text()`, one for each array; a loop's body once."""
    found = []
    for line in text.splitlines():
        for kind in KINDS:
            left, _, right = line.partition(f" {kind}")
            if right.startswith(("(", "-start(")) and " = " in left:
                for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", left.split(" = ")[1]):
                    lengths = tuple(int(length) for length in shape.split(",") if length)
                    found.append(Moved(kind, dtype, lengths))
    return found
