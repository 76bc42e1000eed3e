"""What Automatic1111 and Forge read besides the script: preload.py and metadata.ini."""

from __future__ import annotations

import argparse
import configparser
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_flag_names_the_folder_of_our_models() -> None:
    spec = importlib.util.spec_from_file_location("preload.py", ROOT / "preload.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = argparse.ArgumentParser()
    module.preload(parser)
    given = parser.parse_args(["--promptadapt-models-path", "some folder"])
    assert given.promptadapt_models_path == "some folder"
    assert parser.parse_args([]).promptadapt_models_path is None


def test_the_order_is_asked_for_in_a_way_that_any_folder_name_allows() -> None:
    """Sections [callbacks/...] begin with the name of the folder; under another one the host
    complains of them."""
    metadata = configparser.ConfigParser()
    assert metadata.read(ROOT / "metadata.ini", encoding="utf-8")
    assert metadata.get("Extension", "Name") == "promptadapt"
    for section in metadata.sections():
        assert section == "Extension" or (ROOT / section).is_file()


def test_every_file_the_hosts_would_run_is_an_entry() -> None:
    names = {file.name for file in (ROOT / "scripts").iterdir() if file.name != "__pycache__"}
    assert names == {"promptadapt.py"}
