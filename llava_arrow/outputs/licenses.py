"""What entries say of their licences, in the words that the Hub knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["hub_license"]

_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl apple-ascl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1
ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown
other
"""
KNOWN = frozenset(_NAMES.split())
"""The identifiers of the Hub's documentation of licences."""


def hub_license(licenses: Sequence[str | None]) -> dict[str, Any]:
    """The keys `license` and, where the Hub has no word for it, `license_name`.

    >>> hub_license(["CC-BY-4.0", "cc-by-4.0"]), hub_license([None])
    ({'license': 'cc-by-4.0'}, {'license': 'unknown'})
    >>> hub_license(["MIT", "public domain"])
    {'license': 'other', 'license_name': 'mixed', 'license_link': 'README.md'}
    """
    given = list(dict.fromkeys(text.strip().lower() for text in licenses if text and text.strip()))
    is_complete = len(given) > 0 and all(text and text.strip() for text in licenses)
    if not given:
        return {"license": "unknown"}
    if is_complete and all(text in KNOWN for text in given):
        return {"license": given[0] if len(given) == 1 else given}
    return {"license": "other", "license_name": "mixed", "license_link": "README.md"}
