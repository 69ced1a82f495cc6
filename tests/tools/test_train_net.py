"""Tests of tools/train_net.py, which is run as a user would run it."""

import contextlib
import errno
import fcntl
import io
import json
import logging
import math
import multiprocessing
import shutil
import subprocess
import sys
from types import SimpleNamespace

import detectron2.config
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser
from iopath.common.file_io import NativePathHandler, PathManager
from PIL import Image

from mrcnn_plugin import engine, get_cfg, load_cfg, output_dir
from mrcnn_plugin.data import generate_shapes
from mrcnn_plugin.engine import parse_args
from mrcnn_plugin.evaluation import build_coco_evaluator
from mrcnn_plugin.hooks import BestModel, best_metric
from tests.conftest import load_tool
from tests.environments import FORKS, file_limit
from tests.features import needs_fed_loss, needs_saved_optimizer


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


def test_the_tool_trains_writes_metrics_and_evaluates_what_it_saved(run, tmp_path):
    run(TEST__EVAL_PERIOD=1)
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any("loss_mask" in line and "loss_cls" in line for line in lines)
    assert any("bbox/AP" in line and "segm/AP" in line for line in lines)
    assert list(out.glob("events.out.tfevents.*"))
    assert (out / "model_0000000.pth").exists() and (out / "model_final.pth").exists()
    results = out / "inference" / "coco_instances_results.json"
    detections = json.loads(results.read_text())
    evaluated = run("--eval-only", MODEL__WEIGHTS=out / "model_final.pth")
    # After two iterations, the AP may be zero whatever was loaded, but scores and boxes are not.
    assert detections and json.loads(results.read_text()) == detections
    for task in ("bbox", "segm"):
        for metric, value in evaluated[task].items():
            trained = next(v for v in reversed(lines) if f"{task}/{metric}" in v)
            assert same(trained[f"{task}/{metric}"], value), metric


def test_resume_goes_on_where_the_run_ended(run, tmp_path):
    run(SOLVER__MAX_ITER=1)
    run("--resume", SOLVER__MAX_ITER=3)
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 2
    assert not (tmp_path / "out" / "model_0000003.pth").exists()


def test_mixed_precision_may_begin_with_a_resume(run, monkeypatch):
    settings = {"DATASETS__TEST": "()", "SOLVER__MAX_ITER": 1}
    run(**settings)
    # Without a GPU it is refused, although no iteration is left.
    with monkeypatch.context() as patch:
        patch.setattr(engine, "check", lambda cfg, args: None)
        run("--resume", SOLVER__AMP__ENABLED=True, **settings)


def test_evaluation_needs_weights(run, tmp_path):
    for arguments in (["--eval-only"], ["--eval-only", "--resume"]):
        with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
            run(*arguments)


def test_a_folder_with_another_run_is_not_mixed_up_without_a_word(run, tmp_path, log):
    no_test = {"DATASETS__TEST": "()"}
    run(SOLVER__MAX_ITER=1, **no_test)
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in out.glob("*.*")}
    with pytest.raises(ValueError, match="OUTPUT_DIR .*out' holds another training.*--resume"):
        run(SOLVER__MAX_ITER=1, **no_test)
    assert {path: path.read_bytes() for path in out.glob("*.*")} == before
    assert "of another training" not in log.text
    run("--resume", SOLVER__MAX_ITER=1, **no_test)
    assert "of another training" not in log.text and "had another config" not in log.text
    (out / "last_checkpoint").unlink()
    run(SOLVER__MAX_ITER=1, **no_test)
    assert "holds files of another training, but no last_checkpoint" in log.text


def test_a_key_that_nothing_reads_is_named(run, log):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1, MODEL__MRCNN_PLUGIN__BIFPN__NUM_REPEATS=5)
    assert "MODEL.MRCNN_PLUGIN.BIFPN.NUM_REPEATS is 5, but nothing reads it" in log.text


def test_a_resume_with_another_config_says_what_differs(run, tmp_path, log):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
    run(
        "--resume",
        DATASETS__TEST="()",
        SOLVER__MAX_ITER=2,
        SOLVER__BASE_LR=0.5,
        MODEL__RPN__NMS_THRESH=0.5,
    )
    (said,) = [r.getMessage() for r in log.records if "had another config" in r.getMessage()]
    assert "MODEL.RPN.NMS_THRESH was 0.7 and is 0.5" in said
    assert "SOLVER.BASE_LR was" in said and "MAX_ITER" not in said


def test_a_resume_with_other_files_of_the_same_name_says_so(run, tmp_path, log):
    settings = {"DATASETS__TEST": "()", "SOLVER__MAX_ITER": 1}
    run(**settings)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "data", moved)
    name = f"shapes_of_{tmp_path.name}"
    MetadataCatalog.remove(name)
    DatasetCatalog.remove(name)
    entries = [[name, str(moved / "instances.json"), str(moved / "images")]]
    other = ["shapes_other", *entries[0][1:]]
    run("--resume", DATASETS__COCO_JSON=[*entries, other], INPUT__FORMAT="RGB", **settings)
    (said,) = [r.getMessage() for r in log.records if "had another config" in r.getMessage()]
    was = [str(tmp_path / "data" / file) for file in ("instances.json", "images")]
    assert f"COCO_JSON of {name!r} was {was!r} and is {entries[0][1:]!r}" in said
    assert "INPUT.FORMAT was 'BGR' and is 'RGB'" in said


class TestWhatMakesAnotherTraining:
    """A folder with the files of a training stands for a run."""

    def changes(self, folder, default, old, new, file="config_of_training.yaml"):
        before, now = default(), get_cfg()
        for cfg, values in ((before, old), (now, new)):
            cfg.merge_from_list([item for pair in values.items() for item in pair])
        (folder / "last_checkpoint").write_text("model_final.pth")
        (folder / file).write_text(before.dump())
        now.OUTPUT_DIR = str(folder)
        return output_dir.changes_of_training(now)

    @pytest.mark.parametrize("file", ["config.yaml", "config_of_training.yaml"])
    def test_a_key_that_detectron2_itself_lacks_is_no_change(self, tmp_path, file):
        rates = {"SOLVER.BASE_LR": 0.1}, {"SOLVER.BASE_LR": 0.5}
        changes = self.changes(tmp_path, detectron2.config.get_cfg, *rates, file)
        assert changes == ["SOLVER.BASE_LR was 0.1 and is 0.5"]

    @pytest.mark.parametrize(
        "key, old, new",
        [
            ("MODEL.DEVICE", "cpu", "cuda"),
            ("MODEL.WEIGHTS", "a.pth", "b.pth"),
            ("SOLVER.MAX_ITER", 10, 20),
            ("SOLVER.STEPS", (5,), (10,)),
            ("SOLVER.CHECKPOINT_PERIOD", 5, 10),
            ("SOLVER.AMP.ENABLED", False, True),
            ("DATASETS.COCO_JSON", [["unused", "a.json", "a"]], [["unused", "b.json", "b"]]),
            ("DATASETS.COCO_JSON", [["used", "a.json", "a"]], [["used", "./a.json", "b/../a"]]),
        ],
    )
    def test_another_value_is_no_change(self, tmp_path, key, old, new):
        used = {"DATASETS.TRAIN": ("used",)}
        assert not self.changes(tmp_path, get_cfg, {**used, key: old}, {**used, key: new})

    @pytest.mark.parametrize(
        "key, old, new",
        [
            ("DATASETS.TRAIN", ("a",), ("a", "b")),
            ("INPUT.PIXEL_RANGE", [0, 4095], [0, 65535]),
        ],
    )
    def test_other_data_are_a_change(self, tmp_path, key, old, new):
        (change,) = self.changes(tmp_path, get_cfg, {key: old}, {key: new})
        assert change.startswith(f"{key} was ")

    def test_without_a_checkpoint_nothing_has_changed(self, tmp_path):
        rates = {"SOLVER.BASE_LR": 0.1}, {"SOLVER.BASE_LR": 0.5}
        assert self.changes(tmp_path, get_cfg, *rates)
        (tmp_path / "last_checkpoint").unlink()
        cfg = get_cfg()
        cfg.OUTPUT_DIR = str(tmp_path)
        assert not output_dir.changes_of_training(cfg)

    @pytest.mark.parametrize("used_as", ["DATASETS.TRAIN", "DATASETS.TEST"])
    @pytest.mark.parametrize("root", ["/", "remote://folder/"])
    def test_other_files_of_a_data_set_are_a_change(self, tmp_path, used_as, root):
        old, new = (
            {used_as: ("mine",), "DATASETS.COCO_JSON": [["mine", f"{root}{file}.json", "/a"]]}
            for file in "ab"
        )
        (change,) = self.changes(tmp_path, get_cfg, old, new)
        assert f"of 'mine' was ['{root}a.json', '/a'] and is ['{root}b.json', '/a']" in change


def test_a_refused_resume_leaves_the_config_of_the_training(run, tmp_path, log):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=2)
    file = tmp_path / "out" / "config_of_training.yaml"
    before = file.read_text()
    with pytest.raises(ValueError, match="MAX_ITER is 1, but"):
        run("--resume", DATASETS__TEST="()", SOLVER__MAX_ITER=1, SOLVER__BASE_LR=0.5)
    assert file.read_text() == before
    run("--resume", DATASETS__TEST="()", SOLVER__MAX_ITER=3, SOLVER__BASE_LR=0.5)
    assert log.text.count("SOLVER.BASE_LR was 0.02 and is 0.5") == 2
    assert "BASE_LR: 0.5" in file.read_text()


def test_a_resume_with_another_number_of_processes_says_what_is_scaled(run, monkeypatch, log):
    settings = {"DATASETS__TEST": "()", "SOLVER__REFERENCE_WORLD_SIZE": 1}
    run(SOLVER__MAX_ITER=2, **settings)
    # The scaling is what matters here, and not the second process.
    scale = DefaultTrainer.auto_scale_workers
    monkeypatch.setattr(
        DefaultTrainer, "auto_scale_workers", staticmethod(lambda cfg, size: scale(cfg, 2))
    )
    with pytest.raises(ValueError, match=r"is 1 \(2 scaled from SOLVER.REFERENCE_WORLD_SIZE to"):
        run("--resume", SOLVER__MAX_ITER=2, **settings)
    assert "SOLVER.BASE_LR was 0.02 and is 0.04" in log.text


def test_two_trainings_do_not_share_a_folder(run, tmp_path, train_net, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    # What the other training is just writing.
    (out / "metrics.json").write_text('{"iteration": 1, "to')
    # The lock is that of a process.
    holds = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", holds, str(out / ".training.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="Another process trains in OUTPUT_DIR .*out'; wait"):
            run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
        assert not list(out.glob("*.pth")) and not (out / "config_of_training.yaml").exists()
        assert (out / "metrics.json").read_text() == '{"iteration": 1, "to'
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
    assert (out / "model_final.pth").exists()


@pytest.mark.parametrize("folder", ["~/run", "$NOT_SET/run", "${HOME}", "runs/$USER"])
def test_a_folder_is_not_named_by_what_detectron2_does_not_expand(run, folder):
    with pytest.raises(ValueError, match="OUTPUT_DIR is .*~ and .VARIABLES have no meaning"):
        run(OUTPUT_DIR=folder)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The folder remote://, which is this one."""

    class Handler(NativePathHandler):
        def _get_supported_prefixes(self):
            return ["remote://"]

        def _exists(self, path):
            return (tmp_path / path.removeprefix("remote://")).exists()

        def _open(self, path, mode="r", *arguments, **options):
            return (tmp_path / path.removeprefix("remote://")).open(mode, **options)

    manager = PathManager()
    manager.register_handler(Handler())
    monkeypatch.setattr(output_dir, "PathManager", manager)
    return tmp_path


def test_a_remote_training_may_have_been_another_one(remote):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = "remote://"
    (remote / "config_of_training.yaml").write_text("SOLVER: {BASE_LR: 0.5}")
    assert output_dir.changes_of_training(cfg) == []
    (remote / "last_checkpoint").touch()
    assert output_dir.changes_of_training(cfg) == ["SOLVER.BASE_LR was 0.5 and is 0.001"]


def test_output_that_could_be_printed_stays_as_it_is(monkeypatch):
    for errors, printed in (("strict", rb"caf\udce9"), ("surrogateescape", b"caf\xe9")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "utf-8", errors))
        engine.escape_output()
        print("caf\udce9", end="", flush=True)
        assert raw.getvalue() == printed


class TestCheckOutputDir:
    def check(self, folder):
        cfg = get_cfg()
        cfg.OUTPUT_DIR = str(folder)
        output_dir.check_output_dir(cfg, starts_anew=True)

    @pytest.mark.parametrize("folder", ["~", "$NAME", "${NAME}"])
    def test_a_folder_that_is_there_may_have_such_a_name(self, tmp_path, monkeypatch, folder):
        monkeypatch.chdir(tmp_path)
        (tmp_path / folder).mkdir()
        self.check(folder)

    def test_a_remote_folder_is_not_made_here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.check("remote://folder")
        assert not list(tmp_path.iterdir())

    def test_a_remote_folder_may_hold_another_training(self, remote):
        self.check("remote://")
        (remote / "last_checkpoint").touch()
        with pytest.raises(ValueError, match="OUTPUT_DIR 'remote://' holds another training"):
            self.check("remote://")

    def test_a_tilde_may_stand_where_no_shell_expands_it(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.check("runs~/~old")
        assert (tmp_path / "runs~" / "~old").is_dir()

    def test_a_folder_that_is_there_may_take_no_files(self):
        with pytest.raises(OSError, match="'/proc/self' cannot be written to: .*mend this one"):
            self.check("/proc/self")

    def test_a_disk_may_be_full(self, tmp_path):
        with file_limit() as set_limit, pytest.raises(OSError, match="cannot be written to"):
            set_limit(0)
            self.check(tmp_path)


class TestLockOutputDir:
    @pytest.mark.skipif(not FORKS, reason="another start takes too long")
    def test_it_keeps_other_processes_out_until_its_end(self, tmp_path):
        def is_free():
            process = multiprocessing.get_context("fork").Process(target=try_lock)
            process.start()
            process.join()
            return process.exitcode == 0

        def try_lock():
            with contextlib.ExitStack() as stack:
                output_dir.lock_output_dir(str(tmp_path), stack)

        with contextlib.ExitStack() as stack:
            output_dir.lock_output_dir(str(tmp_path), stack)
            assert not is_free()
        assert is_free()

    def test_a_remote_folder_has_no_lock_here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "remote:" / "folder"  # the local path of that text
        folder.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            output_dir.lock_output_dir("remote://folder", stack)
        assert not list(folder.iterdir())

    def test_a_file_system_may_have_no_locks(self, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "lockf", fail)
        with contextlib.ExitStack() as stack:
            output_dir.lock_output_dir(str(tmp_path), stack)


@needs_saved_optimizer
def test_a_resume_with_other_parameters_to_train_says_why_not(run):
    settings = {"DATASETS__TEST": "()", "MODEL__BACKBONE__FREEZE_AT": 0}
    run(SOLVER__MAX_ITER=1, **settings)
    settings["MODEL__BACKBONE__FREEZE_AT"] = 3
    with pytest.raises(ValueError, match="optimizer of the checkpoint .*FREEZE_AT must stay"):
        run("--resume", SOLVER__MAX_ITER=2, **settings)


def test_a_training_that_diverges_names_the_learning_rate(run, train_net, monkeypatch):
    def diverge(self):
        raise FloatingPointError("Training has diverged.")

    monkeypatch.setattr(train_net.Trainer, "run_step", diverge)
    with pytest.raises(FloatingPointError, match="diverged. .* iteration 0, with SOLVER.BASE_LR 0"):
        run(DATASETS__TEST="()")


def test_a_model_that_detects_nothing_has_an_ap_of_zero(run, tmp_path):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
    weights = tmp_path / "out" / "model_final.pth"
    nothing = {"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 1.0}
    results = run("--eval-only", MODEL__WEIGHTS=weights, **nothing)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == results[task]["AP50"] == results[task]["AP-disc"] == 0.0
        assert np.isnan(results[task]["APl"])  # No shape has 96 x 96 px.


def test_an_evaluation_neither_says_nor_hides_that_the_config_differs(run, log):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
    run("--eval-only", "--resume", SOLVER__BASE_LR=0.5)
    assert "had another config" not in log.text
    run("--resume", DATASETS__TEST="()", SOLVER__MAX_ITER=2, SOLVER__BASE_LR=0.5)
    assert "SOLVER.BASE_LR was 0.02 and is 0.5" in log.text


def test_a_folder_that_cannot_be_written_is_noticed_before_the_training(
    run, tmp_path, train_net, monkeypatch
):
    monkeypatch.setattr(train_net.Trainer, "build_model", None)
    (tmp_path / "out").write_text("a file in the place of the folder")
    with pytest.raises(OSError, match=r"OUTPUT_DIR .*out' cannot be written to.*Choose another"):
        run()
    with pytest.raises(OSError, match="cannot be written to"):
        run("--eval-only", OUTPUT_DIR="/proc/output", MODEL__WEIGHTS=tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"MODEL__DEVICE": "cuda"}, ValueError, "MODEL.DEVICE is 'cuda'.*MODEL.DEVICE cpu"),
        ({"MODEL__ROI_HEADS__NUM_CLASSES": 80}, ValueError, "NUM_CLASSES is 80.*set it to 4"),
        ({"DATASETS__TEST": "('shapes_vall',)"}, ValueError, "DATASETS.TEST.*'shapes_vall'"),
        (
            {"TEST__AUG__ENABLED": True, "MODEL__META_ARCHITECTURE": "PanopticFPN"},
            ValueError,
            "TEST.AUG.ENABLED is True.*META_ARCHITECTURE 'PanopticFPN'",
        ),
        (
            {"TEST__AUG__ENABLED": True, "MODEL__KEYPOINT_ON": True},
            ValueError,
            "TEST.AUG.ENABLED is True.*KEYPOINT_ON True",
        ),
        (
            {"TEST__AUG__ENABLED": True, "MODEL__LOAD_PROPOSALS": True},
            ValueError,
            "TEST.AUG.ENABLED is True.*LOAD_PROPOSALS True",
        ),
        ({"MODEL__WEIGHTS": "nowhere.pth"}, (AssertionError, FileNotFoundError), "nowhere.pth"),
    ],
)
def test_bad_input_is_named_before_any_training(run, tmp_path, changes, error, message):
    if changes.get("MODEL__DEVICE") == "cuda" and torch.cuda.is_available():
        pytest.skip("a machine with a GPU trains on it")
    with pytest.raises(error, match=message):
        run(**changes)
    metrics = tmp_path / "out" / "metrics.json"
    assert not metrics.exists() or not metrics.read_text()


def test_weights_that_do_not_fit_are_not_evaluated(run, tmp_path):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
    weights = tmp_path / "out" / "model_final.pth"
    larger = {"MODEL__WEIGHTS": weights, "MODEL__ROI_BOX_HEAD__FC_DIM": 48}
    with pytest.raises(
        ValueError, match=r"MODEL.WEIGHTS must be trained.*PARTIAL_WEIGHTS"
    ) as error:
        run("--eval-only", **larger)
    assert "box_head.fc1.weight has the shape [32, " in str(error.value)
    assert "missing" not in str(error.value)
    # A training may start from it.
    run(SOLVER__MAX_ITER=1, OUTPUT_DIR=tmp_path / "other", DATASETS__TEST="()", **larger)
    assert run("--eval-only", MODEL__MRCNN_PLUGIN__PARTIAL_WEIGHTS=True, **larger)


def test_a_resumed_training_needs_its_own_checkpoint(run, tmp_path):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
    with pytest.raises(ValueError, match="does not fit .*To resume a training"):
        run("--resume", SOLVER__MAX_ITER=2, MODEL__ROI_BOX_HEAD__FC_DIM=48)
    weights = tmp_path / "out" / "model_final.pth"
    weights.write_bytes(weights.read_bytes()[:50000])
    with pytest.raises(ValueError, match="model_final.pth cannot be read"):
        run("--resume", SOLVER__MAX_ITER=2)
    with pytest.raises(ValueError, match="model_final.pth cannot be read"):
        run("--eval-only", MODEL__WEIGHTS=weights)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="last_checkpoint names .*model_final.pth"):
        run("--resume", SOLVER__MAX_ITER=2)


def test_weights_of_another_model_are_no_start(run, tmp_path):
    torch.save({"model": {"some.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth has no parameter of the model.*some.weight"):
        run(MODEL__WEIGHTS=tmp_path / "other.pth")


def test_results_of_several_test_sets_are_kept_apart(run, tmp_path):
    entries = [
        [name, str(tmp_path / "data/instances.json"), str(tmp_path / "data/images")]
        for name in ("shapes_twice_a", "shapes_twice_b")
    ]
    run(
        DATASETS__COCO_JSON=entries,
        DATASETS__TRAIN="('shapes_twice_a',)",
        DATASETS__TEST="('shapes_twice_a', 'shapes_twice_b')",
        SOLVER__MAX_ITER=1,
    )
    for name, _, _ in entries:
        assert (tmp_path / "out/inference" / name / "coco_instances_results.json").exists()


def test_crops_of_images_without_objects_and_without_shapely(run, tmp_path):
    file = tmp_path / "data" / "instances.json"
    data = json.loads(file.read_text())
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 1]
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    file.write_text(json.dumps(data))
    run(
        INPUT__CROP__ENABLED=True,
        INPUT__MASK_FORMAT="polygon",
        DATALOADER__FILTER_EMPTY_ANNOTATIONS=False,
        SOLVER__IMS_PER_BATCH=1,
        SOLVER__MAX_ITER=6,
        DATASETS__TEST="()",
    )


def test_faulty_data_are_refused_before_the_model_is_built(run, tmp_path, train_net, monkeypatch):
    file = tmp_path / "data" / "instances.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["bbox"][2] *= -1
    file.write_text(json.dumps(data))
    monkeypatch.setattr(train_net.Trainer, "build_model", None)
    with pytest.raises(ValueError, match="negative width"):
        run()
    (tmp_path / "model.pth").touch()
    with pytest.raises(ValueError, match="negative width"):
        run("--eval-only", MODEL__WEIGHTS=tmp_path / "model.pth")


def test_an_evaluation_needs_no_images_of_the_training_set(run, tmp_path):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
    name = f"shapes_of_{tmp_path.name}"
    (tmp_path / "empty").mkdir()
    entries = [
        [name, str(tmp_path / "data/instances.json"), str(tmp_path / "data/images")],
        ["shapes_elsewhere", str(tmp_path / "data/instances.json"), str(tmp_path / "empty")],
    ]
    changes = {
        "DATASETS__COCO_JSON": entries,
        "DATASETS__TRAIN": "('shapes_elsewhere',)",
        "MODEL__WEIGHTS": tmp_path / "out" / "model_final.pth",
    }
    assert run("--eval-only", **changes)
    with pytest.raises(ValueError, match="image files do not exist"):
        run(**changes, OUTPUT_DIR=tmp_path / "other")


def test_an_evaluation_needs_no_training_set(run, tmp_path, log):
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1)
    files = [str(tmp_path / "data/instances.json"), str(tmp_path / "data/images")]
    entries = [["shapes_here", *files], *([name, "gone.json", "gone"] for name in ("a", "b"))]
    settings = {"DATASETS__COCO_JSON": entries, "DATASETS__TEST": "('shapes_here',)"}
    weights = tmp_path / "out" / "model_final.pth"
    assert run("--eval-only", DATASETS__TRAIN="('a',)", MODEL__WEIGHTS=weights, **settings)
    assert "The categories are not compared with those of the training: " in log.text
    assert "DATASETS.COCO_JSON[1] ('a')" in log.text and "COCO_JSON[2]" not in log.text
    with pytest.raises(FileNotFoundError, match="'a'"):
        run(DATASETS__TRAIN="('a',)", OUTPUT_DIR=tmp_path / "other", **settings)


@pytest.mark.parametrize("kind", ["lvis", "coco_panoptic_seg"])
def test_a_test_set_that_is_not_coco_is_refused(run, tmp_path, train_net, monkeypatch, kind):
    monkeypatch.setattr(train_net.Trainer, "build_model", None)
    name = f"{kind}_{tmp_path.name}"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).evaluator_type = kind
    with pytest.raises(
        ValueError, match=f"{name}.*evaluator_type is '{kind}'.*DETECTRON2_ENV_MODULE"
    ):
        run(DATASETS__TEST=f"('{name}',)")


FEDERATED = {
    "MODEL__ROI_BOX_HEAD__CLS_LOSS": "sigmoid_focal",
    "MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE": True,
    "MODEL__ROI_BOX_HEAD__USE_FED_LOSS": True,
    "MODEL__ROI_BOX_HEAD__FED_LOSS_NUM_CLASSES": 2,
}


@needs_fed_loss
def test_a_model_with_a_federated_loss_is_used_without_its_training_set(run, tmp_path):
    name, images = f"shapes_of_{tmp_path.name}", tmp_path / "data" / "images"
    run(DATASETS__TEST="()", SOLVER__MAX_ITER=1, **FEDERATED)
    entries = [[name, str(tmp_path / "data/instances.json"), str(images)], ["gone", "a", "b"]]
    weights = str(tmp_path / "out" / "model_final.pth")
    settings = {
        **FEDERATED,
        "MODEL__WEIGHTS": weights,
        "DATASETS__COCO_JSON": entries,
        "DATASETS__TRAIN": "('gone',)",
    }
    assert run("--eval-only", **settings)
    assert run("--eval-only", **{**settings, "DATASETS__TRAIN": "()"})
    config = (tmp_path / "out" / "config.yaml").read_text()
    (tmp_path / "gone.yaml").write_text(config)
    arguments = ["--config-file", str(tmp_path / "gone.yaml")]
    image = str(next(images.iterdir()))
    demo = ["--input", image, "--output", str(tmp_path / "drawn"), "--confidence-threshold", "0"]
    assert load_tool("demo").main([*arguments, *demo]) == 0
    export = ["--format", "torchscript", "--input", image, "--output", str(tmp_path / "model.ts")]
    load_tool("export_model").main([*arguments, *export])
    upgrade = ["--weights", weights, "--output", str(tmp_path / "start.pth")]
    load_tool("upgrade_checkpoint").main([*arguments, *upgrade])
    assert (tmp_path / "model.ts").exists() and (tmp_path / "start.pth").exists()


@needs_fed_loss
def test_images_of_the_classes_that_a_federated_loss_needs(run, tmp_path):
    file = tmp_path / "data" / "instances.json"
    data = json.loads(file.read_text())
    few = sorted({a["category_id"] for a in data["annotations"]})[:1]
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] in few]
    other = tmp_path / "data" / "few.json"
    other.write_text(json.dumps(data))
    entries = [
        [name, str(tmp_path / "data" / path), str(tmp_path / "data" / "images")]
        for name, path in (("shapes_all", "instances.json"), ("shapes_few", "few.json"))
    ]
    settings = {**FEDERATED, "DATASETS__COCO_JSON": entries, "DATASETS__TEST": "()"}
    with pytest.raises(ValueError, match="FED_LOSS_NUM_CLASSES is 2, but only 1 .*at most 1"):
        run(DATASETS__TRAIN="('shapes_few',)", **settings)
    with pytest.raises(ValueError, match="DATASETS.TRAIN is .*must be one data set"):
        run(DATASETS__TRAIN="('shapes_all', 'shapes_few')", **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DATASETS__TRAIN": "()"}, "DATASETS.TRAIN is empty"),
        (
            {
                "MODEL__ROI_HEADS__NAME": "MRCNNFocalCascadeROIHeads",
                "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": False,
            },
            "CLS_AGNOSTIC_BBOX_REG is False",
        ),
        (
            {"MODEL__ROI_HEADS__NAME": "StandardROIHeads"},
            "POOLER_TYPE is 'ROIAlignBicubic'.*MRCNNFocalROIHeads",
        ),
        pytest.param(
            {
                "MODEL__ROI_BOX_HEAD__CLS_LOSS": "sigmoid_focal",
                "MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE": True,
                "MODEL__ROI_BOX_HEAD__USE_FED_LOSS": True,
            },
            "FED_LOSS_NUM_CLASSES is 50.* 4",
            marks=needs_fed_loss,
        ),
        ({"DATASETS__CHECK": "slow"}, "DATASETS.CHECK is 'slow'"),
        ({"INPUT__PIXEL_RANGE": "[1]"}, "INPUT.PIXEL_RANGE is"),
    ],
)
def test_keys_that_do_not_go_together(run, changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.parametrize("word", [[], ["--opts"]])
def test_the_word_opts_may_stand_before_config_changes(word):
    argv = ["--resume", *word, "SOLVER.MAX_ITER", "3"]
    args = parse_args(default_argument_parser(), argv)
    assert args.resume and args.opts == ["SOLVER.MAX_ITER", "3"]


def test_options_may_follow_config_changes():
    argv = ["--config-file", "a.yaml", "SEED", "1", "--resume", "SEED", "2", "--num-gpus", "3"]
    args = parse_args(default_argument_parser(), [*argv, "VERSION", "--4"])
    assert args.config_file == "a.yaml" and args.resume and args.num_gpus == 3
    assert args.opts == ["SEED", "1", "SEED", "2", "VERSION", "--4"]
    with pytest.raises(SystemExit):
        parse_args(default_argument_parser(), ["SEED", "1", "--resum-e"])
    assert "--" in parse_args(default_argument_parser(), ["SEED", "1", "--"]).opts


def test_a_training_cannot_go_on_after_its_last_iteration(run):
    run(SOLVER__MAX_ITER=2, DATASETS__TEST="()")
    run("--resume", SOLVER__MAX_ITER=2, DATASETS__TEST="()")
    with pytest.raises(ValueError, match=r"SOLVER.MAX_ITER is 1, but .*model_final.pth has 2 iter"):
        run("--resume", SOLVER__MAX_ITER=1, DATASETS__TEST="()")


def test_entries_as_a_mapping(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("DATASETS:\n  COCO_JSON:\n    my_train: [a.json, images]\n    my_val: [b, c]\n")
    with pytest.raises(ValueError, match="COCO_JSON is a mapping .*'my_train'.* must be a list"):
        load_cfg(str(file))


@pytest.mark.parametrize(("limit", "counted"), [(50, 100), (100, 100), (300, 300), (-1, 10**6)])
def test_the_evaluation_counts_as_many_detections_as_the_config(
    register, tmp_path, log, limit, counted
):
    log.set_level(logging.INFO, "detectron2")
    register("counted", generate_shapes(str(tmp_path / "data"), 1, seed=5))
    cfg = get_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = limit
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.2]
    evaluator = build_coco_evaluator(cfg, "counted", "")
    assert evaluator._max_dets_per_image == [1, 10, counted]
    assert evaluator._kpt_oks_sigmas == [0.1, 0.2]
    said = "AP of counted counts up to {} detections in an image"
    assert (said.format("all" if limit < 0 else limit) in log.text) == (counted > 100)


def test_the_best_evaluation_is_kept_over_a_resume(run, tmp_path, train_net, monkeypatch, log):
    values = iter([10.0, 30.0, 20.0, 25.0, 40.0])

    def evaluate(cfg, model, evaluators=None):
        return {"bbox": {"AP": 50.0}, "segm": {"AP": next(values)}}

    monkeypatch.setattr(train_net.Trainer, "test", evaluate)
    out = tmp_path / "out"
    settings = {"TEST__EVAL_PERIOD": 1, "SOLVER__CHECKPOINT_PERIOD": 1}
    run(SOLVER__MAX_ITER=3, **settings)
    best = torch.load(out / "model_best.pth", weights_only=True)
    assert (best["metric"], best["value"], best["iteration"]) == ("segm/AP", 30.0, 1)
    saved = torch.load(out / "model_0000001.pth", weights_only=False)["model"]
    assert all(torch.equal(best["model"][key], value) for key, value in saved.items())
    assert "trainer" not in best
    assert f"after 2 iterations, with segm/AP 30.000. Its model is {out}/model_best.pth" in log.text
    # 25 is not the best.
    run("--resume", SOLVER__MAX_ITER=4, **settings)
    assert torch.load(out / "model_best.pth", weights_only=True)["iteration"] == 1
    run("--resume", SOLVER__MAX_ITER=5, **settings)
    best = torch.load(out / "model_best.pth", weights_only=True)
    assert (best["value"], best["iteration"]) == (40.0, 4)
    assert (out / "last_checkpoint").read_text() == "model_final.pth"


def test_the_best_on_another_test_set_is_not_the_best(run, tmp_path, train_net, monkeypatch, log):
    values = iter([60.0, 30.0])
    monkeypatch.setattr(
        train_net.Trainer,
        "test",
        lambda cfg, model, evaluators=None: {"bbox": {"AP": 1.0}, "segm": {"AP": next(values)}},
    )
    first = f"shapes_of_{tmp_path.name}"
    files = [str(tmp_path / "data/instances.json"), str(tmp_path / "data/images")]
    entries = [[name, *files] for name in (first, "shapes_other")]
    settings = {"DATASETS__COCO_JSON": entries, "TEST__EVAL_PERIOD": 1}
    run(SOLVER__MAX_ITER=1, **settings)
    run("--resume", SOLVER__MAX_ITER=2, DATASETS__TEST="('shapes_other',)", **settings)
    best = torch.load(tmp_path / "out" / "model_best.pth", weights_only=True)
    assert (best["value"], best["test_set"]) == (30.0, "shapes_other")
    assert f"is the best by segm/AP of {first}, and will be replaced by the best by" in log.text


def test_the_best_is_that_of_the_first_test_set(run, tmp_path):
    entries = [
        [name, str(tmp_path / "data/instances.json"), str(tmp_path / "data/images")]
        for name in ("shapes_best_a", "shapes_best_b")
    ]
    names = "('shapes_best_b', 'shapes_best_a')"
    run(
        DATASETS__COCO_JSON=entries,
        DATASETS__TRAIN="('shapes_best_a',)",
        DATASETS__TEST=names,
        MODEL__MASK_ON=False,
        SOLVER__MAX_ITER=1,
        TEST__EVAL_PERIOD=1,
    )
    best = torch.load(tmp_path / "out" / "model_best.pth", weights_only=True)
    assert best["metric"] == "shapes_best_b/bbox/AP"


class TestBestModel:
    """The hook with a file of an earlier training, without one."""

    def hook(self, folder, start_iter=3):
        cfg = get_cfg()
        cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(folder), ("a",)
        hook = BestModel(cfg, torch.nn.Linear(1, 1))
        hook.trainer = SimpleNamespace(start_iter=start_iter, iter=4, max_iter=9)
        hook.before_train()
        return hook

    def found(self, folder, start_iter=3, **changes):
        saved = {"model": {}, "metric": "bbox/AP", "value": 30.0, "iteration": 1, "test_set": "a"}
        torch.save({**saved, **changes}, folder / "model_best.pth")
        hook = self.hook(folder, start_iter)
        return hook.best_metric, hook.best_iter

    def test_a_resumed_training_remembers_the_best(self, tmp_path):
        assert self.found(tmp_path) == (30.0, 1)
        assert self.found(tmp_path, start_iter=0) == (None, None)

    @pytest.mark.parametrize(
        ("changes", "was"),
        [({"metric": "segm/AP"}, "segm/AP of a"), ({"test_set": "b"}, "bbox/AP of b")],
    )
    def test_another_best_is_replaced(self, tmp_path, log, changes, was):
        assert self.found(tmp_path, **changes) == (None, None)
        replaced = f"is the best by {was}, and will be replaced by the best by bbox/AP of a."
        assert replaced in log.text

    def test_a_file_that_is_none_is_replaced(self, tmp_path, log):
        torch.save([1], tmp_path / "list.pth")
        torch.save({"model": {}}, tmp_path / "plain.pth")
        contents = [(tmp_path / name).read_bytes() for name in ("list.pth", "plain.pth")]
        for content in (*contents, b"", b"a text"):
            (tmp_path / "model_best.pth").write_bytes(content)
            log.clear()
            assert self.hook(tmp_path).best_metric is None
            assert "model_best.pth cannot be read, and will be replaced: " in log.text

    def test_a_training_that_ends_without_an_evaluation_has_no_best(self, tmp_path, log):
        hook = self.hook(tmp_path)
        hook.after_train()
        assert hook.best_metric is None and not list(tmp_path.iterdir()) and not log.text

    @pytest.mark.parametrize(
        ("masks", "keypoints", "test_sets", "metric"),
        [
            (False, False, ("a",), "bbox/AP"),
            (True, True, ("a",), "segm/AP"),
            (False, True, ("a",), "keypoints/AP"),
            (False, True, ("b", "a"), "b/keypoints/AP"),
        ],
    )
    def test_the_metric_is_that_of_the_finest_task(self, masks, keypoints, test_sets, metric):
        cfg = get_cfg()
        cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = masks, keypoints
        cfg.DATASETS.TEST = test_sets
        assert best_metric(cfg) == metric


def test_no_best_model_without_periodic_evaluation(run, tmp_path):
    run(SOLVER__MAX_ITER=1, TEST__EVAL_PERIOD=0)
    assert not (tmp_path / "out" / "model_best.pth").exists()


@pytest.mark.parametrize(("sizes", "flip"), [("(128,)", False), ("(96, 128)", True)])
def test_augmentation_at_test_time(run, tmp_path, sizes, flip):
    """An augmentation that changes nothing gives the plain detections; 16 bits are scaled as ever."""
    images = tmp_path / "data" / "images"
    for file in images.iterdir():
        pixels = np.asarray(Image.open(file).convert("L"))
        Image.fromarray(pixels.astype(np.uint16) * 16).save(file)
    settings = {
        "TEST__AUG__ENABLED": True,
        "TEST__AUG__MIN_SIZES": sizes,
        "TEST__AUG__MAX_SIZE": 128,
        "TEST__AUG__FLIP": flip,
        "INPUT__PIXEL_RANGE": "[0, 4080]",
        "INPUT__MIN_SIZE_TEST": 128,
    }

    def results(folder):
        return json.loads((tmp_path / "out" / folder / "coco_instances_results.json").read_text())

    run(SOLVER__MAX_ITER=1, **settings)
    trained = results("inference_TTA")
    assert trained and (trained == results("inference")) == (not flip)
    lines = (tmp_path / "out" / "metrics.json").read_text()
    assert "bbox_TTA/AP" in lines and "segm_TTA/AP" in lines
    evaluated = run("--eval-only", MODEL__WEIGHTS=tmp_path / "out" / "model_final.pth", **settings)
    assert {"bbox", "segm", "bbox_TTA", "segm_TTA"} == evaluated.keys()
    assert results("inference_TTA") == trained
