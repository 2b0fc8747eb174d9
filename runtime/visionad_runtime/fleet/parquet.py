"""Parquet files as bytes, read and written in the calling thread.

Arrow's own threads must not call back into Python while the interpreter ends: the process then aborts after its work is done, or
hangs (apache/arrow#34314, #50482). So Arrow gets buffers instead of Python's files, and one thread.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes, columns: Iterable[str] | None = None) -> pa.Table:
    """Read a Parquet file.

    Args:
        data: content of the file.
        columns: those that are wanted, as far as the file has them; ``None`` for all.

    Raises:
        pyarrow.ArrowException: It is not Parquet, or damaged.
    """
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
    return file.read(columns=wanted, use_threads=False)


def column_names(data: bytes) -> list[str]:
    """Return the names of a Parquet file's columns. Errors are those of :func:`read_parquet`."""
    return list(pq.read_schema(pa.BufferReader(data)).names)


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as a Parquet file, compressed with zstd."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd")
    return bytes(stream.getvalue())
