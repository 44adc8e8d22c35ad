"""Mixtures of LLaVA data as Hugging Face configs.

    load_dataset("./llava_mixture.py", "our-dataset", split="train")
    load_dataset("llava_mixture", "our-dataset", mixture="my.yaml", streaming=True)

Each entry of the YAML file is a config; `mixture`, the default, is all of them one after the other. With datasets 4
and later, import this module first: that is what makes the two paths above known. Before that, the first one works by
itself, with `trust_remote_code=True`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import datasets
import pyarrow as pa

try:
    from llava_arrow.config_data import ConfigData
    from llava_arrow.config_data import check_arguments
    from llava_arrow.errors import ConfigError
    from llava_arrow.errors import MixtureError
    from llava_arrow.ledger import Tally
    from llava_arrow.ledger import read_tallies
    from llava_arrow.ledger import write_ledger
    from llava_arrow.ledger import write_tally
    from llava_arrow.mixture import MIXTURE_CONFIG
    from llava_arrow.mixture import Mixture
    from llava_arrow.plan_cache import PlanCache
    from llava_arrow.registration import MODULE_HASH
    from llava_arrow.registration import register
    from llava_arrow.shards import Shard
    from llava_arrow.shards import join_neighbours
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "llava_arrow":
        raise
    raise ModuleNotFoundError(
        "llava_mixture.py needs its package llava_arrow: `pip install llava-mixture`, or `pip install -e .` in the "
        "checkout"
    ) from error

__all__ = ["LlavaMixture", "LlavaMixtureConfig", "register"]


@dataclass
class LlavaMixtureConfig(datasets.BuilderConfig):
    """The arguments of the builder; None means: as the mixture says.

    mixture: a Mixture, a path, or the name of a file in `builder_configs/` (default: `default`).
    image_root: what relative image paths are joined to; wins over the entries.
    image_columns: `"list"` makes every image column a list, so that configs concatenate and interleave.
    num_shards: into how many shards the data is cut; a multiple of world size × workers divides evenly.
    seed: of sampling and of random preprocess functions.
    embed_images: put image bytes into the dataset instead of references.
    on_error: `raise` or `skip`; wins over the entries.
    path_map: {old prefix: new prefix}, merged over the mixture's.
    trust_custom_code: allow `preprocess_fn: package.module:function`.
    """

    mixture: Any = None
    image_root: Any = None
    image_columns: str | None = None
    num_shards: int | None = None
    seed: int | None = None
    embed_images: bool = False
    on_error: str | None = None
    path_map: dict[str, str] | None = None
    trust_custom_code: bool = False


class LlavaMixture(datasets.GeneratorBasedBuilder):
    """Builds or streams one config of a mixture.

    `_generate_examples` gives one sample at a time. `datasets` is handed the same samples as tables, by
    `_generate_tables` and the methods of `ArrowBasedBuilder`, which is several times faster.
    """

    BUILDER_CONFIG_CLASS = LlavaMixtureConfig
    BUILDER_CONFIGS = [LlavaMixtureConfig(name=name) for name in Mixture.load().config_names]
    DEFAULT_CONFIG_NAME = MIXTURE_CONFIG

    def __init__(self, cache_dir: str | None = None, **kwargs: Any) -> None:
        self._plan_cache = PlanCache(cache_dir or datasets.config.HF_DATASETS_CACHE)
        self._tally_dir: str | None = None
        if kwargs.get("hash") is None:
            kwargs["hash"] = MODULE_HASH
        for name in ("data_files", "data_dir"):
            if kwargs.get(name) is not None:
                raise ConfigError(f"{name}= cannot be given: the mixture's entries name their files (`json_path`)")
        super().__init__(cache_dir=cache_dir, **kwargs)

    def _create_builder_config(
        self, config_name: str | None = None, custom_features: Any = None, config_id: str | None = None, **kwargs: Any
    ) -> tuple[LlavaMixtureConfig, str]:
        if custom_features is not None:
            raise ConfigError(
                "features= cannot be given: the columns follow from the mixture (see `features:` and image_columns=)"
            )
        check_arguments(config_name, kwargs)
        config = LlavaMixtureConfig(name=config_name or MIXTURE_CONFIG, **kwargs)
        mixture = Mixture.load(
            config.mixture,
            image_root=None if config.image_root is None else os.fspath(config.image_root),
            seed=config.seed,
            on_error=config.on_error,
            path_map=config.path_map,
            trust_custom_code=config.trust_custom_code or None,
        )
        self._data = ConfigData.open(
            mixture,
            config.name,
            cache=self._plan_cache,
            image_columns=config.image_columns,
            embed_images=config.embed_images,
        )
        # A cache written with one generation of feature types cannot be read with the other.
        generation = "list" if hasattr(datasets, "List") else "sequence"
        return config, f"{config.name}-{self._data.fingerprint}-{generation}"

    def _info(self) -> datasets.DatasetInfo:
        name = f"config {self.config.name!r} of the mixture {self._data.mixture.path or ''}".rstrip()
        return datasets.DatasetInfo(
            description=f"{name}\n{self._data.image_roots.describe()}",
            features=self._data.layout.features(),
            license=", ".join(dict.fromkeys(e.license for e in self._data.entries if e.license)),
        )

    def _make_split_generators_kwargs(self, prepare_split_kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"num_proc": prepare_split_kwargs.get("num_proc") or 1}

    def _split_generators(self, dl_manager: Any, num_proc: int | None = None) -> list[datasets.SplitGenerator]:
        # Only a build gives `num_proc`. One process reads each file as a whole, so no border need be looked for.
        wanted = self.config.num_shards or (1 if num_proc == 1 else None)
        shards, self._unread = self._data.plan(num_shards=wanted, cache=self._plan_cache)
        if wanted is None and num_proc is not None and len(shards) < num_proc:
            shards, self._unread = self._data.plan(num_shards=num_proc, cache=self._plan_cache)
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"shards": shards})]

    def _generate_examples(self, shards: list[Shard]) -> Iterator[tuple[str, dict[str, Any]]]:
        """One sample at a time, under its position: ids may repeat."""
        for shard_number, shard in enumerate(shards):
            number = 0
            for table in self._data.tables(shard):
                for sample in table.to_pylist():
                    yield f"{shard_number}-{number}", sample
                    number += 1

    def _generate_tables(self, shards: list[Shard]) -> Iterator[tuple[Any, pa.Table]]:
        """The same samples, a table at a time."""
        make_key = getattr(datasets.builder, "Key", lambda shard_number, number: f"{shard_number}-{number}")
        shard_number = 0  # counted over shards that gave a table: datasets 4.8 breaks on any other count
        for shard in join_neighbours(shards):
            tally = None if self._tally_dir is None else Tally()
            number = -1
            for number, table in enumerate(self._data.tables(shard, tally)):
                yield make_key(shard_number, number), table
            shard_number += number >= 0
            if tally is not None and self._tally_dir is not None:
                write_tally(tally, self._tally_dir, shard.entry.config_name, (shard.entry.index, shard.index))

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for name in ("check_duplicate_keys", "split_info"):
            kwargs.pop(name, None)
        try:
            yield from datasets.ArrowBasedBuilder._prepare_split_single(self, *args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, MixtureError):  # it says more than "an error occurred"
                raise error.__cause__ from error.__cause__.__cause__
            if isinstance(error.__cause__, OSError):  # sources wrap theirs: it is the dataset that cannot be written
                raise MixtureError(f"{self._output_dir} cannot be written: {error.__cause__}") from error.__cause__
            raise

    def _get_examples_iterable_for_split(self, split_generator: datasets.SplitGenerator) -> Any:
        return datasets.ArrowBasedBuilder._get_examples_iterable_for_split(self, split_generator)

    @classmethod
    def get_all_exported_dataset_infos(cls) -> dict[str, Any]:
        """Datasets 2 and 3 look for a card beside this module; there is none that speaks of its configs."""
        return {}

    def _download_prepared_from_hf_gcs(self, *args: Any, **kwargs: Any) -> None:
        """Datasets 2.16 asks a server for a finished copy before each build; there is none."""
        raise datasets.arrow_reader.DatasetNotOnHfGcsError

    def _download_and_prepare(self, dl_manager: Any, verification_mode: Any, **kwargs: Any) -> None:
        is_local = not datasets.filesystems.is_remote_filesystem(self._fs)
        if is_local:  # a folder of our own, never the user's: remove what a killed build left in it
            for name in os.listdir(self._output_dir):
                path = os.path.join(self._output_dir, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        data = self._data
        if kwargs.get("file_format") == "parquet":  # else `datasets` would embed files that nobody has looked at
            self._data = replace(data, embed_images=True)
        with tempfile.TemporaryDirectory(dir=self._output_dir if is_local else None) as self._tally_dir:
            try:
                super()._download_and_prepare(dl_manager, verification_mode, **kwargs)
                tallies = read_tallies(self._tally_dir, self._unread)
            finally:
                self._tally_dir, self._data = None, data
        report = self._data.check_report(tallies)
        with self._fs.open(f"{self._output_dir}/ledger.jsonl", "w", encoding="utf-8") as file:
            write_ledger(tallies, file)
        with self._fs.open(f"{self._output_dir}/report.json", "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)

    def report(self) -> dict[str, Any]:
        """Per entry: rows, filtered (per filter), not_sampled, delivered, samples, repaired, trimmed, undeclared keys,
        ledger.

        The ledger's lines are in `ledger.jsonl` beside it, in `builder.cache_dir`. A ConfigError where the config is
        not built yet.
        """
        path = os.path.join(self._output_dir, "report.json")
        if not os.path.exists(path):
            raise ConfigError(f"config {self.config.name!r} is not built yet: call download_and_prepare() first")
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        return found


if __name__ == "llava_mixture":  # not in the copy that datasets 2 and 3 make of this file and run
    register()
