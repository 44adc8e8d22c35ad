"""Entry → files → shards → tables; one module per format, opened through `formats`.

Every table that leaves here has the columns read and, last, `ROW`: the row's number in its file. A JSON record travels
as its own text in the column `RECORD`, beside the columns that filters compare: it becomes Python objects only when it
is kept.
"""

from __future__ import annotations

ROW = "__row__"
RECORD = "__record__"
BATCH_BYTES = 32 << 20
"""How much of a file is in memory at once, roughly."""
MAX_BATCH_ROWS = 16_384
"""Rows of a table: small enough that the first sample comes at once, large enough that a table costs little."""
MAX_BATCH_RECORDS = 4_096
"""The same for JSON records, which pass through Python objects: fewer of them stay in the processor's cache."""
SHARD_BYTES = 64 << 20
"""Size of a shard where nobody asks for more of them."""
