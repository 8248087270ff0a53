"""Compares our numbers with those of the authors' release, one row per quantity.

python scripts/check_parity.py --golden DIR [--every]

DIR holds a checkpoint of the release, or the rule that fills one, and what it computed with it; its
meta.json may name another system than FACENet (files as in tests/golden/tiny, then).
Tensors that agree are counted in one row per kind unless --every. Exit code 1 on any FAIL.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import _checkout  # noqa: F401
import jax
import ml_collections

from configs import msvr310_official, rgbnt100_official, wmveid863_official
from configs.agw import sysu_mm01
from data_tfds.errors import UserError
from facenet_jax.parity import (
    agw,
    backbones,
    ccnet,
    hosts,
    topreid,
    transreid,
    visible_infrared,
)
from facenet_jax.parity.model import model_rows
from facenet_jax.parity.parts import part_rows
from facenet_jax.parity.rows import Golden, Row
from facenet_jax.runtime import script

FOLDED = ("gradient norm", "norm after the steps")
"""Beginnings of the names of quantities that every tensor of the network has."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 without a FAIL, 1 with one; UserError for what cannot be compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", required=True, type=pathlib.Path, help="golden directory")
    parser.add_argument("--every", action="store_true", help="one row per tensor, too")
    options = parser.parse_args(arguments)
    rows = check(options.golden)
    print(table(rows if options.every else folded(rows)))
    failed = [row.name for row in rows if row.status == "FAIL"]
    counts = [f"{sum(row.status == s for row in rows)} {s}" for s in ("ok", "FAIL", "absent")]
    print(f"{options.golden}: {len(rows)} quantities: {', '.join(counts)}")
    return 1 if failed else 0


def recipes() -> dict[str, ml_collections.ConfigDict]:
    """The release's recipes by the names that golden directories use."""
    modules = (wmveid863_official, rgbnt100_official, msvr310_official)
    return {m.__name__.split(".")[-1].removesuffix("_official"): m.get_config() for m in modules}


def check(folder: pathlib.Path) -> list[Row]:
    """Every row of a golden directory; raises UserError where it cannot be read."""
    golden = Golden(folder)
    system = (golden.json("meta.json") or {}).get("system", "facenet")
    if system not in SYSTEMS:
        raise UserError(
            f"meta.json of {folder} names the system {system!r}; known are {', '.join(SYSTEMS)}."
        )
    with jax.default_matmul_precision("highest"):
        return list(SYSTEMS[system](golden))


def facenet_rows(golden: Golden) -> Iterator[Row]:
    """Rows of FACENet and of what needs no network."""
    yield from model_rows(golden, recipes())
    yield from part_rows(golden, recipes())


def agw_rows(golden: Golden) -> Iterator[Row]:
    """Rows of AGW: its scores, galleries, rates, losses and networks."""
    return visible_infrared.agw_rows(golden, sysu_mm01.get_config().optim)


SYSTEMS: Mapping[str, Callable[[Golden], Iterable[Row]]] = {
    "facenet": facenet_rows,
    "ccnet": ccnet.rows,
    "agw": agw_rows,
    "agw/net": agw.rows,
    "agw/net_nonlocal": agw.rows,
    "mmd": visible_infrared.mmd_rows,
    "transreid": transreid.rows,
    "topreid": topreid.rows,
    **dict.fromkeys(hosts.HOSTS, hosts.rows),
    **dict.fromkeys(("dinov2", "dinov3", "clip"), backbones.rows),
}
"""What compares a golden directory, by the system that its meta.json names."""


def folded(rows: Iterable[Row]) -> list[Row]:
    """The rows, with those of tensors that agree replaced by the worst of their kind."""
    short = [r for r in rows if not r.name.startswith(FOLDED) or r.status != "ok"]
    for kind in FOLDED:
        same = [r for r in rows if r.name.startswith(kind) and r.status == "ok"]
        if same:
            worst = max(same, key=lambda r: r.relative)
            name = f"{kind}: {len(same)} tensors, worst {worst.name.removeprefix(kind).strip()}"
            short.append(
                Row(
                    name,
                    *[getattr(worst, f) for f in ("absolute", "relative")],
                    max(r.tolerance for r in same),
                    "ok",
                )
            )
    return short


def table(rows: Iterable[Row]) -> str:
    """The rows as text."""
    rows = list(rows)
    width = max(len(row.name) for row in rows)
    lines = [f"{'quantity':{width}}  {'absolute':>9}  {'relative':>9}  {'tolerance':>9}  status"]
    for r in rows:
        numbers = "  ".join(f"{x:9.1e}" for x in (r.absolute, r.relative, r.tolerance))
        lines.append(f"{r.name:{width}}  {numbers}  {r.status}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(script.run(main))
