"""Puts Open Assistant's flat messages (one row for each message) together into trees, which format `oasst` reads.

A tree's messages may stand anywhere in the file, so all of a file's messages are held in memory: such files are
written by people and have some 100,000 messages. A row, to the ledger, is then a tree.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from components.preparing.chunks import Broken, Chunk, Rows, in_chunks

_KEPT = ("message_id", "message_tree_id", "role", "text", "lang", "deleted")


def as_trees(chunks: Iterable[Chunk]) -> Iterator[Rows]:
    """The trees of a file of messages, numbered by the line of their first message.

    What is no message, and a message whose parent is missing, stays a row of its own, which is malformed.
    """
    nodes: dict[str, tuple[int, dict[str, Any]]] = {}
    parents: dict[str, str | None] = {}
    strays: list[tuple[int, Any]] = []
    for line, row in (pair for chunk in chunks for pair in chunk.rows()):
        name = row.get("message_id") if isinstance(row, dict) else None
        if not isinstance(name, str):
            strays.append((line, row if isinstance(row, Broken) else Broken("`message_id` is missing", row)))
        elif name in nodes:
            strays.append((line, Broken("`message_id` stands in an earlier row already", row)))
        else:
            nodes[name] = line, {key: row[key] for key in _KEPT if row.get(key) is not None} | {"replies": []}
            parents[name] = row.get("parent_id") or None
    yield from in_chunks(sorted([*_link(nodes, parents), *strays], key=lambda pair: pair[0]))


def _link(nodes: dict[str, tuple[int, dict[str, Any]]], parents: dict[str, str | None]) -> Iterator[tuple[int, Any]]:
    """Hang every message below its parent; yields the roots' trees and the messages without a way to a root."""
    children: dict[str, list[str]] = {}
    for name, parent in parents.items():
        if parent in nodes:
            nodes[parent][1]["replies"].append(nodes[name][1])
            children.setdefault(parent, []).append(name)
    reached: set[str] = set()
    for name, parent in parents.items():
        line, node = nodes[name]
        if parent is None:
            waiting = [name]
            while waiting:
                reached.add(current := waiting.pop())
                waiting += children.get(current, [])
            yield line, {"message_tree_id": node.get("message_tree_id", name), "prompt": node}
    for name, (line, node) in nodes.items():
        if name not in reached:
            yield line, Broken("its `parent_id` leads to no first message", {**node, "replies": None})
