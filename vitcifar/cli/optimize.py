"""The command that searches a faster variant of a version."""

from typing import TYPE_CHECKING

import click

from vitcifar.cli import format, options
from vitcifar.config import MERGING_SCHEDULES

if TYPE_CHECKING:
    from vitcifar.registry.registry import Registry

NOTHING_BETTER = 3  # exit code


def numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    words = [] if value == "auto" else [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() for word in words):
        raise click.BadParameter(f"{value!r} is not auto, or numbers such as 0,8.", ctx, param)
    return tuple(map(int, words))


@options.registry_command
@options.version_option
@options.option("--max-p95-ms", 0.0, "Latency budget: 95th percentile of one image in ms (0 = none).", minimum=0.0)
@options.option(
    "--image-sizes", "auto", "Image sizes in pixels, e.g. 224,192 (auto = the own and two smaller).", callback=numbers
)
@options.option(
    "--merged-pairs", "auto", "Merged pairs of tokens per block, e.g. 0,8 (auto = four numbers).", callback=numbers
)
@options.option(
    "--merging-schedules",
    "both",
    "Merged pairs over the blocks: constant, halving (most in the first blocks), or both.",
    choices=("both", *MERGING_SCHEDULES),
)
@options.experiment_option
def optimize(
    registry: "Registry",
    version: str,
    max_p95_ms: float,
    image_sizes: tuple[int, ...],
    merged_pairs: tuple[int, ...],
    merging_schedules: str,
    experiment: str,
) -> None:
    """Register the fastest variant of a version that is not worse: image size, token merging and format.

    Every variant is checked and timed on this machine, without training. The exit code is 3 when none is better.

    \b
    vitcifar optimize --version champion --max-p95-ms 30
    vitcifar optimize --version 3 --image-sizes 224 --merged-pairs 0,8,16
    """
    from vitcifar.experiments.optimize import optimize as search
    from vitcifar.experiments.versions import OUTPUT_DIR

    run_id, found = search(
        registry,
        version,
        max_p95_ms=max_p95_ms,
        experiment=experiment,
        image_sizes=image_sizes,
        token_merging=merged_pairs,
        merging_schedules=() if merging_schedules == "both" else (merging_schedules,),
    )
    rows = [
        [
            *(str(row.image_size), row.merged, row.format, f"{row.accuracy:.1%}", f"{row.agreement:.1%}"),
            *(f"{row.p95_ms:.2f}", f"{row.ratio:.2f}", row.reason or "passed"),
        ]
        for row in found.variants
    ]
    format.print_table(["pixels", "merged", "format", "accuracy", "agreement", "p95 ms", "of version", "checks"], rows)
    click.echo(found.message)
    format.print_field("run", run_id)
    format.print_places(run_id, OUTPUT_DIR / run_id)
    if found.version is None:
        raise click.exceptions.Exit(NOTHING_BETTER)
    format.print_field("next", f"vitcifar compare {found.version} {version}{registry.model_option}", err=True)
