import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from mrcnn_plugin.analysis import charts, coco
from tests.analysis.made import ground_truth, results

A, B, C = (5, 5, 20, 20), (50, 10, 40, 30), (10, 60, 30, 30)


@pytest.fixture
def saved(monkeypatch):
    """Figures that are saved, before they are drawn."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **kwargs: figures.append(figure))
    return figures


def many_classes(number):
    """One object of each class but the last, of which every second is found; and its names."""
    categories = list(range(1, number + 1))
    objects = [(i, i, A) for i in categories[:-1]]
    truth = ground_truth(objects, number, categories)
    found = results(*[(*one, 0.9) for one in objects[::2]])
    return truth, found, [f"class {i}" for i in categories]


def lines(axes):
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def texts(axes):
    return {tuple(text.get_position()): text.get_text() for text in axes.texts}


# Precision and recall


def test_curves_of_each_class_and_their_mean(saved):
    truth = ground_truth([(1, 3, A), (1, 7, B), (2, 7, C)])
    found = results((1, 3, A, 0.9), (1, 7, B, 0.8))
    evaluated = coco.evaluate(truth, found, "segm")
    charts.plot_precision_recall(evaluated, ["cat", "dog", "cow"], "val: 2 images", "")
    (figure,) = saved
    assert [axes.get_title() for axes in figure.axes] == [
        "IoU ≥ 0.5",
        "IoU ≥ 0.75",
        "mean over IoU 0.5 to 0.95",
    ]
    for axes in figure.axes:
        drawn = lines(axes)
        # One of two dogs is found: precision is 1 up to a recall of 0.5, which is 51 of 101.
        assert list(drawn) == [
            "dog, n = 2: AP 50.5 %",
            "cat, n = 1: AP 100.0 %",
            "mean of 2 classes: AP 75.2 %",
        ]
        np.testing.assert_allclose(drawn["dog, n = 2: AP 50.5 %"], [1] * 51 + [0] * 50)
        assert axes.get_legend() is not None
    title = figure.get_suptitle()
    assert "of masks. val: 2 images" in title and "without objects, left out: cow." in title


def test_one_class_has_no_mean(saved):
    truth = ground_truth([(1, 3, A)], categories=[3])
    evaluated = coco.evaluate(truth, [], "bbox")
    charts.plot_precision_recall(evaluated, ["cat"], "", "")
    assert list(lines(saved[0].axes[0])) == ["cat, n = 1: AP 0.0 %"]


def test_a_class_is_in_the_legend_whatever_its_name_begins_with(saved):
    truth = ground_truth([(1, 3, A), (2, 7, A)], categories=[3, 7])
    evaluated = coco.evaluate(truth, results((1, 3, A, 0.9)), "bbox")
    charts.plot_precision_recall(evaluated, ["_background", "dog"], "", "")
    for axes in saved[0].axes:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [
            "_background, n = 1: AP 100.0 %",
            "dog, n = 1: AP 0.0 %",
            "mean of 2 classes: AP 50.0 %",
        ]


def test_of_80_classes_some_are_in_colour(saved):
    truth, found, names = many_classes(80)
    charts.plot_precision_recall(coco.evaluate(truth, found, "bbox"), names, "", "")
    axes = saved[0].axes[0]
    assert len(axes.get_lines()) == 80
    assert len(axes.get_legend().get_texts()) == charts.MAX_CURVES + 1
    assert f"The {charts.MAX_CURVES} classes with the most objects" in saved[0].get_suptitle()


# AP by size and by class


def test_bars_are_as_high_as_ap(saved):
    truth = ground_truth([(1, 3, A), (1, 7, B), (2, 7, C)])
    found = results((1, 3, A, 0.9), (1, 7, B, 0.8))
    evaluated = [coco.evaluate(truth, found, task) for task in ("bbox", "segm")]
    charts.plot_ap(evaluated, ["cat", "dog", "cow"], "", "")
    sizes, classes = saved[0].axes
    ticks = [label.get_text().replace("\n", " ") for label in sizes.get_xticklabels()]
    assert ticks == [
        "all sizes  n = 3",
        "small < 32² px n = 2",
        "medium 32² to 96² px n = 1",
        "large > 96² px n = 0",
    ]
    for number, one in enumerate(evaluated):
        heights = [bar.get_height() for bar in sizes.containers[number]]
        expected = [one.ap(size=size) for size in coco.SIZES]
        np.testing.assert_allclose(heights, np.nan_to_num(expected))
        widths = [bar.get_width() for bar in classes.containers[number]]
        assert widths == pytest.approx([one.ap(index=1), 100])
    assert [t.get_text() for t in classes.get_yticklabels()] == ["dog, n = 2", "cat, n = 1"]
    assert [t.get_text() for t in sizes.get_legend().get_texts()] == ["boxes", "masks"]


# Confusion matrix


def test_a_small_matrix_is_shown_as_it_is(saved):
    matrix = np.array([[6, 2, 0], [0, 5, 5], [3, 0, 0]])
    charts.plot_confusion(matrix, ["cat", "dog"], "segm", 0.3, "val", "")
    axes = saved[0].axes[0]
    assert texts(axes) == {
        (0, 0): "6\n75 %",
        (1, 0): "2\n25 %",
        (1, 1): "5\n50 %",
        (2, 1): "5\n50 %",
        # 3 of 9 detections of cats.
        (0, 2): "3\n33 %",
        (2, 2): "–",
    }
    assert [t.get_text() for t in axes.get_xticklabels()] == ["cat", "dog", "missed"]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "cat, n = 8",
        "dog, n = 10",
        "no object (false), n = 3",
    ]
    assert "score ≥ 0.3" in axes.get_xlabel() and "IoU ≥ 0.5" in axes.get_title()


def test_of_80_classes_those_that_are_confused_most_are_shown(saved):
    rng = np.random.default_rng(0)
    matrix = np.zeros((81, 81), dtype=np.int64)
    np.fill_diagonal(matrix, 100)
    matrix[80, 80] = 0
    confused = sorted(rng.choice(80, charts.MAX_MATRIX, replace=False).tolist())
    for one, other in zip(confused, [*confused[1:], confused[0]], strict=True):
        matrix[one, other] = 2
    # Many misses are no confusion of classes.
    matrix[:80, 80] = 50
    assert charts.most_confused(matrix, charts.MAX_MATRIX) == confused
    charts.plot_confusion(matrix, [f"class {i}" for i in range(80)], "bbox", 0.5, "", "")
    axes = saved[0].axes[0]
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert labels == [*[f"class {i}" for i in confused], "60 others", "missed"]
    assert "20 of 80 classes" in axes.get_title()


def test_no_label_of_a_matrix_is_cut_off(tmp_path):
    matrix = np.diag([77, 84, 91, 68, 1866])
    names, title = ["disc", "square", "triangle", "ring"], "val: 60 images, 386 objects, " * 3
    charts.plot_confusion(matrix, names, "segm", 0.1, title, str(tmp_path / "matrix.png"))
    picture = cv2.imread(str(tmp_path / "matrix.png"))
    edges = picture[0], picture[-1], picture[:, 0], picture[:, -1]
    assert all((edge == 255).all() for edge in edges)


def test_merging_classes_loses_nothing():
    matrix = np.random.default_rng(0).integers(0, 9, (6, 6))
    merged = charts.merge_others(matrix, [1, 3])
    assert merged.sum() == matrix.sum()
    assert merged[:2, :2].tolist() == matrix[np.ix_([1, 3], [1, 3])].tolist()
    assert merged[2, 0] == matrix[[0, 2, 4], 1].sum()
    assert merged[2, 2] == matrix[np.ix_([0, 2, 4], [0, 2, 4])].sum()
    assert merged[3, 2] == matrix[5, [0, 2, 4]].sum() and merged[1, 3] == matrix[3, 5]


# AP over time


def test_every_evaluation_is_a_point(saved):
    metrics = {
        9: {"total_loss": 1.0, "val/bbox/AP": 5.0, "test/bbox/AP": 50.0},
        # No detections.
        4: {"val/bbox/AP": float("nan")},
    }
    charts.plot_ap_over_time(metrics, "", "val/", "")
    (line,) = saved[0].axes[0].get_lines()
    assert line.get_xydata().tolist() == [[4, 0], [9, 5]]
    assert line.get_label() == "AP of boxes: 5.0 at last"


# All of them, drawn


@pytest.mark.parametrize("number", [1, 2, 80])
def test_all_charts_can_be_drawn(tmp_path, number):
    truth, found, names = many_classes(number)
    names[0] = "cost in $ and $\\frac{" + 50 * "x"
    evaluated = [coco.evaluate(truth, found, task) for task in ("bbox", "segm")]
    matrix = coco.confusion_matrix(coco.match(truth, found, "segm", 0.5), sorted(truth.cats))
    charts.plot_precision_recall(evaluated[0], names, "", str(tmp_path / "1.png"))
    charts.plot_ap(evaluated, names, "", str(tmp_path / "2.png"))
    charts.plot_confusion(matrix, names, "segm", 0.5, "", str(tmp_path / "3.png"))
    for i in (1, 2, 3):
        picture = cv2.imread(str(tmp_path / f"{i}.png"))
        assert picture.shape[1] > 500 and picture.std() > 10
