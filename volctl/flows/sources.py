"""How a volume is filled: the four branches, and the ladder of an image (SPEC, section 4)."""

from __future__ import annotations

from volctl.backend import Backend
from volctl.errors import NoSpaceError, NotFoundError
from volctl.flows.context import Context
from volctl.flows.create import CreateRun, CreateState
from volctl.model import Object, SourceKind


def fill(run: CreateRun) -> None:
    """Make the volume on its backend; it is there, has its size and its content when this returns.

    Where there is no room, once more without the images that are cached there.
    """
    assert run.state.backend is not None
    try:
        _fill(run)
    except NoSpaceError:
        from volctl.flows import cache

        if not cache.free(run.engine, run.state.backend):
            raise
        _fill(run)


def _fill(run: CreateRun) -> None:
    env, state = run.env, run.state
    backend = env.backends.get(state.backend)
    if state.image is not None:
        _from_image(run, backend)
    elif state.kind is SourceKind.BLANK:
        backend.create(state.object, state.size)
    else:
        _from_object(env, state, backend)
    backend.verify(state.object, state.size)


def source_object(state: CreateState) -> Object:
    """The snapshot or volume that is cloned (an image may be a volume, too)."""
    if state.kind is SourceKind.SNAPSHOT:
        return Object("snap", state.source["id"])
    return Object("volume", state.source["volume_id"])


def _from_object(env: Context, state: CreateState, backend: Backend) -> None:
    source = source_object(state)
    origin = env.backends.get(state.source_backend)
    if origin.inspect(source) is None:
        raise NotFoundError(f"{source.name} is gone from backend {origin.name}", volume=state.volume_id)

    def progress(done: int, total: int) -> None:
        env.progress("copy", done, total)

    if state.source_backend == backend.name:
        backend.clone(source, state.object, state.size, progress)
        return
    from volctl.images.convert import copy_raw

    with origin.reading(source) as content, backend.writing(state.object, state.size) as target:
        copy_raw(content, target, progress)


def _from_image(run: CreateRun, backend: Backend) -> None:
    """The first that works: clone the image in place, clone it from the cache, copy it."""
    from volctl.flows import cache

    env, state = run.env, run.state
    assert state.image is not None
    image = env.image(**state.image, cached=True)
    image.verify_unchanged()
    if not image.packed and image.format == "raw" and backend.clone_image(image.fd, state.object, state.size):
        image.verify_unchanged()
        return
    if cache.clone(run, backend, image):
        return
    from volctl.images.convert import copy_image

    image = env.image(**state.image, size=state.size)
    with backend.writing(state.object, state.size) as target:
        copy_image(image, target, lambda done, total: env.progress("convert", done, total))
