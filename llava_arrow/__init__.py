"""From a mixture file to samples. Start at `pipeline` for the path of a row, at `mixture` for the file format.

mixture, entry   YAML → Mixture, Entry             preprocess/    rows → samples
sources/, plan   entry → shards → tables           schema         samples → table, checked
select           filters and sampling              pipeline       the four in a row
outputs/         samples → raw LLaVA folder, Parquet folder with its card, the Hub
"""

from __future__ import annotations

from llava_arrow.entry import Entry
from llava_arrow.errors import (
    ConfigError,
    ImageError,
    MixtureError,
    OutputError,
    PreprocessError,
    SchemaError,
    SourceError,
)
from llava_arrow.mixture import Mixture
from llava_arrow.outputs.folder import export_parquet
from llava_arrow.outputs.hub import push_to_hub
from llava_arrow.outputs.raw import export_raw
from llava_arrow.preprocess.registry import register_preprocess
from llava_arrow.shards import Shard

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Entry",
    "ImageError",
    "Mixture",
    "MixtureError",
    "OutputError",
    "PreprocessError",
    "SchemaError",
    "Shard",
    "SourceError",
    "__version__",
    "export_parquet",
    "export_raw",
    "push_to_hub",
    "register_preprocess",
]
