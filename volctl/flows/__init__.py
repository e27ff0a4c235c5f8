"""The flows of volctl, and Cinder's create pipeline as a picture.

    volctl create
      │
      ▼  api.py                        one transaction, after the request was validated
    volume_create_api          ExtractVolumeRequestTask → QuotaReserveTask → EntryCreateTask
      │                        → QuotaCommitTask → VolumeCastTask
      ▼  scheduler.py                  a cast is a row of the casting task's transaction
    volume_create_scheduler    ExtractSchedulerSpecTask → ScheduleCreateVolumeTask
      │      ▲
      ▼      │  manager.py             cast again without the backend that failed
    volume_create_manager      ExtractVolumeRefTask → OnFailureRescheduleTask
                               → ExtractVolumeSpecTask → NotifyVolumeActionTask
                               → CreateVolumeFromSpecTask → CreateVolumeOnFinishTask

`request` validates, `pools` shows the backends to the scheduler, `sources` fills the volume, from
the image `cache` where it can; its entries come and go by flows beside the create's (`image_cache`).
The other verbs are flows of their own: `delete`, `extend`, `snapshot`, `snapshot_delete`, `revert`,
`attach`, `image`, `image_replace`, `save`, `orphan`, `adopt`. `refs` finds what a reference means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from volctl.engine.task import Flow
    from volctl.flows.context import Context

    AnyFlow: TypeAlias = Flow[Context, Any]

LITERALS = {
    "volume_create_api": "api.FLOW",
    "volume_create_scheduler": "scheduler.FLOW",
    "volume_create_manager": "manager.FLOW",
    "volume_delete": "delete.FLOW",
    "volume_extend": "extend.FLOW",
    "snapshot_create": "snapshot.FLOW",
    "snapshot_delete": "snapshot_delete.FLOW",
    "volume_revert": "revert.FLOW",
    "volume_attach": "attach.ATTACH",
    "volume_detach": "attach.DETACH",
    "image_fetch": "fetch.FLOW",
    "image_add": "image.ADD",
    "image_delete": "image.DELETE",
    "image_replace": "image_replace.FLOW",
    "image_save": "save.FLOW",
    "volume_adopt": "adopt.ADOPT",
    "volume_release": "adopt.RELEASE",
    "orphan_delete": "orphan.DELETE",
    "device_detach": "orphan.DETACH",
    "device_resume": "orphan.RESUME",
    "image_cache_fill": "image_cache.FILL",
    "image_cache_evict": "image_cache.EVICT",
}


class _Flows(Mapping[str, "AnyFlow"]):
    """Its module is imported when a flow is asked for: most commands run one or none of them."""

    def __getitem__(self, name: str) -> AnyFlow:
        module, literal = LITERALS[name].split(".")
        flow: AnyFlow = getattr(import_module(f"{__name__}.{module}"), literal)
        return flow

    def __iter__(self) -> Iterator[str]:
        return iter(LITERALS)

    def __len__(self) -> int:
        return len(LITERALS)


FLOWS = _Flows()
"""Every flow by its name."""
