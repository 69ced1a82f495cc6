"""Tables, plots and pages, of results that are made up and of those in this folder."""

import json
import re
import shlex

import cv2
import pytest

from ablations import cells, lines, report
from ablations.__main__ import FOLDER, PAGES, main, parse, printed_by
from tests.small import ROOT

from .helpers import write_other

UNRELATED = {"SOLVER.MAX_ITER": 40}


def line(name, seed, ap, **more):
    """A made-up line of base.yaml, other.yaml or another config, with the changes of its name."""
    config, *opts = name.split()
    known = config in ("base", "other")
    return {
        "name": name,
        "opts": opts,
        "seed": seed,
        "settings": lines.settings_of(cells.load(f"{config}.yaml", opts)) if known else UNRELATED,
        "versions": {"torch": "2", "detectron2": "0.7", "mrcnn_plugin": "0.1"},
        "device": "a CPU",
        "threads": 1,
        "resumed_from": 0,
        "diverged_at": None,
        "seconds_per_iteration": 0.75,
        "cpu_seconds_per_iteration": 0.5,
        "peak_memory_mib": 1000,
        "metrics": {"bbox/AP": ap, "segm/AP": None},
        "curves": {"total_loss": [[20, 2.0], [40, 1.0]], "bbox/AP": [[20, 10.0], [40, ap]]},
        **more,
    }


def show(folder, found, *arguments):
    """Runs the command `table` on made-up lines."""
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    options = ["--results", "results.jsonl", "--plots", "out/r"]
    main(["table", "--config", "other.yaml", *options, *arguments])


def cells_of(printed):
    """The cells of the Markdown tables in a text, row by row."""
    table = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table]


def test_the_table_pairs_seeds(folder, capsys):
    # Differences by seed 1, 2, 3: their interval is 2 ± 4.3027 / sqrt(3), Student's t of any table.
    # Means are 20 and 24, since a fourth seed has no partner.
    found = [line("other", s, ap) for s, ap in [(2, 12.0), (1, 11.0), (3, 43.0), (4, 30.0)]]
    found += [line("base", s, ap) for s, ap in [(1, 10.0), (3, 40.0), (2, 10.0)]]
    show(folder, found + [line("unrelated", 1, 99.0)])
    printed = capsys.readouterr().out
    header, _, base, other = cells_of(printed)
    assert (
        "\nRuns: 7, of which resumed: 0; device a CPU, threads 1, torch 2, detectron2 0.7, "
        "mrcnn_plugin 0.1.\n"
    ) in printed
    assert header[:5] == ["", "against", "runs", "bbox AP", "difference [95 %]"]
    assert base[:5] == ["base", "", "3", "20.0 ± 17.3", ""]
    assert other[:4] == ["other", "base", "4", "24.0 ± 15.4"]
    assert other[4] == "+2.0 [-0.5, +4.5] (3 pairs)"
    # No masks.
    assert other[5:] == ["–", "–"]
    for name in ("out/r_ap.png", "out/r_curves.png"):
        assert cv2.imread(name).std() > 5


def test_one_seed_has_no_interval_and_other_metrics_can_be_shown(folder, capsys):
    found = [line("base", 1, 10.0), line("other", 1, 12.5)]
    found[1]["metrics"]["bbox/AP-ring"] = 3.0
    show(folder, found, "--metrics", "bbox/AP", "bbox/AP-ring")
    header, _, base, other = cells_of(capsys.readouterr().out)
    assert header[5] == "bbox AP-ring"
    assert base[3:7] == ["10.0", "", "–", ""]
    assert other[3:7] == ["12.5", "+2.5 (1 pair)", "3.0", "–"]


def test_costs_are_compared_as_metrics_are(folder, capsys):
    found = [line("base", 1, 10.0), line("other", 1, 12.5, peak_memory_mib=1200, diverged_at=3)]
    found[1]["cpu_seconds_per_iteration"] = 0.42
    show(folder, found, "--metrics", "cpu_seconds_per_iteration", "peak_memory_mib")
    header, _, base, other = cells_of(capsys.readouterr().out)
    assert header[3::2] == ["cpu seconds per iteration", "peak memory mib"]
    assert base[3:] == ["0.50", "", "1000", ""]
    assert other[3:] == ["0.42", "-0.08 (1 pair)", "1200", "+200 (1 pair)"]


def test_another_variant_of_the_base_can_be_compared_with(tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    known = [("stock", 1, 10.0), ("bicubic", 1, 14.0), ("headline", 1, 15.0), ("headline", 2, 9.0)]
    changes = ["SOLVER.GAMMA", "0.5"]
    file.write_text(
        "".join(
            json.dumps(
                {
                    **line(f"nuclei/{variant}", seed, ap),
                    "opts": changes,
                    "settings": lines.settings_of(cells.load(f"nuclei/{variant}", changes)),
                }
            )
            + "\n"
            for variant, seed, ap in known
        )
    )
    options = ["table", "--results", str(file), "--against", "bicubic", "--config"]
    main([*options, "nuclei/headline", "nuclei/stock", "--opts", *changes])
    assert [row[:5] for row in cells_of(capsys.readouterr().out)[2:]] == [
        ["nuclei/bicubic", "", "1", "14.0", ""],
        ["nuclei/headline", "nuclei/bicubic", "2", "12.0 ± 4.2", "+1.0 (1 pair)"],
        ["nuclei/stock", "nuclei/bicubic", "1", "10.0", "-4.0 (1 pair)"],
    ]
    for config in ("nuclei/headline", str(ROOT / "configs/quickstart.yaml")):
        with pytest.raises(SystemExit):
            main([*options[:-2], "gamma2", "--config", config])
        assert f"gamma2, which is no variant of the base of {config}" in capsys.readouterr().err


def test_changes_of_all_cells_are_compared_with_the_baseline_of_the_same_change(folder, capsys):
    change = "SOLVER.BASE_LR 0.5"
    changed = [line(f"{n} {change}", 1, ap) for n, ap in (("base", 20.0), ("other", 21.0))]
    show(folder, [line("base", 1, 10.0), line("other", 1, 11.5), *changed])
    assert [[*row[:2], row[4]] for row in cells_of(capsys.readouterr().out)[2:]] == [
        ["base", "", ""],
        [f"base {change}", "", ""],
        ["other", "base", "+1.5 (1 pair)"],
        [f"other {change}", f"base {change}", "+1.0 (1 pair)"],
    ]


def test_what_the_cells_ran_on_is_said(folder, capsys):
    found = [line("base", 1, 10.0), line("other", 1, 11.5, device="a GPU", resumed_from=20)]
    show(folder, found)
    runs = "\nRuns: 2, of which resumed: 1; device a CPU and a GPU, threads 1"
    assert runs in capsys.readouterr().out
    diverged = line("other", 2, 0.0, diverged_at=3)
    found += [line("base", 2, 8.0, metrics={"bbox/AP75": 8.0}), diverged]
    show(folder, found)
    text = capsys.readouterr().out
    assert "\nRuns: 4, of which resumed: 1; device a CPU" in text
    end = "Diverged, with an AP of 0: other, seed 2. Pairs across devices: other 1.\n"
    assert f"0.1. {end}" in text
    show(folder, found, "--metrics", "bbox/AP75")
    assert cells_of(capsys.readouterr().out)[3][3:5] == ["0.0", "-8.0 (1 pair)"]


def test_runs_are_paired_on_their_own_device_where_there_are_two(folder, capsys):
    found = [line("base", 1, 10.0), line("base", 1, 14.0, device="a GPU"), line("base", 2, 20.0)]
    found += [line("other", seed, 30.0, device="a GPU") for seed in (1, 2)]
    # 30 - 14 on the GPU, and 30 - 20 across devices.
    show(folder, found)
    printed = capsys.readouterr().out
    base, other = cells_of(printed)[2:]
    assert base[2:4] == ["3", "14.7 ± 5.0"]
    assert other[2:5] == ["2", "30.0 ± 0.0", "+13.0 [-25.1, +51.1] (2 pairs)"]
    assert " Pairs across devices: other 1.\n" in printed
    show(folder, found[:2] + found[3:4])
    assert "across" not in capsys.readouterr().out
    # The one on the GPU has no partner of its own, since the only one has a pair on the CPU.
    show(folder, [found[0], found[3], line("other", 1, 12.0)])
    assert cells_of(capsys.readouterr().out)[3][4] == "+2.0 (1 pair)"


def test_power_is_the_interval_that_more_pairs_would_have(folder, capsys):
    # Differences of other: 1, 2, 3, with SD 1; of third: 0 and 4, with SD 2.83; pooled (2 + 8) / 3.
    aps = {"base": [10.0, 20.0, 30.0], "other": [11.0, 22.0, 33.0], "third": [10.0, 24.0]}
    write_other(folder)
    (folder / "third.yaml").write_text("_BASE_: base.yaml\nSOLVER: {GAMMA: 0.5}\n")
    found = [
        {
            **line(name, seed, ap),
            "settings": lines.settings_of(cells.load(f"{name}.yaml")),
            "metrics": {"bbox/AP": ap, "segm/AP": -2 * ap},
        }
        for name, values in aps.items()
        for seed, ap in enumerate(values)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    options = ["--results", "results.jsonl", "--config"]
    main(["power", *options, "other.yaml", "third.yaml", "--pairs", "3", "10"])
    printed = capsys.readouterr().out
    header, _, base, *masks = cells_of(printed)
    assert header == ["against", "comparisons", "pairs", "SD of bbox AP", "3 pairs", "10 pairs"]
    # 4.3027 / sqrt(3) and 2.2622 / sqrt(10), Student's t of any table, times 1.826.
    assert base == ["base", "2", "5", "1.8", "4.5", "1.3"]
    assert masks[-1][3:] == ["3.7", "9.1", "2.6"]
    with pytest.raises(ValueError, match="No comparison has two pairs"):
        main(["power", *options, "base.yaml"])
    with pytest.raises(SystemExit):
        main(["power", *options, "other.yaml", "--pairs", "1"])
    assert "--pairs has 1; an interval needs at least 2" in capsys.readouterr().err


def test_common_changes_choose_lines_and_are_not_repeated_in_names(folder, capsys):
    found = [line(f"{n} SOLVER.GAMMA 0.5 SOLVER.BASE_LR 0.5", 1, 2.0) for n in ("base", "other")]
    show(folder, [*found, line("other", 1, 1.0)], "--opts", "SOLVER.GAMMA", "0.5")
    printed = capsys.readouterr().out
    assert [row[:4] for row in cells_of(printed)[2:]] == [
        ["base SOLVER.BASE_LR 0.5", "", "1", "2.0"],
        ["other SOLVER.BASE_LR 0.5", "base SOLVER.BASE_LR 0.5", "1", "2.0"],
    ]
    assert "Not shown" not in printed


def test_a_line_is_found_by_what_it_set_and_not_by_its_name(folder, capsys):
    found = [line("base", 1, 10.0), line("other", 1, 11.5)]
    show(folder, [{**one, "name": f"formerly {one['name']}"} for one in found])
    assert [row[:5] for row in cells_of(capsys.readouterr().out)[2:]] == [
        ["base", "", "1", "10.0", ""],
        ["other", "base", "1", "11.5", "+1.5 (1 pair)"],
    ]


def test_a_line_from_before_its_config_was_changed_is_not_shown_and_that_is_said(folder, capsys):
    found = [line("base", 1, 10.0), line("other", 1, 11.5), line("other", 2, 11.0)]
    write_other(folder, beta=0.25)
    found.append(line("other", 3, 12.0))
    show(folder, found)
    text = capsys.readouterr().out
    assert [row[:3] for row in cells_of(text)[2:]] == [["base", "", "1"], ["other", "base", "1"]]
    sentence = "they were run with MODEL.RPN.SMOOTH_L1_BETA 0.5 instead of 0.25: other, seed 1; "
    assert text.endswith(f"\n\nNot shown, since {sentence}other, seed 2.\n")
    with pytest.raises(ValueError, match="no line of base, other. Not shown, since they were run"):
        show(folder, found[1:3])


def test_results_that_cannot_be_reported(folder):
    with pytest.raises(ValueError, match="has no line of base, other"):
        show(folder, [line("unrelated", 1, 1.0)])
    with pytest.raises(ValueError, match="two lines of base, seed 1, on a CPU; delete one"):
        show(folder, [line("other", 1, 1.0), line("base", 1, 1.0), line("base", 1, 1.0)])
    with pytest.raises(
        ValueError, match="--metrics has bbox/ap; the results have bbox/AP, cpu_seconds_per_it"
    ):
        show(folder, [line("other", 1, 1.0)], "--metrics", "bbox/AP", "bbox/ap")
    assert not (folder / "out").exists()
    (folder / "results.jsonl").write_text('{"name": "base"')
    with pytest.raises(ValueError, match="line 1 is not the result of a cell"):
        lines.read_lines("results.jsonl")


def test_the_overview_has_the_difference_of_each_variant_on_each_data_set(tmp_path, capsys):
    def cell(config, seed, ap):
        settings = lines.settings_of(cells.load(config))
        return {**line(config, seed, ap), "settings": settings}

    found = [cell("nuclei/stock", seed, ap) for seed, ap in ((1, 10.0), (2, 12.0))]
    found += [cell("nuclei/carafe", 2, 13.0), cell("shapes_small/stock", 1, 20.0)]
    found += [
        cell("shapes_small/bicubic_ratio2", 1, 25.0),
        cell("shapes_small/stock_ratio2", 1, 24.0),
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    main(["overview", "--results", str(tmp_path / "r.jsonl")])
    header, _, *body = cells_of(capsys.readouterr().out)
    assert header == ["", "against", "`nuclei`", "`shapes_small`"]
    assert [row[1:] for row in body] == [
        ["", "11.0 ± 1.4", "20.0"],
        ["`stock`", "", "+4.0 (1 pair)"],
        ["`stock_ratio2`", "", "+1.0 (1 pair)"],
        ["`stock`", "+1.0 (1 pair)", ""],
    ]
    assert [row[0].split(":")[0] for row in body] == [
        "`stock`",
        "`stock_ratio2`",
        "`bicubic_ratio2`",
        "`carafe`",
    ]


# The results in this folder, and the pages.

RESULTS = sorted((FOLDER / "results").glob("*.jsonl"))

# What the name of a line of 2025 and 2026 meant, before there were names of variants.
OLD_NAMES = {
    "": "stock",
    "_roi_align_bilinear_ratio1": "stock_ratio1",
    "_roi_align_bilinear_ratio2": "stock_ratio2",
    "_roi_align_bicubic_ratio0": "bicubic",
    "_roi_align_bicubic_ratio1": "bicubic_ratio1",
    "_roi_align_bicubic_ratio2": "bicubic_ratio2",
    "_roi_align_bicubic_a0.75_ratio0": "bicubic_a0.75",
    "_loss_sigmoid_focal": "sigmoid_focal",
    "_loss_sigmoid_focal_gamma1": "sigmoid_focal_gamma1",
    "_loss_sigmoid_focal_proposals": "sigmoid_focal_proposals",
    "_loss_sigmoid_focal_star": "sigmoid_focal_star",
    "_loss_softmax_focal": "softmax_focal",
    "_pyramid_pafpn": "pafpn",
    "_pyramid_bifpn": "bifpn",
    "_pyramid_bicubic": "upsample_bicubic",
    "_pyramid_carafe": "carafe",
    "_headline": "pafpn_bicubic_focal",
    "_headline_sigmoid_focal": "pafpn_bicubic_sigmoid_focal",
}
# The learning rates of RetinaNet come from shorter trainings than today's.
SHORTER = {
    "retinanet_nuclei": "SOLVER.MAX_ITER 400 SOLVER.STEPS (320,380) TEST.EVAL_PERIOD 100",
    "retinanet_shapes_long_tail": "SOLVER.MAX_ITER 600 SOLVER.STEPS (480,560) TEST.EVAL_PERIOD 200 "
    "MODEL.RETINANET.SCORE_THRESH_TEST 0.05",
}


def config_of_old_name(name):
    base, change = re.fullmatch(r"(nuclei|shapes_(?:small|scales|long_tail))(.*)", name).groups()
    if change.startswith("_retinanet_"):
        return f"retinanet_{base}/{change.removeprefix('_retinanet_')}"
    return f"{base}/{OLD_NAMES[change]}"


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_every_line_is_found_as_the_config_that_its_name_meant(file):
    configs = {lines.identity(lines.settings_of(cells.load(name))): name for name in cells.NAMES}
    assert len(configs) == len(cells.NAMES)
    for one in lines.read_lines(str(file)):
        name = one["name"].split()[0]
        config = name if name in cells.NAMES else config_of_old_name(name)
        shorter = SHORTER.get(config.split("/")[0], "").split() * file.stem.endswith("_lr")
        now = lines.settings_of(cells.load(config, [*shorter, *one["opts"]]))
        assert lines.differences(one["settings"], now) == ""
        if not one["opts"]:
            assert configs[lines.identity(one["settings"])] == config


BLOCKS = [
    pytest.param(page, match["command"], match["text"], id=f"{page.stem} {number}")
    for page in PAGES
    for number, match in enumerate(report.BLOCK.finditer(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("page, command, text", BLOCKS)
def test_a_page_has_what_its_commands_print(page, command, text, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command)
    if "--plots" in arguments:
        arguments[arguments.index("--plots") + 1] = str(tmp_path / "plot")
    assert printed_by(parse(arguments)) == text
    assert len(list(tmp_path.iterdir())) == (2 if "--plots" in arguments else 0)


def test_every_table_has_a_command_and_every_plot_that_there_is_is_shown():
    shown = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- end -->") == len(report.BLOCK.findall(text)) > 0
        without_blocks = report.BLOCK.sub("", text)
        assert "±" not in re.sub(r"mean(?: as mean)? ± (?:the )?standard", "", without_blocks)
        assert not re.search(r"^Runs: ", without_blocks, re.MULTILINE)
        prefixes = re.findall(r"--plots ablations/(\S+)", text)
        figures = set(re.findall(r"\((\S+\.png)\)", text))
        assert figures == {f"{p}_{kind}.png" for p in prefixes for kind in ("ap", "curves")}
        shown |= figures
    assert {f"plots/{path.name}" for path in (FOLDER / "plots").iterdir()} == shown


def test_a_page_is_written_anew_between_its_marks_only(tmp_path):
    page = tmp_path / "page.md"
    command = "    .venv/bin/python -m ablations table --config 'nuclei/*'"
    begin, end = "<!-- printed by this command -->", "<!-- end -->"
    page.write_text(f"Before.\n\n{command}\n\n{begin}\n\nold\n\nold\n\n{end}\n\nAfter.\n")
    report.write_page(page, lambda arguments: " ".join(arguments))
    new = "table --config nuclei/*"
    assert page.read_text() == (f"Before.\n\n{command}\n\n{begin}\n\n{new}\n\n{end}\n\nAfter.\n")
