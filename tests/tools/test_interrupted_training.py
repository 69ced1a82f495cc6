"""Tests of trainings that a signal, a kill or a full disk ends."""

import json
import multiprocessing
import os
import signal
import subprocess
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import detectron2.engine
import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer, default_argument_parser
from detectron2.engine.launch import _find_free_port
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from iopath.common.file_io import NativePathHandler, PathManager
from torch.multiprocessing.spawn import ProcessExitedException

from mrcnn_plugin import engine, hooks, output_dir
from mrcnn_plugin.checkpoint import FittingCheckpointer
from mrcnn_plugin.evaluation import WholeResults
from tests import kill_training
from tests.environments import FORKS, START_METHOD, file_limit
from tests.features import needs_launch_without_gpus
from tests.small import ALL_SAMPLES

needs_fork = pytest.mark.skipif(not FORKS, reason="another start takes too long")
NO_TEST = {"DATASETS__TEST": "()"}


def checkpoint(folder, name=None):
    """Loads a checkpoint, by default the one that `last_checkpoint` names."""
    return torch.load(
        folder / (name or (folder / "last_checkpoint").read_text()), weights_only=False
    )


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def at_iteration(monkeypatch, trainer, iteration, action):
    """Calls a function in an iteration, before it changes the model."""
    run_step = trainer.run_step

    def step(self):
        if self.iter == iteration:
            action()
        run_step(self)

    monkeypatch.setattr(trainer, "run_step", step)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_checkpoint_of_the_last_iteration(
    run, tmp_path, train_net, monkeypatch, log, number
):
    same = {**NO_TEST, "SEED": 1, "SOLVER__MAX_ITER": 3}
    run(**same, OUTPUT_DIR=tmp_path / "whole")
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_iteration(patch, train_net.Trainer, 1, lambda: send(number))
        with pytest.raises(SystemExit) as ended:
            run(**same, SOLVER__CHECKPOINT_PERIOD=100)
    out = tmp_path / "out"
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is handler
    assert sorted(path.name for path in out.glob("*.pth*")) == ["model_0000001.pth"]
    assert not list(out.glob("*.partial"))
    assert_same(checkpoint(out), checkpoint(tmp_path / "whole", "model_0000001.pth"))
    (said,) = [r.getMessage() for r in log.records if "ended the training" in r.getMessage()]
    assert str(out / "model_0000001.pth") in said and "--resume" in said and "2 of 3" in said


def test_a_signal_ends_an_evaluation(run, tmp_path, train_net, monkeypatch):
    monkeypatch.setattr(COCOEvaluator, "process", lambda *_: send(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run(SOLVER__MAX_ITER=4, SOLVER__CHECKPOINT_PERIOD=100, TEST__EVAL_PERIOD=2)
    out = tmp_path / "out"
    assert ended.value.code == 128 + signal.SIGTERM
    assert [path.name for path in out.glob("*.pth")] == ["model_0000001.pth"]
    assert checkpoint(out)["iteration"] == checkpoint(out)["trainer"]["iteration"] == 1
    # Metrics are written every 20 iterations, and at the end.
    (row,) = (out / "metrics.json").read_text().splitlines()
    assert json.loads(row)["iteration"] == 1


def test_a_signal_in_the_last_iteration_leaves_the_final_model(
    run, tmp_path, train_net, monkeypatch
):
    monkeypatch.setattr(COCOEvaluator, "process", None)
    at_iteration(monkeypatch, train_net.Trainer, 1, lambda: send(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 128 + signal.SIGINT
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"
    assert checkpoint(tmp_path / "out")["iteration"] == 1


def test_a_signal_does_not_save_an_iteration_that_failed(run, tmp_path, train_net, monkeypatch):
    def fail(*_):
        send(signal.SIGTERM)
        raise RuntimeError("It failed.")

    settings = {**NO_TEST, "SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 100}
    with monkeypatch.context() as patch:
        at_iteration(patch, train_net.Trainer, 2, fail)
        with pytest.raises(RuntimeError, match="It failed."):
            run(**settings)
    assert not list((tmp_path / "out").glob("*.pth"))
    # Without a batch the model is that of the iteration before. This is so if the signal ends a worker too.
    iterator = torch.utils.data.dataloader._SingleProcessDataLoaderIter
    at_iteration(
        monkeypatch, train_net.Trainer, 2, lambda: monkeypatch.setattr(iterator, "_next_data", fail)
    )
    with pytest.raises(SystemExit) as ended:
        run(**settings)
    assert ended.value.code == 128 + signal.SIGTERM
    saved = checkpoint(tmp_path / "out")
    assert saved["iteration"] == saved["trainer"]["iteration"] == 1


def in_process(function, *args):
    process = multiprocessing.get_context(START_METHOD).Process(target=function, args=args)
    process.start()
    return process


def exit_code(process):
    process.join(60)
    process.kill()  # It may hang.
    process.join()
    return process.exitcode


@needs_fork
@pytest.mark.parametrize("has_batch", [True, False])
def test_a_signal_to_all_processes_of_the_group_leaves_a_checkpoint(
    run, tmp_path, train_net, monkeypatch, has_batch
):
    """So do `timeout`, a terminal and SLURM. It ends the workers of the data loader too."""
    write = SimpleTrainer._write_metrics

    def send_to_group():
        # Workers take a signal of their own parent for an order.
        command = ["kill", "-TERM", "--", f"-{os.getpgrp()}"]
        for _ in range(2):
            subprocess.run(command, start_new_session=True)
        time.sleep(0.3)

    def write_metrics(self, *args, **kwargs):
        if self.iter == 2:
            send_to_group()
        write(self, *args, **kwargs)

    def train():
        os.setpgrp()
        torch.set_num_threads(1)
        if has_batch:
            monkeypatch.setattr(SimpleTrainer, "_write_metrics", write_metrics)
        else:
            at_iteration(monkeypatch, train_net.Trainer, 2, send_to_group)
        run(
            **NO_TEST,
            SOLVER__MAX_ITER=50,
            SOLVER__CHECKPOINT_PERIOD=100,
            DATALOADER__NUM_WORKERS=1,
        )

    assert exit_code(in_process(train)) == 128 + signal.SIGTERM
    assert checkpoint(tmp_path / "out")["iteration"] in ((2,) if has_batch else (1, 2))


class Waits(HookBase):
    """Stands for a trainer in an iteration that takes long."""

    def __init__(self, pause):
        self.pause = pause

    def run(self):
        hook = hooks.SaveOnSignal(None)
        hook.trainer = SimpleNamespace(iter=0, max_iter=2)
        hook.before_train()
        hook.before_step()
        send(signal.SIGTERM)
        time.sleep(self.pause)
        send(signal.SIGTERM)
        time.sleep(0.1)
        os._exit(3)


@needs_fork
def test_a_second_signal_ends_at_once():
    assert hooks._SAME_SIGNAL >= 0.5
    for pause, code in ((0, 3), (hooks._SAME_SIGNAL + 0.1, -signal.SIGTERM)):
        assert exit_code(in_process(Waits(pause).run)) == code


class TestTheHook:
    """It gets signals and is called as by a trainer, without one."""

    @pytest.fixture
    def hook(self, tmp_path):
        """Of a training of three iterations, whose checkpoints are in `tmp_path`."""
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
        hook = hooks.SaveOnSignal(FittingCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)))
        hook.trainer = SimpleNamespace(iter=0, max_iter=3)
        hook.before_train()
        yield hook
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def step(self, hook, iteration):
        hook.trainer.iter = iteration
        hook.before_step()
        hook.after_step()

    def ends(self, function, *args):
        with pytest.raises(SystemExit) as ended:
            function(*args)
        return ended.value.code == 128 + signal.SIGTERM

    def saved(self, folder):
        return sorted(path.name for path in folder.glob("*.pth"))

    def test_a_signal_is_answered_once(self, hook, monkeypatch, capfd):
        # On a busy machine the second one may come late, which would end the tests.
        monkeypatch.setattr(hooks, "_SAME_SIGNAL", float("inf"))
        hook.before_step()
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        said = "SIGTERM: the training ends with a checkpoint. A second signal ends it at once.\n"
        assert capfd.readouterr() == ("", said)

    def test_a_signal_before_the_first_iteration_waits_for_its_end(self, hook, tmp_path):
        send(signal.SIGTERM)
        assert self.ends(self.step, hook, 0)
        assert self.saved(tmp_path) == ["model_0000000.pth"]

    def test_a_training_without_an_iteration_has_nothing_to_save(self, hook, tmp_path, log):
        send(signal.SIGTERM)
        try:
            raise RuntimeError("Another hook failed.")
        except RuntimeError:
            assert self.ends(hook.after_train)
        assert self.saved(tmp_path) == []
        assert "SIGTERM ended the training before its first iteration was finished." in log.text

    def test_the_final_model_of_before_a_resume_is_not_the_last(self, hook, tmp_path):
        hook._checkpointer.save("model_final", iteration=0)
        send(signal.SIGTERM)
        assert self.ends(self.step, hook, 1)
        assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"

    @pytest.mark.parametrize("is_main", [True, False])
    def test_other_processes_wait_for_the_end_of_an_iteration(
        self, hook, tmp_path, monkeypatch, is_main
    ):
        """They do not save."""
        monkeypatch.setattr(comm, "is_main_process", lambda: is_main)
        self.step(hook, 0)
        if is_main:
            assert self.ends(send, signal.SIGTERM)
            return
        send(signal.SIGTERM)
        assert self.ends(self.step, hook, 1)
        assert self.saved(tmp_path) == []

    @pytest.mark.parametrize("is_main", [True, False])
    def test_a_signal_while_processes_agree(self, hook, monkeypatch, is_main):
        def gather(data):
            send(signal.SIGTERM)
            return [data, 0]

        monkeypatch.setattr(comm, "is_main_process", lambda: is_main)
        monkeypatch.setattr(comm, "all_gather", gather)
        if is_main:
            assert self.ends(self.step, hook, 0)
        else:
            self.step(hook, 0)

    def test_a_signal_of_another_process_in_the_last_iteration(self, hook, tmp_path, monkeypatch):
        monkeypatch.setattr(comm, "all_gather", lambda data: [data, int(signal.SIGTERM)])
        self.step(hook, 2)
        assert self.ends(hook.after_train)
        assert self.saved(tmp_path) == ["model_0000002.pth"]

    def test_a_process_that_fails_asks_no_other(self, hook, monkeypatch):
        monkeypatch.setattr(comm, "all_gather", lambda data: pytest.fail("It would wait for ever."))
        try:
            raise RuntimeError("It failed.")
        except RuntimeError:
            hook.after_train()

    def test_another_thread_gets_no_signals(self, hook):
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with ThreadPoolExecutor() as executor:
            executor.submit(hooks.SaveOnSignal(None).before_train).result()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    @needs_fork
    def test_a_worker_of_a_data_loader_goes_on(self, hook, capfd):
        self.step(hook, 0)

        def work():
            send(signal.SIGTERM)
            os._exit(3)

        assert exit_code(in_process(work)) == 3
        assert capfd.readouterr().err == ""


def test_signals_that_are_ignored_stay_so(run, train_net, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        at_iteration(monkeypatch, train_net.Trainer, 0, lambda: send(signal.SIGINT))
        run(**NO_TEST, SOLVER__MAX_ITER=1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# Checkpoints and results that cannot be written.


def test_a_checkpoint_is_whole_or_not_there(tmp_path):
    model = torch.nn.Linear(300, 300)
    checkpointer = FittingCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    model.weight.data.zero_()
    for name in ("model_0000002", "model_0000001"):
        error = rf"{tmp_path}/{name}.pth cannot be written: .*resume"
        with file_limit() as set_limit, pytest.raises(OSError, match=error):
            set_limit(100_000)
            checkpointer.save(name, iteration=2)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert checkpoint(tmp_path)["iteration"] == 1 and checkpoint(tmp_path)["model"]["weight"].any()


def test_a_checkpoint_in_a_remote_folder_is_tagged_only_if_asked(tmp_path):
    class Remote(NativePathHandler):
        def _get_supported_prefixes(self):
            return ["remote://"]

        def _open(self, path, mode="r", **kwargs):
            return open(tmp_path / path.removeprefix("remote://"), mode)

    for tags_last in (False, True):
        checkpointer = FittingCheckpointer(
            torch.nn.Linear(1, 1), "remote://", save_to_disk=True, tags_last=tags_last
        )
        checkpointer.path_manager = PathManager()
        checkpointer.path_manager.register_handler(Remote())
        checkpointer.save("model")
        assert (tmp_path / "model.pth").exists()
        assert (tmp_path / "last_checkpoint").exists() == tags_last


def test_a_full_disk_ends_the_training_and_keeps_the_last_checkpoint(
    run, tmp_path, train_net, monkeypatch
):
    out = tmp_path / "out"
    error = "model_0000001.pth cannot be written"
    with file_limit() as set_limit, pytest.raises(OSError, match=error):
        size = out / "model_0000000.pth"
        at_iteration(monkeypatch, train_net.Trainer, 1, lambda: set_limit(size.stat().st_size // 2))
        run(**NO_TEST)
    assert (out / "last_checkpoint").read_text() == "model_0000000.pth"
    assert checkpoint(out)["iteration"] == 0
    assert output_dir.read_metrics(str(out / "metrics.json"))


def test_a_full_disk_names_the_folder(run, tmp_path, train_net, monkeypatch):
    def fail():
        raise OSError(28, "No space left on device")

    at_iteration(monkeypatch, train_net.Trainer, 1, fail)
    with pytest.raises(
        OSError, match=f"checkpoint is {tmp_path}/out/model_0000000.pth.*{tmp_path}/out'"
    ):
        run(**NO_TEST)


def test_results_are_whole_or_those_of_before(tmp_path, monkeypatch):
    evaluator = WholeResults.__new__(WholeResults)
    evaluator._output_dir = str(tmp_path)

    def evaluate(self, img_ids):
        os.makedirs(self._output_dir, exist_ok=True)
        with open(os.path.join(self._output_dir, "results.json"), "w") as f:
            f.write(text[:3])
            f.flush()
            if fails:
                raise OSError(28, "No space left on device")
            f.write(text[3:])
        return {"bbox": {}}

    monkeypatch.setattr(COCOEvaluator, "evaluate", evaluate)
    text, fails = "[1, 2]", False
    assert evaluator.evaluate() == {"bbox": {}}
    assert os.listdir(tmp_path) == ["results.json"]
    text, fails = "[3, 4]", True
    with pytest.raises(OSError):
        evaluator.evaluate()
    assert json.loads((tmp_path / "results.json").read_text()) == [1, 2]
    assert evaluator._output_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("folder", "is_main", "partial", "left"),
    [
        ("{}", True, True, ["results.json"]),
        # No image was evaluated.
        ("{}", True, False, []),
        # Another process may still write there.
        ("{}", False, True, ["partial"]),
        ("remote://{}", True, False, []),
        (None, True, False, []),
    ],
)
def test_results_are_moved_by_the_main_process(
    tmp_path, monkeypatch, folder, is_main, partial, left
):
    evaluator = WholeResults.__new__(WholeResults)
    evaluator._output_dir = folder = folder and folder.format(tmp_path)

    def evaluate(self, img_ids):
        assert img_ids == [7]
        if partial:
            os.makedirs(self._output_dir)
            open(os.path.join(self._output_dir, "results.json"), "w").close()
        else:
            assert self._output_dir in (folder, f"{tmp_path}/partial")
        return {}

    monkeypatch.setattr(COCOEvaluator, "evaluate", evaluate)
    monkeypatch.setattr(comm, "is_main_process", lambda: is_main)
    assert evaluator.evaluate([7]) == {}
    assert os.listdir(tmp_path) == left


# metrics.json


def test_a_torn_last_line_is_left_out(tmp_path, log):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 1, "total_loss": 2.0}\n{"iteration": 3, "total_l')
    assert output_dir.read_metrics(str(file)) == {1: {"total_loss": 2.0}}
    assert f"{file} ends in a torn line" in log.text


def test_an_evaluation_that_is_written_late_drops_nothing(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 19, "total_loss": 2.0}\n{"iteration": 9, "bbox/AP": 5.0}\n')
    assert output_dir.read_metrics(str(file)) == {19: {"total_loss": 2.0}, 9: {"bbox/AP": 5.0}}


def test_only_a_torn_line_is_cut(tmp_path, log):
    file = tmp_path / "metrics.json"
    whole = '{"iteration": 0, "total_loss": 2.0}\n'
    for content in (whole, ""):
        file.write_text(content)
        output_dir.cut_torn_line(str(file))
        assert file.read_text() == content and "torn" not in log.text
    file.write_text(whole + "{")
    output_dir.cut_torn_line(str(file))
    assert file.read_text() == whole and f"{file} ended in a torn line" in log.text


def test_a_torn_line_is_cut_before_the_next_one(run, tmp_path):
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "metrics.json"
    whole = '{"iteration": 0, "total_loss": 2.0}\n'
    file.write_text(whole + '{"iteration": 1, "to')
    run("--resume", **NO_TEST)
    assert file.read_text().startswith(whole + "{")
    assert 1 in output_dir.read_metrics(str(file))


# Several processes


def one_of_two(rank, port, run):
    """Trains as a process of torchrun does: one of two machines, with one process each."""
    torch.set_num_threads(1)
    os.environ.update(
        {
            "TORCHELASTIC_RUN_ID": "test",
            "RANK": f"{rank}",
            "LOCAL_RANK": "0",
            "GROUP_RANK": f"{rank}",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": f"{port}",
        }
    )
    arguments = Namespace(num_gpus=1, num_machines=1)
    engine.launch(lambda _: run(**SAME_LOSSES, SOLVER__CHECKPOINT_PERIOD=100), arguments)


# All samples are used, so that losses depend on no random choice. Each image gives as many proposals.
SAME_LOSSES = {
    **NO_TEST,
    **{key.replace(".", "__"): value for key, value in ALL_SAMPLES.items()},
    "MODEL__ROI_HEADS__PROPOSAL_APPEND_GT": False,
    "MODEL__MASK_ON": False,
    "INPUT__RANDOM_FLIP": "none",
    "INPUT__MIN_SIZE_TRAIN": "(64,)",
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__MAX_ITER": 3,
    "SOLVER__WARMUP_ITERS": 0,
    "SEED": 1,
}


@needs_launch_without_gpus
@needs_fork
def test_two_machines_train_like_one_with_the_double_batch_until_one_gets_a_signal(
    run, tmp_path, train_net, monkeypatch
):
    with monkeypatch.context() as patch:
        at_iteration(
            patch, train_net.Trainer, 1, lambda: comm.get_rank() == 1 and send(signal.SIGTERM)
        )
        port = _find_free_port()
        processes = [in_process(one_of_two, rank, port, run) for rank in range(2)]
        codes = [exit_code(process) for process in processes]
    assert codes == [128 + signal.SIGTERM] * 2
    run(**SAME_LOSSES, OUTPUT_DIR=tmp_path / "one")
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000001.pth"
    first, one, two = (
        checkpoint(tmp_path / folder, name)["model"]
        for folder, name in (
            ("one", "model_0000000.pth"),
            ("one", "model_0000001.pth"),
            ("out", "model_0000001.pth"),
        )
    )

    def distance(a, b):
        return sum((a[name].float() - b[name].float()).norm().item() for name in one)

    assert distance(two, one) < 1e-3 * distance(first, one)


def test_torchrun_and_num_gpus_do_not_go_together(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    with pytest.raises(ValueError, match="--num-gpus 2 .* must be left out"):
        engine.launch(None, Namespace(num_gpus=2, num_machines=1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_signal_that_ended_a_process_is_the_exit_code(monkeypatch, number):
    def launch(*_, **__):
        raise ProcessExitedException("It ended.", 0, 1, exit_code=code)

    monkeypatch.setattr(detectron2.engine, "launch", launch)
    args = default_argument_parser().parse_args([])
    code = 128 + number
    with pytest.raises(SystemExit) as ended:
        engine.launch(None, args)
    assert ended.value.code == code
    code = 1
    with pytest.raises(ProcessExitedException):
        engine.launch(None, args)


def test_machines_with_folders_of_their_own_do_not_resume(run, monkeypatch):
    monkeypatch.setattr(comm, "all_gather", lambda data: [data, 4] if data == 0 else [data])
    with pytest.raises(ValueError, match=r"iterations \[0, 4\]. OUTPUT_DIR .* same folder"):
        run("--resume", **NO_TEST)


# Kills


@needs_fork
def test_a_killed_training_goes_on_from_the_newest_whole_checkpoint(tmp_path):
    report = kill_training.kill_and_resume(str(tmp_path), kills=2, seconds=1.5, seed=0)
    assert report.kills == report.resumes == 2
