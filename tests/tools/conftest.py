from typing import Any, Callable

import pytest
import yaml
from detectron2.engine import default_argument_parser

from mrcnn_plugin.data import generate_shapes
from tests.small import CONFIGS, TINY


@pytest.fixture
def run(train_net, tmp_path) -> Callable[..., Any]:
    """Runs the main function of train_net.py with a config, flags and changed keys. Returns its results."""
    json_file = generate_shapes(str(tmp_path / "data"), 4, seed=5)
    name = f"shapes_of_{tmp_path.name}"
    content = {
        "_BASE_": str(CONFIGS / "quickstart.yaml"),
        "DATASETS": {
            "COCO_JSON": [[name, json_file, str(tmp_path / "data" / "images")]],
            "TRAIN": [name],
            "TEST": [name],
        },
        "SOLVER": {"MAX_ITER": 2, "IMS_PER_BATCH": 2, "CHECKPOINT_PERIOD": 1},
        "DATALOADER": {"NUM_WORKERS": 0},
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))

    def main(*flags: str, **changes: Any) -> Any:
        settings = {**TINY, "MODEL.ROI_HEADS.NUM_CLASSES": 4}
        settings.update({key.replace("__", "."): value for key, value in changes.items()})
        opts = [str(item) for pair in settings.items() for item in pair]
        args = default_argument_parser().parse_args(["--config-file", str(path), *flags, *opts])
        return train_net.main(args)

    return main
