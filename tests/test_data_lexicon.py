"""Learning the lexicon from a few hand-made prompts."""

from __future__ import annotations

import gzip
import itertools
import json

import pytest

from promptadapt_core.data import lexicon
from promptadapt_core.settings import SettingsError

SUBJECTS = ("a cat on a roof", "an old man", "two dogs in a garden", "a ship at sea", "a red house")
STYLES = ("sharp focus", "highly detailed", "soft lighting", "8 k")
NAMES = ("greta ramhold", "quentin vossler", "olga tarnowska")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    made = []
    for subject, style, name in itertools.product(SUBJECTS, STYLES, NAMES):
        made.append(f"{subject}, {style}, sharp focus, by {name}")
    made += [f"{subject} by the sea" for subject in SUBJECTS] * 2
    made += [f"a fox, soft lighting, by {NAMES[0]} and {NAMES[1]}"] * 3
    return made


@pytest.fixture(scope="module")
def learned(prompts: list[str]) -> dict[str, dict]:
    return lexicon.build_lexicon(prompts, {"sharp focus": 900, "highly detailed": 800})


def test_names_after_by_are_artists(learned: dict[str, dict]) -> None:
    assert set(NAMES) <= learned["artists"].keys()
    assert not {"the sea", "sea", "sharp focus"} & learned["artists"].keys()


def test_modifiers_weigh_more_than_content(learned: dict[str, dict]) -> None:
    weights = learned["weights"]
    scores = {text: lexicon.score_of(text, weights) for text in (*SUBJECTS, *STYLES)}
    # "soft lighting" is not among the keywords that the training starts from: it is found by where
    # it stands.
    for style in ("sharp focus", "highly detailed", "soft lighting"):
        assert scores[style] > max(scores[subject] for subject in SUBJECTS)


def test_same_prompts_same_bytes(prompts, learned, tmp_path) -> None:
    again = lexicon.build_lexicon(list(prompts), {"sharp focus": 900, "highly detailed": 800})
    for name, made in (("a", learned), ("b", again)):
        lexicon.write_lexicon(made, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "a").read_bytes())) == learned


def test_command_reads_training_rows_of_clear_sources(tmp_path, capsys) -> None:
    rows = [
        {"prompt": "a cat", "split": "train", "source": ["refl"]},
        {"prompt": "a dog", "split": "test", "source": ["refl"]},
        {"prompt": "a fox", "split": "train", "source": ["krea1k"]},
        {"prompt": "an owl", "split": "train", "source": ["krea1k", "refl"]},
    ]
    path = tmp_path / "prompts.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert lexicon.read_prompts(path, ["krea"]) == ["a cat", "an owl"]
    keywords = tmp_path / "keywords.csv"
    keywords.write_text("keyword,count\nsharp focus,9\nsharp focus,7\n", encoding="utf-8")
    assert lexicon.read_keywords([keywords]) == {"sharp focus": 9}
    out = tmp_path / "lexicon.json.gz"
    arguments = ["--prompts", str(path), "--keywords", str(keywords), "--out", str(out)]
    assert lexicon.main(arguments) == 0
    assert out.exists()
    assert "4 prompts" not in capsys.readouterr().out


def test_a_bad_file_of_keywords_is_named(tmp_path) -> None:
    for number, text in enumerate(("keyword,count\nsharp focus\n", "keyword,count\n8k,many\n")):
        path = tmp_path / f"{number}.csv"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match="keywords: "):
            lexicon.read_keywords([path])
