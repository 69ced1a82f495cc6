"""A user's configs, and the study as a user runs it."""

import subprocess
import sys
from pathlib import Path

import yaml


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


def run(*arguments):
    """Runs the study as a user would and returns what it printed."""
    done = subprocess.run(
        [*COMMAND, "run", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr
