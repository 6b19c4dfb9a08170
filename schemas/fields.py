"""Fields that several tables have, and how a field carries its meaning."""

from __future__ import annotations

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")


def documented(name: str, kind: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    """A field whose metadata say what it is, with unit and range."""
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


MODEL = documented("model", pa.string(), "model that made the row, name@version; hive partition key")
ATTEMPT = documented("attempt", pa.string(), "attempt whose files hold this image's masks")
