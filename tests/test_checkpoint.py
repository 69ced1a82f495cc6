"""Which checkpoints `FittingCheckpointer` refuses."""

import pickle

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from torch import nn

from mrcnn_plugin.checkpoint import FittingCheckpointer


def model(norm):
    return Conv2d(3, 32, 1, norm=get_norm(norm, 32))


# FrozenBN, BN and SyncBN fill in some of their buffers, which are then not reported as missing.
@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN", "GN", ""])
def test_a_checkpoint_of_another_model_is_refused(norm, tmp_path):
    file = str(tmp_path / "torchvision.pth")
    torch.save({"layer1.0.conv1.weight": torch.ones(64, 64, 1, 1), "fc.bias": torch.ones(9)}, file)
    with pytest.raises(ValueError, match="no parameter of the model of the config.*layer1.0"):
        FittingCheckpointer(model(norm)).load(file)


def test_a_model_without_parameters_takes_its_own_checkpoint(tmp_path):
    FittingCheckpointer(get_norm("FrozenBN", 32), str(tmp_path)).save("buffers")
    FittingCheckpointer(get_norm("FrozenBN", 32)).load(str(tmp_path / "buffers.pth"))


def test_an_empty_folder_has_nothing_to_resume_from(tmp_path):
    assert FittingCheckpointer(model(""), str(tmp_path)).resume_or_load("", resume=True) == {}


def test_a_checkpoint_that_is_not_the_last_one_is_not_tagged(tmp_path):
    FittingCheckpointer(model(""), str(tmp_path), tags_last=False).save("model_best")
    assert [path.name for path in tmp_path.iterdir()] == ["model_best.pth"]


def test_a_process_that_must_not_save_writes_nothing(tmp_path):
    FittingCheckpointer(model(""), str(tmp_path), save_to_disk=False).save("model_final")
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FittingCheckpointer(model("")).save("model_final")
    assert not list(tmp_path.iterdir())


def test_a_kill_leaves_the_same_partial_file_for_all_checkpoints(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(torch, "save", lambda data, file: names.append(file.name))
    for name in ("model_0000001", "model_final"):
        FittingCheckpointer(model(""), str(tmp_path)).save(name)
    assert names == [str(tmp_path / "checkpoint.partial")] * 2


@pytest.mark.parametrize("content", [{"model": {}}, {"model": [1]}, [1]])
def test_a_file_without_parameters_is_refused(tmp_path, content):
    file = str(tmp_path / "none.pth")
    torch.save(content, file)
    with pytest.raises(ValueError, match="none.pth holds no parameters"):
        FittingCheckpointer(model("")).load(file)


def test_a_file_without_the_count_of_batches_fits(tmp_path):
    file = str(tmp_path / "bn.pth")
    state = model("BN").state_dict()
    # The metadata stay. Without their version, batch norms fill the count in.
    del state["norm.num_batches_tracked"]
    torch.save({"model": state}, file)
    FittingCheckpointer(model("BN"), must_fit=True).load(file)


class TestRunningStatistics:
    """FrozenBN takes a mean of 0 and a variance of 1 where a file has none, and reports nothing."""

    def test_a_file_without_them_does_not_fit(self, tmp_path):
        file = str(tmp_path / "gn.pth")
        torch.save({"model": model("GN").state_dict()}, file)
        with pytest.raises(ValueError, match="norm.running_mean; norm.running_var. MODEL.WEIGHTS"):
            FittingCheckpointer(model("FrozenBN"), must_fit=True).load(file)

    @pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
    def test_a_file_with_them_fits(self, norm, tmp_path):
        file = str(tmp_path / "bn.pth")
        torch.save({"model": {f"module.{k}": v for k, v in model(norm).state_dict().items()}}, file)
        FittingCheckpointer(model("FrozenBN"), must_fit=True).load(file)

    def test_a_module_may_rename_those_of_an_old_file(self, tmp_path):
        class Renamed(nn.Module):
            def __init__(self):
                super().__init__()
                self.new = model("FrozenBN")

            def _load_from_state_dict(self, state, prefix, *args):
                for key in [key for key in state if key.startswith(f"{prefix}old.")]:
                    state[key.replace("old.", "new.")] = state.pop(key)
                super()._load_from_state_dict(state, prefix, *args)

        file = str(tmp_path / "old.pth")
        old = {f"old.{k}": v + 0.5 for k, v in model("FrozenBN").state_dict().items()}
        torch.save({"model": old}, file)
        loaded = Renamed()
        FittingCheckpointer(loaded, must_fit=True).load(file)
        assert torch.equal(loaded.new.norm.running_mean, old["old.norm.running_mean"])

    def test_files_of_caffe2_fit_without_them(self, tmp_path):
        file = tmp_path / "caffe2.pkl"
        blobs = {k: v.numpy() for k, v in model("GN").state_dict().items()}
        file.write_bytes(pickle.dumps(blobs))
        FittingCheckpointer(model("FrozenBN"), must_fit=True).load(str(file))
