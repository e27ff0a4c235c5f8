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
`attach`, `image`, `save`, `orphan`, `adopt`. `refs` finds what a reference means.
"""

from __future__ import annotations

from typing import Any

from volctl.engine.task import Flow
from volctl.flows import (
    adopt,
    api,
    attach,
    delete,
    extend,
    fetch,
    image,
    image_cache,
    manager,
    orphan,
    revert,
    save,
    scheduler,
    snapshot,
    snapshot_delete,
)
from volctl.flows.context import Context

FLOWS: dict[str, Flow[Context, Any]] = {
    flow.name: flow
    for flow in (
        api.FLOW,
        scheduler.FLOW,
        manager.FLOW,
        delete.FLOW,
        extend.FLOW,
        snapshot.FLOW,
        snapshot_delete.FLOW,
        revert.FLOW,
        attach.ATTACH,
        attach.DETACH,
        fetch.FLOW,
        image.ADD,
        image.DELETE,
        save.FLOW,
        adopt.ADOPT,
        adopt.RELEASE,
        orphan.DELETE,
        orphan.DETACH,
        image_cache.FILL,
        image_cache.EVICT,
    )
}
"""Every flow by its name."""
