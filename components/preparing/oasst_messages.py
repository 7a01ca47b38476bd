"""Puts Open Assistant's flat messages (one row for each message) together into trees, which format `oasst` reads.

A tree's messages may stand anywhere in the file, so all of a file's messages are held in memory: such files are
written by people and have some 100,000 messages. A row, to the ledger, is then a tree.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from components.preparing.chunks import DEEPEST, Broken, Chunk, Rows, in_chunks
from components.preparing.extras import EXTRAS

_KEPT = ("message_id", "message_tree_id", "role", "text", "lang", "deleted")
DEEPEST_TREE = DEEPEST // 2 - 1
"""Messages on a path: each is an object in a list."""


def as_trees(chunks: Iterable[Chunk]) -> Iterator[Rows]:
    """The trees of a file of messages, numbered by the line of their first message.

    What is no message, and a message whose parent is missing, stays a row of its own, which is malformed. The optional
    columns of a tree are those of its first message.
    """
    nodes: dict[str, tuple[int, dict[str, Any]]] = {}
    parents: dict[str, str | None] = {}
    strays: list[tuple[int, Any]] = []
    # Where a parent stands before its replies, as in the published files, only rows that lead nowhere are in here.
    doubtful: dict[str, dict[str, Any]] = {}
    for line, row in (pair for chunk in chunks for pair in chunk.rows()):
        name = row.get("message_id") if isinstance(row, dict) else None
        if not isinstance(name, str):
            strays.append((line, row if isinstance(row, Broken) else Broken("`message_id` is missing", row)))
        elif name in nodes:
            strays.append((line, Broken("`message_id` stands in an earlier row already", row)))
        else:
            parent = parents[name] = row.get("parent_id") or None
            kept = _KEPT if parent else (*_KEPT, *EXTRAS)
            nodes[name] = line, {key: row[key] for key in kept if row.get(key) is not None} | {"replies": []}
            if parent and (parent not in nodes or parent == name or parent in doubtful):
                doubtful[name] = row
    yield from in_chunks(sorted([*_link(nodes, parents, doubtful), *strays], key=lambda pair: pair[0]))


def _link(
    nodes: dict[str, tuple[int, dict[str, Any]]], parents: dict[str, str | None], doubtful: dict[str, dict[str, Any]]
) -> Iterator[tuple[int, Any]]:
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
            below = _levels(name, children)
            every = [message for level in below for message in level]
            reached.update(every)
            if len(below) > DEEPEST_TREE:
                flat = [{**nodes[message][1], "replies": None, "parent_id": parents[message]} for message in every]
                yield line, Broken(f"the tree is deeper than {DEEPEST_TREE} messages", flat)
                continue
            given = {key: node[key] for key in EXTRAS if key in node}
            yield line, {**given, "message_tree_id": node.get("message_tree_id", name), "prompt": node}
    for name, (line, _) in nodes.items():
        if name not in reached:
            yield line, Broken("its `parent_id` leads to no first message", doubtful[name])


def _levels(root: str, children: dict[str, list[str]]) -> list[list[str]]:
    """A tree's messages, level by level."""
    levels = [[root]]
    while below := [child for name in levels[-1] for child in children.get(name, [])]:
        levels.append(below)
    return levels
