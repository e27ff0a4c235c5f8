"""The schema on one page. Times are RFC 3339 texts, sizes bytes, JSON columns plain values."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, ForeignKey, Index, Integer, MetaData, String, Table

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

types = Table(
    "types",
    metadata,
    Column("name", String, primary_key=True),
    Column("description", String),
    Column("specs", JSON, nullable=False),
    Column("created_at", String, nullable=False),
)

volumes = Table(
    "volumes",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String),
    Column("project", String, nullable=False),
    Column("description", String),
    Column("size", Integer, nullable=False),
    Column("status", String, nullable=False),
    Column("fault", JSON(none_as_null=True)),
    Column("type", String, ForeignKey("types.name")),
    Column("backend", String),
    Column("availability_zone", String),
    Column("bootable", Boolean, nullable=False),
    Column("protected", Boolean, nullable=False, default=False),
    Column("properties", JSON, nullable=False),
    Column("source_kind", String, nullable=False),
    Column("source_id", String),
    Column("source_name", String),
    Column("attachments", JSON, nullable=False, default=list),
    Column("attempts", JSON, nullable=False, default=list),
    Column("created_at", String, nullable=False),
    Column("available_at", String),
    Column("updated_at", String, nullable=False),
    # what --if-absent compares, and what the scheduler said
    Column("requested", JSON, nullable=False),
    Column("explanation", JSON(none_as_null=True)),
    # bytes promised to a create under way and not yet written: the scheduler takes them off `free`
    Column("promised", Integer, nullable=False, default=0),
    # the volume whose lock is taken, too, since files are shared: the root of the tree; null for a root
    Column("tree", String),
    # the row was changed since the object was told what it is about (`volctl.db.about`)
    Column("undescribed", Boolean),
    Index("volumes_name", "project", "name", unique=True),
    Index("volumes_created", "project", "created_at", "id"),
    Index("volumes_quota", "project", "type", "size", "id"),
    Index("volumes_backend", "backend", "size", "promised"),
    Index("volumes_source", "source_id"),
    Index("volumes_status", "status"),
    Index("volumes_type", "type"),
    Index("volumes_undescribed", "undescribed"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String),
    Column("project", String, nullable=False),
    Column("volume_id", String, ForeignKey("volumes.id"), nullable=False),
    Column("description", String),
    Column("size", Integer, nullable=False),
    Column("status", String, nullable=False),
    Column("fault", JSON(none_as_null=True)),
    Column("properties", JSON, nullable=False),
    Column("created_at", String, nullable=False),
    # the volume's at that time: a volume made from the snapshot takes them
    Column("type", String),
    Column("bootable", Boolean, nullable=False),
    Column("volume_properties", JSON, nullable=False),
    Column("undescribed", Boolean),
    Index("snapshots_name", "project", "name", unique=True),
    Index("snapshots_quota", "project", "type", "size", "id"),
    Index("snapshots_volume", "volume_id"),
    Index("snapshots_undescribed", "undescribed"),
    Index("snapshots_type", "type"),
)

images = Table(
    "images",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, unique=True),
    # of our copy (`owned`), where it was made: it is in the image store, wherever that is by now
    Column("location", String, nullable=False),
    Column("format", String, nullable=False),
    Column("size", Integer),
    Column("virtual_size", Integer, nullable=False),
    Column("sha256", String),
    Column("min_disk", Integer, nullable=False),
    Column("properties", JSON, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", String, nullable=False),
    # device, inode, size and times of the file as it was checked; `owned`: the file is our copy
    Column("identity", JSON, nullable=False),
    Column("owned", Boolean, nullable=False),
    # the URL it was fetched from; by what the server knows it again; what had packed it; its last use, by URL
    Column("origin", String),
    Column("mark", JSON(none_as_null=True)),
    Column("packed", String),
    Column("used_at", String),
    # by `image add`, and not only fetched for a create; what has a name is, whatever this says
    Column("registered", Boolean),
)

# files of the image store that are not yet whole: `ID.part`, which the next command for that URL goes on with
parts = Table(
    "parts",
    metadata,
    Column("id", String, primary_key=True),
    Column("origin", String, nullable=False, unique=True),
    Column("mark", JSON, nullable=False),
    # of the kernel that wrote it: what was written before a power cut may not be what is there
    Column("boot", String, nullable=False),
    Column("created_at", String, nullable=False),
)

# Files of a backend that lie over others: `parent` is the one below, empty for none. While one is being
# changed it has two rows.
layers = Table(
    "layers",
    metadata,
    Column("backend", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("parent", String, primary_key=True),
    Index("layers_parent", "backend", "parent"),
)

# image-volumes that later volumes are cloned from; nobody is charged for them
cached_images = Table(
    "cached_images",
    metadata,
    Column("id", String, primary_key=True),
    Column("backend", String, nullable=False),
    # what was cached: `sha256:HEX` where it is known, else as `identity`; and of which file that was
    Column("key", String, nullable=False),
    Column("identity", String, nullable=False),
    Column("location", String, nullable=False),
    Column("format", String, nullable=False),
    Column("packed", String),
    Column("virtual_size", Integer, nullable=False),
    Column("data_size", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", String, nullable=False),
    Column("used_at", String, nullable=False),
)

quotas = Table(
    "quotas",
    metadata,
    Column("project", String, primary_key=True),
    Column("resource", String, primary_key=True),
    Column("limit", Integer, nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String, primary_key=True),
    Column("project", String, nullable=False),
    Column("type", String),
    # the new object, whose row is not summed while this is open; null when a row only grows
    Column("object_id", String),
    Column("volumes", Integer, nullable=False, default=0),
    Column("snapshots", Integer, nullable=False, default=0),
    Column("gigabytes", Integer, nullable=False, default=0),
    Index("reservations_project", "project"),
)

flows = Table(
    "flows",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("request", String, nullable=False),
    Column("parent_id", String),
    Column("object_id", String),
    Column("tasks", JSON, nullable=False),
    Column("state", JSON, nullable=False),
    Column("locks", JSON, nullable=False),
    Column("phase", String, nullable=False),
    Column("cause", JSON(none_as_null=True)),
    Column("tries", Integer, nullable=False, default=0),
    Column("next_try", String),
    Column("started_at", String, nullable=False),
    Column("ended_at", String),
    Index("flows_object", "object_id"),
    # also finds the open ones (null), oldest first; a partial index would import the dialect of PostgreSQL
    Index("flows_ended", "ended_at", "number"),
    sqlite_autoincrement=True,
)

journal = Table(
    "journal",
    metadata,
    Column("flow_id", String, ForeignKey("flows.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("task", String, nullable=False),
    Column("state", String, nullable=False),
    # names of what the task is about to make, written before it makes it
    Column("plan", JSON, nullable=False, default=dict),
    Column("started_at", String, nullable=False),
    Column("ended_at", String),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time", String, nullable=False),
    Column("type", String, nullable=False),
    Column("object", String, nullable=False),
    Column("request", String, nullable=False),
    Column("payload", JSON, nullable=False),
    Index("events_object", "object", "id"),
    Index("events_time", "time"),
    sqlite_autoincrement=True,
)
