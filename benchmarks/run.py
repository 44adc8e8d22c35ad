"""Run the comparisons of benchmarks/README.md and print its table.

    python benchmarks/run.py [DATA_DIR] [--runs 3] [--only NAME]

Each side of a comparison is a process of its own (`work.py`), the sides take turns, and a ratio is the median over the
turns. Peak memory is the operating system's figure for the largest process. About 30 minutes and 12 GB of disk for
everything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Comparison:
    """`seconds`, `rate` (samples per second, more is better) or `memory` of two pieces of work."""

    work: str
    ours: str
    theirs: str
    figure: str
    target: str
    script: str = "work.py"
    runs: int = 0


OUTPUTS = "work_outputs.py"
COMPARISONS = (
    Comparison("build, captions of 18 words", "ours_build", "filter_and_map", "rate", "≥ 6"),
    Comparison("build, captions of 18 words", "ours_build", "from_generator", "rate", "≥ 3.5"),
    Comparison("build, captions of 60 words", "ours_build_long", "filter_and_map_long", "rate", "≥ 4"),
    Comparison("build, captions of 60 words", "ours_build_long", "from_generator_long", "rate", "≥ 2.5"),
    Comparison("build, peak memory", "ours_build", "pandas_read_and_filter", "memory", "≤ 0.6"),
    Comparison("build, peak memory, 9 against 3 million rows", "ours_build_9m", "ours_build", "memory", "≤ 1.2"),
    Comparison("build, two processes against one", "ours_build_two_processes", "ours_build", "rate", "none"),
    Comparison("first streamed sample", "ours_first_sample", "pandas_read_and_filter", "seconds", "≤ 0.15"),
    Comparison("LLaVA JSON array", "ours_json", "load_json", "rate", "≥ 8"),
    Comparison("LLaVA JSON array, peak memory", "ours_json", "load_json", "memory", "≤ 0.2"),
    Comparison("raw export", "ours_raw", "card_loop", "rate", "≥ 8", OUTPUTS),
    Comparison("raw export", "ours_raw", "copy", "rate", "≥ 0.7", OUTPUTS, runs=5),
    Comparison(
        "raw export, second run after a kill at half", "ours_raw_after_kill", "ours_raw", "seconds", "≤ 0.6", OUTPUTS
    ),
    Comparison("Parquet export from raw files", "ours_parquet", "to_parquet", "rate", "≥ 0.9", OUTPUTS, runs=5),
    Comparison("Parquet export, peak memory", "ours_parquet", "to_parquet", "memory", "≤ 1,000 MB", OUTPUTS, runs=5),
    Comparison(
        "Parquet export, second run after a kill at half",
        "ours_parquet_after_kill",
        "ours_parquet_ten_parts",
        "seconds",
        "≤ 0.6",
        OUTPUTS,
    ),
    Comparison(
        "raw in → Arrow with bytes", "ours_build_embedded", "from_generator_embedded", "rate", "≥ 1.5", OUTPUTS
    ),
)


def measure(name: str, data: Path, script: str = "work.py") -> dict[str, float]:
    """Run a piece of work; its own seconds, samples per second, and peak memory in MB."""
    command = [sys.executable, str(HERE / script), name, str(data)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdout=output, stderr=errors, env=environment) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    if process.returncode:
        raise SystemExit(f"{name} failed:\n{texts[1][-2000:]}")
    result = json.loads(texts[0].splitlines()[-1])
    seconds = max(result["seconds"], 1e-9)
    return {"seconds": seconds, "rate": result["samples"] / seconds, "memory": usage.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=Path.home() / ".cache" / "llava-mixture-benchmarks")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="comparisons whose description contains this")
    args = parser.parse_args()
    wanted = [c for c in COMPARISONS if not args.only or args.only in c.work]
    make = [sys.executable, str(HERE / "data.py"), str(args.data)]
    if any(comparison.script == OUTPUTS for comparison in wanted):
        subprocess.run([*make, "--rows", "0", "--records", "0", "--images", "4000"], check=True)
    if any(comparison.script != OUTPUTS for comparison in wanted):
        for rows, records in ((3_000_000, 665_000), (9_000_000, 0)):
            subprocess.run([*make, "--rows", str(rows), "--records", str(records)], check=True)
    print("| work | ours | theirs | against | ratio (min – max) | target |\n| --- | --- | --- | --- | --- | --- |")
    known: dict[tuple[str, ...], dict[str, list[dict[str, float]]]] = {}
    for comparison in wanted:
        pair = (comparison.ours, comparison.theirs)
        if pair not in known:
            known[pair] = {name: [] for name in pair}
            for _ in range(max(args.runs, comparison.runs)):
                for name in pair:
                    known[pair][name].append(measure(name, args.data, comparison.script))
        report(comparison, *(known[pair][name] for name in pair))
    if not args.only or args.only in "single figures":
        single(args.data, args.runs)


def report(comparison: Comparison, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """One row of the table."""
    figure = comparison.figure
    unit = {"seconds": "s", "rate": "samples/s", "memory": "MB"}[figure]
    ratios = [a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True)]
    mine, other = (statistics.median(run[figure] for run in runs) for runs in (ours, theirs))
    digits = 2 if figure == "seconds" else 0
    print(
        f"| {comparison.work} | {mine:,.{digits}f} {unit} | {other:,.{digits}f} {unit} | `{comparison.theirs}` "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f}) | {comparison.target} |",
        flush=True,
    )


def single(data: Path, runs: int) -> None:
    """Figures that are not ratios."""
    resumed = [measure("ours_resume", data)["seconds"] for _ in range(runs)]
    print(f"| resume of a stream at 90 % | {statistics.median(resumed):.2f} s | | | | ≤ 0.5 s |", flush=True)
    measure("ours_build_cached", data)
    pairs = [
        (measure("ours_load_built", data)["seconds"], measure("import_datasets", data)["seconds"]) for _ in range(runs)
    ]
    more = statistics.median(a - b for a, b in pairs)
    print(f"| load what is built, beyond `import datasets` | {more:.2f} s | | | | ≤ 0.3 s |", flush=True)


if __name__ == "__main__":
    main()
