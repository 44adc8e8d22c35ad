"""Make `datasets.load_dataset("./llava_mixture.py", …)` and `load_dataset("llava_mixture", …)` find the builder class.

Since version 4, `datasets` runs no scripts. `dataset_module_factory` is the one function that turns a path into the
module of a builder; it is wrapped where it is looked up, and answers these two paths by itself. All other paths go on
as before. An entry in the table of packaged modules would not do: it globs the working directory into the cache key
and asks the network for the module's name.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import datasets.inspect
import datasets.load

__all__ = ["MODULE_HASH", "answers", "register"]

MODULE_NAME = "llava_mixture"
MODULE_HASH = "llava_mixture"
"""Last part of the cache directory. What the samples depend on is in the config id, so this need not change."""


def answers(path: object) -> bool:
    """Whether `path` means this builder: `llava_mixture`, or a path that ends in `llava_mixture.py`."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
    return text == MODULE_NAME or os.path.basename(text) == f"{MODULE_NAME}.py"


def register() -> None:
    """Wrap `dataset_module_factory` in `datasets`; doing it again changes nothing."""
    for module in (datasets.load, datasets.inspect):
        original = module.dataset_module_factory
        if not getattr(original, "_answers_llava_mixture", False):
            module.dataset_module_factory = _wrap(original)


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def dataset_module_factory(path: Any, *args: Any, **kwargs: Any) -> Any:
        if answers(path):
            return datasets.load.DatasetModule(MODULE_NAME, MODULE_HASH, {})
        return original(path, *args, **kwargs)

    dataset_module_factory._answers_llava_mixture = True  # type: ignore[attr-defined]
    return dataset_module_factory
