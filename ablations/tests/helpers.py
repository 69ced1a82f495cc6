"""A user's configs, and the study as a user runs it."""

import logging
import multiprocessing
import sys
from pathlib import Path

import yaml

from ablations.__main__ import main
from ablations.run import LOG, cell_arguments
from tests.environments import START_METHOD


def tree(settings):
    nodes = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        node = nodes
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return nodes


def write_other(folder, beta=0.5):
    content = {"_BASE_": "base.yaml", "MODEL": {"RPN": {"SMOOTH_L1_BETA": beta}}}
    (Path(folder) / "other.yaml").write_text(yaml.safe_dump(content))


COMMAND = [sys.executable, "-m", "ablations"]


def run(capsys, *arguments):
    """Runs the study in this process, and returns its exit code and what it printed."""
    code = 0
    try:
        main(["run", *arguments])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    return code, f"{out}{err}{code}"


class ForkedCell(multiprocessing.get_context(START_METHOD).Process):
    """Runs a cell as `start_process` does, without the time that a new process needs for its imports."""

    def __init__(self, cell, args):
        super().__init__()
        self.log = Path(cell.folder(args.output_dir)) / LOG
        self.arguments = cell_arguments(cell, args)
        self.start()

    def run(self):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout = sys.stderr = self.log.open("a")
        # A new process has no handlers. Those of earlier tests may write to closed files.
        for name in ("detectron2", "fvcore"):
            logging.getLogger(name).handlers.clear()
        main(self.arguments)

    # The names of subprocess.Popen.

    def poll(self):
        return self.exitcode

    @property
    def returncode(self):
        return self.exitcode

    def wait(self):
        self.join()
