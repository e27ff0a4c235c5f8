"""How a person reads a field: sizes with units, a fault as a sentence, properties as K=V."""

from __future__ import annotations

import json
from typing import Any

SIZES = {"size", "virtual_size", "min_disk", "total", "free", "provisioned", "allocated", "data_size"}
GIGABYTES = ("gigabytes", "per_volume_gigabytes")

Row = dict[str, Any]


def cell(field: str, row: Row) -> str:
    """One field of a row, not escaped yet; several lines for what is a list of sentences."""
    value = row.get(field)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value == float("inf"):
        return "infinite"
    if field in SIZES and isinstance(value, (int, float)) and "weights" not in row:
        return size(value)
    if "resource" in row and isinstance(value, int):
        return _limit(row["resource"], value)
    if isinstance(value, (dict, list)):
        return _nested(field, value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def size(value: float) -> str:
    from volctl.model import format_size

    return format_size(int(value))


def _limit(resource: str, value: int) -> str:
    if value < 0:
        return "unlimited"
    return size(value) if resource.startswith(GIGABYTES) else str(value)


def _nested(field: str, value: Any) -> str:
    if not value:
        return "-"
    if field == "fault" or field == "cause":
        return f"{value['code']}: {value['message']}"
    if field == "source":
        return _source(value)
    if field == "explanation":
        return "\n".join(verdicts(value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={_scalar(item)}" for key, item in value.items())
    return "\n".join(_item(item) for item in value)


def _item(item: Any) -> str:
    if isinstance(item, dict) and set(item) == {"backend", "error"}:
        return f"{item['backend']}: {item['error']}"
    if isinstance(item, dict) and "attached_at" in item:
        return (item["device"] or "no device") + (", read-only" if item["read_only"] else "")
    if isinstance(item, dict):
        return ", ".join(f"{key}={_scalar(part)}" for key, part in item.items() if part is not None)
    return _scalar(item)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _source(source: Row) -> str:
    if source["id"] is None and source["name"] is None:
        return str(source["kind"])
    name = f" {source['name']}" if source["name"] else ""
    known = f" ({source['id']})" if source["id"] else ""
    return f"{source['kind']}{name}{known}"


def verdicts(explanation: Row) -> list[str]:
    """One line for each backend: why it was chosen, passed or was refused."""
    return [f"{verdict['name']}: {verdict_text(verdict, explanation['chosen'])}" for verdict in explanation["backends"]]


def verdict_text(verdict: Row, chosen: str | None) -> str:
    if not verdict["passed"]:
        return f"refused by {verdict['filter']}: {verdict['reason']}"
    weights = ", ".join(f"{name} {weight:g}" for name, weight in verdict["weights"].items())
    state = "chosen" if verdict["name"] == chosen else "passed"
    total = "" if verdict["total"] is None else f", weight {verdict['total']:g}"
    return f"{state}{total}" + (f" ({weights})" if weights else "")
