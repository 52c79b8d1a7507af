"""Damage of the kinds that files come with: flipped and missing bytes, and manifests that say anything."""

import copy
import random
from collections.abc import Iterator
from typing import Any

VALUES: list[Any] = [
    *(None, True, -1, 0, 2, 10**12, 2**63, 1.5, "", "x", "same", "__class__", "a.b", [], {}, {"value": 0})
]


def places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every list and object inside of a description, with the keys that hold something."""
    items = list(
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    )
    found += [(node, key) for key, _ in items]
    for _, value in items:
        places(value, found)
    return found


def damage(rng: random.Random, node: Any) -> None:
    """Changes a description in one place or three."""
    whole = node
    for _ in range(rng.choice((1, 1, 3))):
        if not whole:
            return
        node, key = rng.choice(places(whole, []))
        kind = rng.randrange(4)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node.insert(key, copy.deepcopy(rng.choice(node)))
        else:
            node[key] = copy.deepcopy(rng.choice([*VALUES, node[key], whole]))


def damaged_bytes(rng: random.Random, content: bytes, count: int) -> Iterator[bytes]:
    """The content with wrong bytes, every other time cut short too."""
    for trial in range(count):
        damaged = bytearray(content)
        if trial % 2:
            del damaged[rng.randrange(len(content)) :]
        for _ in range(rng.choice((1, 1, 8))):
            if damaged:
                damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
        yield bytes(damaged)
