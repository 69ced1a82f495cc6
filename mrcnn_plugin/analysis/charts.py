"""Charts of a training and of the results of its model. Each function writes one picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .coco import MATCH_IOU, MEASURES, SIZES, TASKS, Evaluated

# With more classes than this, a chart shows some of them, and its title says so.
MAX_CURVES = 10
MAX_MATRIX = 20
LISTED = 5

_AREAS = {"all": "all sizes", "small": "< 32² px", "medium": "32² to 96² px", "large": "> 96² px"}
_DPI = 120


def plain(text: str, length: int = 0) -> str:
    """Returns a name in the form that Matplotlib draws as it is, cut to `length` characters unless that is 0."""
    if length and len(text) > length:
        text = text[: length - 1] + "…"
    # Matplotlib takes what is between two dollars for mathematics, and refuses bytes of file names that are not UTF-8.
    return text.replace("$", r"\$").encode("utf-8", "backslashreplace").decode()


def listed(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def plot_losses(metrics: dict[int, dict[str, float]], file: str) -> None:
    """Plots all losses over the iterations into the picture `file`. There must be one."""
    names = sorted({name for values in metrics.values() for name in values if "loss" in name})
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(
        title="Training losses", xlabel="iteration", ylabel="loss", yscale="log"
    )
    for name in names:
        points = [(i, values[name]) for i, values in sorted(metrics.items()) if name in values]
        style: dict[str, Any] = (
            {"color": "black", "linewidth": 2.5} if name == "total_loss" else {"linewidth": 1.5}
        )
        # A single point has no line.
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), label=name, marker=marker, **style)
    axes.grid(True, which="both", alpha=0.25)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=_DPI)


def plot_ap_over_time(
    metrics: dict[int, dict[str, float]], file: str, prefix: str, title: str
) -> None:
    """Plots AP, AP50 and AP75 of every evaluation over the iterations. There must be one.

    Args:
        metrics: iteration -> name -> value.
        file: the picture to write.
        prefix: what the names of the metrics begin with, if there are several test sets.
        title: a line about the test set.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(
        title=f"AP of every evaluation\n{title}", xlabel="iteration", ylabel="AP (%)", ylim=(0, 100)
    )
    for color, (task, what) in zip(("C0", "C1", "C2"), TASKS.items(), strict=True):
        for style, metric in (("-", "AP"), ("--", "AP50"), (":", "AP75")):
            name = f"{prefix}{task}/{metric}"
            # AP is NaN if a model has found nothing.
            points = [
                (i, np.nan_to_num(values[name]))
                for i, values in sorted(metrics.items())
                if name in values
            ]
            if points:
                label = f"{metric} of {what}: {points[-1][1]:.1f} at last"
                x, y = zip(*points, strict=True)
                axes.plot(x, y, style, marker="o", markersize=4, color=color, label=label)
    axes.grid(True, alpha=0.25)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=_DPI)


def plot_precision_recall(
    evaluated: Evaluated, names: Sequence[str], title: str, file: str
) -> None:
    """Plots precision over recall for each class, at IoU 0.5, at 0.75, and the mean over all thresholds.

    Args:
        evaluated: the evaluation of boxes, masks or keypoints. That of keypoints has OKS in place of IoU.
        names: the names of the classes.
        title: a line about the test set.
        file: the picture to write.
    """
    measure = MEASURES[evaluated.task]
    curves = {
        f"{measure} ≥ 0.5": (0.5, evaluated.curve(0.5)),
        f"{measure} ≥ 0.75": (0.75, evaluated.curve(0.75)),
        f"mean over {measure} 0.5 to 0.95": (None, evaluated.curve()),
    }
    present = [i for i in range(len(names)) if evaluated.num_objects[i, 0]]
    labelled = sorted(present, key=lambda i: -evaluated.num_objects[i, 0])[:MAX_CURVES]

    figure = Figure(figsize=(16, 5.6 + 0.26 * len(labelled)), layout="constrained")
    for number, (heading, (iou, curve)) in enumerate(curves.items()):
        axes = figure.add_subplot(
            1,
            3,
            number + 1,
            title=heading,
            xlabel="recall: objects that are found",
            ylabel="precision: detections that are right",
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.02),
        )
        for i in present:
            if i not in labelled:
                axes.plot(evaluated.recalls, curve[:, i], color="0.85", linewidth=1, zorder=1)
        handles = []
        for position, i in enumerate(labelled):
            count = evaluated.num_objects[i, 0]
            label = f"{plain(names[i], 24)}, n = {count}: AP {evaluated.ap(iou, index=i):.1f} %"
            color = colormaps["tab10"](position % 10)
            handles += axes.plot(
                evaluated.recalls, curve[:, i], color=color, linewidth=1.5, label=label
            )
        if len(present) > 1:
            label = f"mean of {len(present)} classes: AP {evaluated.ap(iou):.1f} %"
            mean = curve[:, present].mean(axis=1)
            handles += axes.plot(evaluated.recalls, mean, color="black", linewidth=3, label=label)
        axes.grid(True, alpha=0.25)
        if handles:
            # Unless they are given, Matplotlib leaves out labels that begin with an underscore.
            labels = [str(handle.get_label()) for handle in handles]
            axes.legend(
                handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=9
            )
    figure.suptitle(
        f"Precision and recall of {TASKS[evaluated.task]}. {title}\n"
        + _sentences(
            f"The {MAX_CURVES} classes with the most objects are in colour, the others are grey."
            if len(labelled) < len(present)
            else "",
            _without_objects(names, present),
        )
    )
    figure.savefig(file, dpi=_DPI)


def plot_ap(evaluated: Sequence[Evaluated], names: Sequence[str], title: str, file: str) -> None:
    """Plots AP of boxes, masks and keypoints by object size and by class.

    Args:
        evaluated: the evaluation of boxes first, then those of masks and keypoints if there are any.
        names: the names of the classes.
        title: a line about the test set.
        file: the picture to write.
    """
    objects = evaluated[0].num_objects
    present = [i for i in range(len(names)) if objects[i, 0]]
    # Classes without keypoints have no AP of them.
    order = sorted(present, key=lambda i: np.nan_to_num(evaluated[-1].ap(index=i)))
    measures = " or ".join(dict.fromkeys(MEASURES[one.task] for one in evaluated))
    label_of_ap = f"AP (%), mean over {measures} 0.5 to 0.95"
    height = max(5.0, 1.6 + (0.16 + 0.1 * len(evaluated)) * len(order))
    figure = Figure(figsize=(15, height), layout="constrained")
    # The chart of sizes stays as it is, however many classes there are.
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.3), squeeze=False).flat
    top = min(1.0, 5.0 / height)
    sizes = left.add_axes((0.12, 1 - top * 0.85, 0.84, top * 0.72))
    sizes.set(title="By size of the object", ylabel=label_of_ap)
    classes = right.add_subplot(title="By class", xlabel=label_of_ap)

    width = 0.8 / len(evaluated)
    for number, one in enumerate(evaluated):
        shift = (number - (len(evaluated) - 1) / 2) * width
        label = TASKS[one.task]
        _bars(sizes, [one.ap(size=size) for size in SIZES], shift, width, label, False)
        _bars(classes, [one.ap(index=i) for i in order], -shift, width, label, True)
    sizes.set_xticks(
        range(len(SIZES)),
        [
            f"{size}\n{_AREAS[size]}\nn = {objects[:, s].sum()}"
            if s
            else f"{_AREAS[size]}\n\nn = {objects[:, s].sum()}"
            for s, size in enumerate(SIZES)
        ],
    )
    sizes.set_ylim(0, 109)
    sizes.legend(loc="upper right", ncols=2)
    classes.set_yticks(
        range(len(order)), [f"{plain(names[i], 24)}, n = {objects[i, 0]}" for i in order]
    )
    classes.set_xlim(0, 109)
    classes.set_ylim(-0.6, max(len(order), 1) - 0.4)
    classes.legend(loc="lower right")
    figure.suptitle(
        f"Average precision. {title}\n"
        + _sentences("n: number of objects.", _without_objects(names, present))
    )
    figure.savefig(file, dpi=_DPI)


def plot_confusion(
    matrix: NDArray[np.int64],
    names: Sequence[str],
    task: str,
    min_score: float,
    title: str,
    file: str,
) -> None:
    """Draws a confusion matrix with background. Of many classes, it shows those that are confused most.

    Args:
        matrix: what :func:`confusion_matrix` returns.
        names: the names of the classes.
        task: "bbox" or "segm".
        min_score: the lowest score of the detections.
        title: a line about the test set.
        file: the picture to write.
    """
    total = len(names)
    labels = list(names)
    note = ""
    if total > MAX_MATRIX:
        shown = most_confused(matrix, MAX_MATRIX)
        matrix = merge_others(matrix, shown)
        labels = [names[i] for i in shown]
        note = f"The {MAX_MATRIX} of {total} classes with the most errors are shown; all others are one row and column."
        labels.append(f"{total - MAX_MATRIX} others")

    labels = [plain(label, 24) for label in labels]
    size = len(labels) + 1
    inch = max(0.52, min(1.1, 5.0 / size))
    figure = Figure(figsize=(5.0 + inch * size, 3.2 + inch * size), layout="constrained")
    axes = figure.add_subplot(
        xlabel=f"what the model says (score ≥ {min_score:g})", ylabel="what is there"
    )
    sums = matrix.sum(axis=1, keepdims=True)
    shares = np.where(sums > 0, matrix / np.maximum(sums, 1), np.nan)
    # The last row has the share of false detections among those of a class.
    columns = matrix.sum(axis=0)
    shares[-1] = np.where(columns > 0, matrix[-1] / np.maximum(columns, 1), np.nan)
    # Background that was found to be background cannot be counted.
    shares[-1, -1] = np.nan
    colors = colormaps["Blues"].with_extremes(bad="0.93")
    image = axes.imshow(100 * shares, cmap=colors, vmin=0, vmax=100)
    figure.colorbar(
        image, ax=axes, label="share of the row (%); in the last row, of the column", shrink=0.8
    )
    for y in range(size):
        for x in range(size):
            if y == x == size - 1:
                text = "–"
            elif not matrix[y, x]:
                continue
            else:
                text = f"{matrix[y, x]}"
                if inch > 0.7:
                    text += f"\n{100 * shares[y, x]:.0f} %"
            color = "white" if shares[y, x] > 0.6 else "black"
            font = 10 if inch > 0.7 else 8 if matrix.max() < 10000 else 6
            axes.text(x, y, text, ha="center", va="center", color=color, fontsize=font)
    axes.set_xticks(range(size), [*labels, "missed"], rotation=90)
    counts = matrix.sum(axis=1)
    axes.set_yticks(
        range(size),
        [f"{label}, n = {counts[i]}" for i, label in enumerate(labels)]
        + [f"no object (false), n = {counts[-1]}"],
    )
    # Lines separate misses and false detections from errors between classes.
    for line in (axes.axhline, axes.axvline):
        line(size - 1.5, color="black", linewidth=1.2)
    axes.set_title(
        f"Confusion matrix of {TASKS[task]}.\n{title}\n"
        + _sentences(f"Objects and detections match at IoU ≥ {MATCH_IOU}.", note),
        fontsize=10,
        wrap=True,
    )
    # The square axes can push labels out of the figure.
    figure.savefig(file, dpi=_DPI, bbox_inches="tight")


def most_confused(matrix: NDArray[np.int64], number: int) -> list[int]:
    """Returns the classes of a confusion matrix with the most errors, in ascending order.

    Errors between classes count first, then misses and false detections, then objects.
    """
    classes = matrix[:-1, :-1]
    right = np.diag(classes)
    between = classes.sum(axis=0) + classes.sum(axis=1) - 2 * right
    beside = matrix[-1, :-1] + matrix[:-1, -1]
    order = np.lexsort((-right, -beside, -between))
    return sorted(int(i) for i in order[:number])


def merge_others(matrix: NDArray[np.int64], shown: Sequence[int]) -> NDArray[np.int64]:
    """Makes all classes but `shown` one class of a confusion matrix. It stands before the background."""
    size = len(matrix)
    group = np.full(size, len(shown))
    group[list(shown)] = np.arange(len(shown))
    group[-1] = len(shown) + 1
    member = np.eye(len(shown) + 2, dtype=matrix.dtype)[group]
    return member.T @ matrix @ member


def _bars(
    axes: Axes, values: Sequence[float], shift: float, width: float, label: str, lying: bool
) -> None:
    places = np.arange(len(values)) + shift
    numbers = np.nan_to_num(values)
    texts = ["–" if np.isnan(v) else f"{v:.1f}" for v in values]
    bars = (
        axes.barh(places, numbers, width, label=label)
        if lying
        else axes.bar(places, numbers, width, label=label)
    )
    axes.bar_label(bars, texts, padding=2, fontsize=7 if lying else 8)
    axes.grid(True, axis="x" if lying else "y", alpha=0.25)
    axes.set_axisbelow(True)


def _without_objects(names: Sequence[str], present: Sequence[int]) -> str:
    absent = [plain(name, 24) for i, name in enumerate(names) if i not in present]
    return f"Classes without objects, left out: {listed(absent)}." if absent else ""


def _sentences(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
