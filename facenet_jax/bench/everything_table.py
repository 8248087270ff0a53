"""What `facenet benchmark --everything` found, as a Markdown table for docs/benchmarks.md."""

from collections.abc import Mapping
from typing import Any

HEAD = ("measurement", "samples/s (quartiles)", "ms a step", "MFU", "peak memory", "compile", "")
"""The columns; the last one has what only some measurements know."""

SHOWN = 3
"""How many measurements that are left out for one reason are named."""


def table(content: Mapping[str, Any]) -> str:
    """The Markdown of the content of benchmark.json: circumstances, a table, what is left out."""
    measurements = content["measurements"]
    lines = [f"    {' '.join(content['command'])}", ""]
    lines += circumstances(measurements.get("matrix product", {}).get("result", {}))
    lines += [line(HEAD), line(["---"] * len(HEAD))]
    lines += [line(cells(name, entry)) for name, entry in measurements.items()]
    if content["left_out"]:
        lines += ["", "Left out:", ""]
        reasons = dict.fromkeys(content["left_out"].values())
        for reason in reasons:
            names = [name for name, why in content["left_out"].items() if why == reason]
            if len(names) > SHOWN:
                names = [*names[:SHOWN], f"{len(names) - SHOWN} more (named in benchmark.json)"]
            lines.append(f"- {'; '.join(names)}: {reason.rstrip('.')}.")
    return "\n".join(lines) + "\n"


def line(texts: list[str] | tuple[str, ...]) -> str:
    """One line of the table."""
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def circumstances(device: Mapping[str, Any]) -> list[str]:
    """A sentence about the device and the versions, if they are known, and an empty line."""
    if not device:
        return []
    packages = device["packages"]
    versions = [f"Python {device['python']}"]
    versions += [
        f"{name} {packages[name]}" for name in ("jax", "jaxlib", "flax") if name in packages
    ]
    driver = f", driver {device['driver']}" if device["driver"] else ""
    limit = f", {gib(device['device_limit'])} for JAX" if device["device_limit"] else ""
    commit = (device["commit"] or "unknown")[:12]
    return [f"{device['device']}{driver}{limit}; {', '.join(versions)}; commit {commit}.", ""]


def gib(amount: int | None) -> str:
    """A number of bytes in GiB; "" for None."""
    return "" if amount is None else f"{amount / 2**30:.2f} GiB"


def cells(name: str, entry: Mapping[str, Any]) -> list[str]:
    """The cells of one measurement; the last one ends with the seconds that it took."""
    took = f"took {entry['seconds']:.0f} s"
    if "failed" in entry:
        return [name, *[""] * 5, f"failed: {' '.join(entry['failed'].split())}; {took}"]
    found = entry["result"]
    known = [""] * 5
    if "rate" in found:
        low, high = found["rate_quartiles"]
        known = [
            f"{found['rate']:.4g} ({low:.4g} to {high:.4g})",
            f"{found['ms_per_step']:.4g}",
            f"{100 * found['mfu']:.1f} %",
            gib(found["memory"]["device_peak"]),
            f"{found['compile_seconds']:.1f} s",
        ]
    return [name, *known, "; ".join([*notes(found), took])]


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a measurement has beside the common columns."""
    said = []
    if "platform" in found:
        rate = f"{found['peak_flops_per_second'] / 1e12:.4g} TFLOP/s"
        said.append(f"{rate}, {found['peak_how']}")
    if "flops_per_sample" in found:
        said.append(f"{found['flops_per_sample'] / 1e9:.5g} GFLOP a sample")
    if found.get("remat"):
        said.append(f"remat {found['remat']}")
    if "ratio" in found:
        ours, theirs = found["facenet_jax"], found["PyTorch"]
        said.append(
            f"ours {ours['median_ms']:.4g} ms, {theirs['version']} ({theirs['how']}) "
            f"{theirs['median_ms']:.4g} ms, ratio {found['ratio']:.2f}"
        )
    if "cold_seconds" in found:
        said.append(f"cold cache {found['cold_seconds']:.1f} s")
        said.append(f"warm cache {found['warm_seconds']:.1f} s")
    said += [
        f"`{kernel['name'][:80]}` {100 * kernel['share']:.1f} %"
        for kernel in found.get("kernels", ())
    ]
    return said
