"""What an object's row could be made of again, as tags of its LV.

A tag has at most 1024 of the characters A-Z a-z 0-9 _ + . - / = ! : & #, so it is packed JSON in URL-safe
base64, cut into numbered pieces. All metadata of a group must fit into some 500 KiB, so what is longer
than `LONGEST` goes without its properties. Source: lvm(8), "TAGS".
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable

from volctl.model import Json, Object

TAG = "volctl-about-"
PIECE = 1000  # characters of a tag, below LVM's 1024
LONGEST = 6000
LARGEST = 1024 * 1024
_PIECE = TAG + r"([0-9]{2})-([A-Za-z0-9_-]*)"


def tags(target: Object) -> set[str]:
    """None for an object of which nothing is told."""
    if target.about is None:
        return set()
    text = _packed(target.about)
    if len(text) > LONGEST:
        text = _packed({key: value for key, value in target.about.items() if not key.endswith("properties")})
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    return {f"{TAG}{number:02}-{piece}" for number, piece in enumerate(pieces)}


def told(lv_tags: Iterable[str]) -> Json | None:
    """What the tags of an LV say; None for nothing, or what cannot be read."""
    matches = sorted((match[1], match[2]) for tag in lv_tags if (match := re.fullmatch(_PIECE, tag)))
    text = "".join(piece for _, piece in matches)
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        found = json.loads(zlib.decompressobj(-15).decompress(packed, LARGEST)) if text else None
    except (ValueError, RecursionError, zlib.error):
        return None
    return found if isinstance(found, dict) else None


def own(lv_tags: Iterable[str]) -> set[str]:
    """Those of an LV's tags that tell what it is about."""
    return {tag for tag in lv_tags if tag.startswith(TAG)}


def _packed(about: Json) -> str:
    packer = zlib.compressobj(9, wbits=-15)
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(packer.compress(text) + packer.flush()).decode().rstrip("=")
