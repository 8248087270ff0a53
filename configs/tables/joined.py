"""What joins three streams on the rendered set: DeMo's experts, ProxyTTT's proxies, both."""

from facenet_jax.lab import Row, Table


def get_table() -> Table:
    """Each against the plain streams of the same recipe."""
    return Table(
        "Joined streams: experts and proxies",
        "configs/joined/demo.py",
        tuple(Row(name, argument=name) for name in ("plain", "experts", "proxies", "both")),
    )
