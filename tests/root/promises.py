"""What commands said that they had done, against what is there after the power was gone.

A log of lines `begin COMMAND` and `done COMMAND`; what was begun and not done may be either way.
"""

from __future__ import annotations

from tests.oracle import Row

MiB = 1024**2
ROUND = """
create v-B --size 8M --backend B
extend v-B 12M
snapshot create src-B s-B
create w-B --from-snapshot s-B --backend B
snapshot delete s-B -y
delete w-B -y
delete v-B -y
"""
"""On the backend B, where there is a volume `src-B` of 4 MiB."""


def lines(text: str, backend: str) -> list[str]:
    return text.replace("B", backend).strip().splitlines()


def broken(tables: dict[str, list[Row]], said: str) -> list[str]:
    """Of what the last commands said they had done, what is otherwise."""
    sizes = {row["name"]: row["size"] for kind in ("volumes", "snapshots") for row in tables[kind]}
    promised: dict[str, int | None] = {}
    for line in said.splitlines():
        word, _, order = line.partition(" ")
        if word in ("begin", "done"):
            name, size = outcome(order.split())
            promised.pop(name, None)
            if word == "done":
                promised[name] = size
    wrong = {name: size for name, size in promised.items() if sizes.get(name) != size}
    return [f"{name} has the size {sizes.get(name)}, promised was {size}" for name, size in wrong.items()]


def outcome(words: list[str]) -> tuple[str, int | None]:
    """The object of a command and its size afterwards, None if it is gone."""
    if "delete" in words:
        return words[-2], None
    if words[0] == "snapshot":
        return words[-1], 4 * MiB
    sizes = {"create": 8 * MiB if "--size" in words else 4 * MiB, "extend": 12 * MiB}
    return words[1], sizes[words[0]]
