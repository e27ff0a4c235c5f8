"""What a volume is made from, as the create flows want it: fetched, its checksum known, its signature read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from volctl.db import images
from volctl.errors import UsageError
from volctl.flows import refs, request, words
from volctl.flows.create import CreateState
from volctl.flows.refs import SourceRef
from volctl.model import CreateRequest, SourceKind, parse_size
from volctl.service.session import Session

if TYPE_CHECKING:
    from volctl.service import fetch


@contextmanager
def found(session: Session, wanted: CreateRequest) -> Iterator[tuple[CreateRequest, SourceRef]]:
    """The request and its source, for as long as the block lasts. A URL is fetched first."""
    source = _source(session, wanted)
    if source.url is None:
        yield _proven(session, wanted, source), source
        return
    from volctl.service import fetch

    request.resolve(session.env, _state(session, wanted, source), request.Ahead())  # before anything is fetched
    with fetch.image_of(session, _wanted(session, wanted, source.url)) as image:
        asked = replace(wanted, checksum=None, signature=None, keyring=None)
        yield asked, replace(source, id=image.id, name=image.name or source.url, path=image.location)


def foreseen(session: Session, wanted: CreateRequest) -> CreateState:
    """The request spec of a dry run. Of a URL only the first bytes are read."""
    source, ahead = _source(session, wanted), None
    if source.url is None:
        wanted = _proven(session, wanted, source)
    else:
        wanted, source, ahead = _peeked(session, wanted, source, source.url)
    state = _state(session, wanted, source)
    request.resolve(session.env, state, ahead)
    if not state.size:
        raise UsageError(f"how large the disk in {source.url} is shows when it is fetched", hint="say --size")
    return state


def _peeked(
    session: Session, wanted: CreateRequest, source: SourceRef, url: str
) -> tuple[CreateRequest, SourceRef, request.Ahead | None]:
    """The request and its source if the image is held already, else what the first bytes of the file say."""
    from volctl.service import fetch

    known = fetch.ahead(session, _wanted(session, wanted, url))
    if known.image is None:
        return wanted, source, known.ahead
    held = replace(source, id=known.image.id, path=known.image.location)
    return replace(wanted, checksum=None, signature=None, keyring=None), held, None


def _source(session: Session, wanted: CreateRequest) -> SourceRef:
    with session.store.read() as tx:
        return refs.source(tx, session.project, wanted)


def _state(session: Session, wanted: CreateRequest, source: SourceRef) -> CreateState:
    return CreateState("", session.project, asdict(wanted), asdict(source))


def _wanted(session: Session, wanted: CreateRequest, url: str) -> fetch.Wanted:
    from volctl.service import fetch, proof

    shown = proof.resolve(fetch.policy(session), url, wanted.checksum, wanted.signature, wanted.keyring)
    size = None if wanted.size is None else words.usage(parse_size, wanted.size)
    return fetch.Wanted(url, shown, wanted.image_format, size)


def _proven(session: Session, wanted: CreateRequest, source: SourceRef) -> CreateRequest:
    """With the checksum itself, and the signature read."""
    told = (wanted.checksum, wanted.signature, wanted.keyring)
    if source.kind is not SourceKind.IMAGE or source.path is None or not any(told):
        return wanted
    from volctl.service import fetch, proof

    where = source.path
    if source.id is not None:
        with session.store.read() as tx:
            image = images.find(tx, source.id)
        where = (image.origin if image else None) or where
    shown = proof.resolve(fetch.policy(session), where, *told)
    return replace(wanted, checksum=shown.checksum, signed=shown.signature)
