"""Statistics, tables and plots of results, and the pages that hold them.

Differences are taken between runs with the same seed, and on the same device where both rows have one.
"""

import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from tabulate import tabulate

from . import cells
from .lines import Line, differences, identity, read_lines, settings_of

Run = tuple[int, str]  # seed and device
Runs = dict[Run, Line]  # of a cell

# What can be shown beside the metrics of the evaluation: keys of a line, with the digits to print.
COSTS = {"seconds_per_iteration": 2, "cpu_seconds_per_iteration": 2, "peak_memory_mib": 0}


class Row(NamedTuple):
    """The runs of a config with changes.

    Attributes:
        config: as in a cell.
        name: of the config and the changes, without those that all rows of a report have.
        baseline: name of the row that it is compared with, which may be its own.
        runs: lines by seed and device.
    """

    config: str
    name: str
    baseline: str
    runs: Runs

    def values(self, metric: str) -> dict[Run, float]:
        """The runs that have the metric or cost. A run that diverged has 0 in every metric."""

        def value(line: Line) -> float | None:
            if metric in COSTS:
                return line[metric]
            return line["metrics"].get(metric) if line["diverged_at"] is None else 0.0

        values = {run: value(line) for run, line in self.runs.items()}
        return {run: value for run, value in values.items() if value is not None}


Rows = dict[str, Row]  # by name


def make_row(
    config: str, baseline: str, changes: Sequence[str], common: Sequence[str], runs: Runs
) -> Row:
    known = set(zip(common[::2], common[1::2], strict=True))
    pairs = zip(changes[::2], changes[1::2], strict=True)
    shown = [word for pair in pairs if pair not in known for word in pair]
    return Row(config, cells.label(config, shown), cells.label(baseline, shown), runs)


def find_rows(
    file: str, words: Sequence[str], common: Sequence[str], against: str = ""
) -> tuple[Rows, list[str]]:
    """The rows of the configs, each after the one that it is compared with.

    A line belongs to a config if its settings are those of the config with the changes that the line
    names and those of `common`.

    Args:
        file: the results.
        words: as for `cells.choose`.
        common: changes of all lines that are shown.
        against: the variant to compare with, in place of that in `cells.py`.

    Returns:
        The rows, and a sentence for lines that have the name of a config but not its settings.

    Raises:
        ValueError: no line belongs to any of the configs, or two lines are of the same cell.
    """
    lines: dict[tuple[str, ...], list[Line]] = {}  # by what they changed
    for line in sorted(read_lines(file), key=lambda line: (line["opts"], line["seed"])):
        lines.setdefault(tuple(line["opts"]), []).append(line)
    identities = {id(line): identity(line["settings"]) for same in lines.values() for line in same}
    rows: Rows = {}
    outdated: dict[str, list[str]] = {}
    asked = cells.choose(words)
    if against:
        baselines = {config: f"{config.split('/')[0]}/{against}" for config in asked}
        configs = cells.choose([name for pair in baselines.items() for name in reversed(pair)])
    else:
        configs = cells.with_baselines(words)
        baselines = {config: cells.baseline_of(config) for config in configs}
    for config in configs:
        for opts, candidates in lines.items():
            wanted = identity(settings_of(cells.load(config, [*common, *opts])))
            runs: Runs = {}
            for line in candidates:
                if identities[id(line)] != wanted:
                    if line["name"] == cells.label(config, opts):
                        now = settings_of(cells.load(config, opts))
                        outdated.setdefault(differences(line["settings"], now), []).append(
                            f"{line['name']}, seed {line['seed']}"
                        )
                    continue
                run = line["seed"], line["device"]
                if run in runs:
                    raise ValueError(
                        f"{file} has two lines of {line['name']}, seed {run[0]}, on {run[1]}; delete one."
                    )
                runs[run] = line
            if runs:
                row = make_row(config, baselines.get(config, config), opts, common, runs)
                rows[row.name] = row
    # Lines without the common changes are of other cells.
    outdated.pop("", None)
    sentences = [
        f"Not shown, since they were run with {different}: {'; '.join(names)}."
        for different, names in outdated.items()
    ]
    # A baseline that was not asked for is shown where something is compared with it.
    needed: Rows = {}
    for name, row in reversed(rows.items()):
        if row.config in asked or name in {other.baseline for other in needed.values()}:
            needed[name] = row
    if not needed:
        stems = ", ".join(map(cells.stem, configs))
        raise ValueError(" ".join([f"{file} has no line of {stems}.", *sentences]))
    return dict(reversed(needed.items())), sentences


def check_metrics(rows: Rows, metrics: Sequence[str]) -> None:
    known = set(COSTS)
    known.update(
        name for row in rows.values() for line in row.runs.values() for name in line["metrics"]
    )
    for metric in metrics:
        if metric not in known:
            raise ValueError(
                f"--metrics has {metric}; the results have {', '.join(sorted(known))}."
            )


def run_on(rows: Rows) -> str:
    """What the cells ran on, so that a mixture of machines or versions shows."""
    lines = [line for row in rows.values() for line in row.runs.values()]
    parts = {
        "device": {line["device"] for line in lines},
        "threads": {str(line["threads"]) for line in lines},
        **{
            name: {line["versions"][name] for line in lines}
            for name in ("torch", "detectron2", "mrcnn_plugin")
        },
    }
    text = ", ".join(f"{name} {' and '.join(sorted(values))}" for name, values in parts.items())
    resumed = sum(line["resumed_from"] > 0 for line in lines)
    diverged = [
        f"{row.name}, seed {seed}"
        for row in rows.values()
        for (seed, _), line in row.runs.items()
        if line["diverged_at"] is not None
    ]
    end = f" Diverged, with an AP of 0: {'; '.join(diverged)}." if diverged else ""
    across = {
        row.name: sum(run[1] != other[1] for run, other in pairs)
        for row in rows.values()
        if (pairs := pair(row.runs, rows[row.baseline].runs if row.baseline in rows else {}))
    }
    if any(across.values()):
        counts = "; ".join(f"{name} {count}" for name, count in across.items() if count)
        end += f" Pairs across devices: {counts}."
    return f"Runs: {len(lines)}, of which resumed: {resumed}; {text}.{end}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t, which is nan for one value."""
    n = len(values)
    if n == 1:
        return values[0], float("nan")
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * stats.sem(values))


def mean(values: Sequence[float], digits: int = 1) -> str:
    """With the standard deviation."""
    if not values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def difference(pairs: Sequence[float], digits: int = 1) -> str:
    """With its interval and the number of pairs."""
    if not pairs:
        return "–"
    middle, half = interval(pairs)
    low, mid, high = (f"{x:+.{digits}f}" for x in (middle - half, middle, middle + half))
    return f"{mid} (1 pair)" if len(pairs) == 1 else f"{mid} [{low}, {high}] ({len(pairs)} pairs)"


def pair(runs: Collection[Run], others: Collection[Run]) -> list[tuple[Run, Run]]:
    """Each run with the other one of its seed, on the same device if there is one. No partner serves twice."""
    pairs = []
    for run in runs:
        partners = [other for other in others if other[0] == run[0]]
        if partners:
            partner = min(partners, key=lambda other: other[1] != run[1])
            if partner == run or partner not in runs:
                pairs.append((run, partner))
    return pairs


def pairs_of(row: Row, other: Row | None, metric: str) -> list[float]:
    """Differences to the runs of the other row that :func:`pair` finds."""
    values, others = row.values(metric), other.values(metric) if other else {}
    return [values[run] - others[partner] for run, partner in pair(values, others)]


def table(rows: Rows, metrics: Sequence[str]) -> str:
    """A row for each cell, with its difference to its baseline."""
    headers = ["", "against", "runs"]
    for metric in metrics:
        headers += [re.sub("[/_]", " ", metric), "difference [95 %]"]
    body = []
    for name, row in rows.items():
        is_baseline = row.baseline == name
        line = [name, "" if is_baseline else row.baseline, str(len(row.runs))]
        for metric in metrics:
            digits = COSTS.get(metric, 1)
            pairs = pairs_of(row, rows.get(row.baseline), metric)
            line += [
                mean(list(row.values(metric).values()), digits),
                "" if is_baseline else difference(pairs, digits),
            ]
        body.append(line)
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def overview(rows: Rows, metric: str) -> str:
    """A row for each variant and a column for each base config: the difference to what it replaces.

    The row of a baseline has the metric itself.
    """
    # Changes that are not common to all rows make other cells.
    by_config = {row.config: row for name, row in rows.items() if name == row.config}
    bases = [base for base in cells.BASES if any(c.split("/")[0] == base for c in by_config)]
    body = []
    for variant in dict.fromkeys(name.split("/")[1] for name in cells.NAMES):
        found = {base: by_config.get(f"{base}/{variant}") for base in bases}
        row = next((row for row in found.values() if row), None)
        if row:
            against = cells.baseline_of(row.config).split("/")[1]
            what = f"`{variant}`: {cells.variant_of(row.config).what}"
            body.append(
                [
                    what,
                    "" if against == variant else f"`{against}`",
                    *(_change(row, by_config, metric) for row in found.values()),
                ]
            )
    headers = ["", "against", *(f"`{base}`" for base in bases)]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def _change(row: Row | None, by_config: Rows, metric: str) -> str:
    if row is None:
        return ""
    if row.baseline == row.name:
        return mean(list(row.values(metric).values()), COSTS.get(metric, 1))
    other = by_config.get(cells.baseline_of(row.config))
    pairs = pairs_of(row, other, metric)
    return difference(pairs, COSTS.get(metric, 1)).replace(" pairs", "")


def power(rows: Rows, metric: str, numbers: Sequence[int]) -> str:
    """Half the width of the 95 % interval that a difference of n pairs would have.

    It follows from the standard deviation of known pairs, pooled over all that are compared with one
    baseline. Their mean differences do not enter it.
    """
    digits = COSTS.get(metric, 1)
    body = []
    for baseline in dict.fromkeys(row.baseline for row in rows.values()):
        known = [
            pairs
            for name, row in rows.items()
            if row.baseline == baseline != name
            and len(pairs := pairs_of(row, rows.get(baseline), metric)) > 1
        ]
        if known:
            freedom = sum(len(pairs) - 1 for pairs in known)
            squares = sum((len(pairs) - 1) * np.var(pairs, ddof=1) for pairs in known)
            deviation = np.sqrt(squares / freedom)
            halves = [stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n) for n in numbers]
            counts = [str(len(known)), str(sum(map(len, known)))]
            body.append([baseline, *counts, *(f"{x:.{digits}f}" for x in (deviation, *halves))])
    if not body:
        raise ValueError("No comparison has two pairs, so that nothing is known of their scatter.")
    headers = ["against", "comparisons", "pairs", f"SD of {metric.replace('/', ' ')}"]
    headers += [f"{n} pairs" for n in numbers]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)


def plot_ap(rows: Rows, metrics: Sequence[str], file: str) -> None:
    """Each run as a dot, each cell's mean with its 95 % interval, and dotted the mean of its partners."""
    figure = Figure(figsize=(3 + 4 * len(metrics), 1 + 0.35 * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(grid, metrics, strict=True):
        for y, (name, row) in enumerate(rows.items()):
            by_run = row.values(metric)
            values = list(by_run.values())
            if not values:
                continue
            color = "black" if row.baseline == name else "C0"
            middle, half = interval(values)
            axes.plot(values, [y] * len(values), "o", color=color, alpha=0.35, markersize=4)
            axes.errorbar(middle, y, xerr=half, fmt="D", color=color, capsize=3)
            if row.baseline in rows:
                others = rows[row.baseline].values(metric)
                if partners := [others[partner] for _, partner in pair(by_run, others)]:
                    x = np.mean(partners)
                    axes.vlines(x, y - 0.5, y + 0.5, "black", "dotted", linewidth=0.8)
        axes.set_xlabel(metric.replace("/", " "))
        axes.grid(True, axis="x", alpha=0.25)
    grid[0].set_yticks(range(len(rows)), list(rows))
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.savefig(file, dpi=120)


def plot_curves(rows: Rows, metric: str, file: str) -> None:
    """Training loss and AP over the iterations, means over the runs, whose number the legend has."""
    # Names with config changes are long.
    columns = 2 if max(map(len, rows)) <= 70 else 1
    figure = Figure(figsize=(11, 4 + 0.26 * len(rows) / columns), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("total_loss", metric), strict=True):
        for index, (cell, row) in enumerate(rows.items()):
            points: dict[int, list[float]] = {}
            for line in row.runs.values():
                for iteration, value in line["curves"].get(name, []):
                    points.setdefault(iteration, []).append(value)
            means = {i: np.mean(v) for i, v in sorted(points.items()) if len(v) == len(row.runs)}
            axes.plot(
                list(means),
                list(means.values()),
                label=f"{cell} ({len(row.runs)})" if name == metric else None,
                color=f"C{index % 10}",
                linestyle=("solid", "dashed", "dotted")[index // 10 % 3],
                linewidth=2.5 if row.baseline == cell else 1.2,
            )
        axes.set(xlabel="iteration", ylabel=name.replace("/", " "))
        axes.grid(True, alpha=0.25)
    figure.legend(loc="outside lower center", ncols=columns)
    figure.savefig(file, dpi=120)


def print_table(args: Namespace) -> str:
    """What the command `table` prints. It draws the plots too, if a prefix for them is given."""
    rows, sentences = find_rows(args.results, args.config, args.opts, args.against)
    check_metrics(rows, args.metrics)
    if args.plots:
        os.makedirs(os.path.dirname(os.path.abspath(args.plots)), exist_ok=True)
        plot_ap(rows, args.metrics, f"{args.plots}_ap.png")
        task = "bbox" if args.metrics[0] in COSTS else args.metrics[0].split("/")[0]
        plot_curves(rows, f"{task}/AP", f"{args.plots}_curves.png")
        print(f"Wrote {args.plots}_ap.png and {args.plots}_curves.png.", file=sys.stderr)
    return "\n\n".join([table(rows, args.metrics), run_on(rows), *sentences])


def print_overview(args: Namespace) -> str:
    """What the command `overview` prints."""
    rows, sentences = find_rows(args.results, args.config, args.opts)
    check_metrics(rows, args.metrics)
    return "\n\n".join([*(overview(rows, metric) for metric in args.metrics), *sentences])


def print_power(args: Namespace) -> str:
    """What the command `power` prints."""
    rows, sentences = find_rows(args.results, args.config, args.opts)
    check_metrics(rows, args.metrics)
    tables = (power(rows, metric, args.pairs) for metric in args.metrics)
    return "\n\n".join([*tables, *sentences])


# A page shows a command, and between these two comments what the command prints.
BLOCK = re.compile(
    r"^(    \S*python -m ablations (?P<command>[^\n]*)\n\n<!-- printed by this command -->\n\n)"
    r"(?P<text>.*?)(?=\n\n<!-- end -->$)",
    re.MULTILINE | re.DOTALL,
)


def write_page(page: Path, printed_by: Callable[[Sequence[str]], str]) -> None:
    """Replaces what each command of the page printed by what it prints now."""
    old = page.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda match: match[1] + printed_by(shlex.split(match["command"])), old)
    if new != old:
        page.write_text(new, encoding="utf-8")
