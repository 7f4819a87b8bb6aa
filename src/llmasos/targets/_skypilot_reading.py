"""Read files as SkyPilot does: run by its path, by the Python of an environment that has it.

``python -I _skypilot_reading.py FOLDER FILE...``: what is mounted need not be on this machine, FOLDER stands for it.
What is wrong is the error that this ends with. Nothing is asked of a cloud.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sky
import yaml

if __name__ == "__main__":
    folder, *paths = sys.argv[1:]
    for path in paths:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if "file_mounts" in config:
            config["file_mounts"] = dict.fromkeys(config["file_mounts"], folder)
        sky.Task.from_yaml_config(config)
