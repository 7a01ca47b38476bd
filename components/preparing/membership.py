"""Which examples repeat an earlier one, and which belong to the held-out part.

Two examples with the same group, or with the same normalised prompt, must stand on the same side, whatever the sources
say. So groups and prompts are the nodes of a graph in which every example ties its prompt to its group, and a side is
chosen for each connected component, after the last row:

1. held out, if any of its examples is held out by its row's or its source's wish;
2. else in training, if any of its examples wishes that;
3. else by the seeded hash of the key (group, else prompt) that was seen first.

The first key, not "any key", because a component that grows must not be held out ever more likely; and because
rows that come later then do not move earlier ones, unless they tie together two components that stood on different
sides, which has no other answer. Only 16-byte digests are kept, about 300 bytes of memory for an example.
"""

from array import array
from collections.abc import Iterable, Iterator

from components.preparing.convert import HASHED, REFUSED, WANTED, Converted


class Membership:
    """Sides of examples by the connected components of their prompts and groups."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, int] = {}
        self._parents = array("q")
        self._bits = bytearray()

    def add(self, prompt: bytes, group: bytes | None, bits: int) -> int:
        """Tie an example's prompt to its group and return the node that stands for it."""
        # The group's node comes first: the root of a component is its first node, whose hash decides.
        node = self._node(prompt if group is None else group, bits)
        if group is not None:
            node = self._join(node, self._node(prompt, bits))
        if bits & (WANTED | REFUSED):
            self._bits[self._root(node)] |= bits & (WANTED | REFUSED)
        return node

    def hold_out(self, keys: Iterable[bytes]) -> None:
        """Hold out prompts and groups, by their digests, and all that will be tied to them."""
        for key in keys:
            self._bits[self._root(self._node(key, 0))] |= WANTED

    def held_out_keys(self) -> Iterator[bytes]:
        """The digests of the prompts and groups that are held out; right only after the last `add`."""
        return (key for key, node in self._nodes.items() if self.held_out(node))

    def held_out(self, node: int) -> bool:
        """Whether a node's component is held out; right only after the last `add`."""
        bits = self._bits[self._root(node)]
        if bits & WANTED:
            return True
        return bool(bits & HASHED) and not bits & REFUSED

    def _node(self, key: bytes, bits: int) -> int:
        node = self._nodes.setdefault(key, len(self._parents))
        if node == len(self._parents):
            self._parents.append(node)
            self._bits.append(bits & HASHED)
        return node

    def _root(self, node: int) -> int:
        parents = self._parents
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    def _join(self, one: int, other: int) -> int:
        low, high = sorted((self._root(one), self._root(other)))
        if low != high:
            self._parents[high] = low
            self._bits[low] |= self._bits[high] & (WANTED | REFUSED)
        return low


class Repeats:
    """Finds examples that repeat an earlier one.

    Args:
        drop: Whether they are dropped; otherwise they are kept, and their ids told apart.
    """

    def __init__(self, drop: bool) -> None:
        self._drop = drop
        self._seen: set[bytes] = set()
        self._counts: dict[str, int] = {}

    def keep(self, made: Converted) -> list[bool]:
        """For each example of a chunk, whether it stays."""
        if not self._drop:
            return [True] * len(made.contents)
        kept = []
        for content in made.contents:
            before = len(self._seen)
            self._seen.add(content)
            kept.append(len(self._seen) > before)
        return kept

    def distinct(self, ids: list[str]) -> list[str]:
        """The ids with "-2", "-3", ... after those that came before."""
        found = []
        for name in ids:
            count = self._counts[name] = self._counts.get(name, 0) + 1
            found.append(name if count == 1 else f"{name}-{count}")
        return found
