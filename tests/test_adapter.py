"""PromptAdapter with the bundled policy, and with a policy that writes whole prompts."""

import pytest

from promptadapt_core import modifiers, prompts
from promptadapt_core.adapter import PromptAdapter
from promptadapt_core.decoding import Stopped
from promptadapt_core.settings import SettingsError


@pytest.fixture(scope="module")
def adapter():
    return PromptAdapter.load()


TYPED = [
    "a cat on a roof",
    "a (red cat:1.3) on a ((roof)), [old|new] tiles",
    "portrait of a queen <lora:crown:0.8> BREAK dark forest",
    "a castle AND a dragon :0.7",
    "__animal__ in a {red|blue} hat, embedding:best.pt",
    "a smiley \\(face\\)",
    "[a dog:a wolf:0.4] in the snow\nat night",
    "猫在屋顶上",
    "🐈 on the moon",
]


@pytest.mark.parametrize("user_input", TYPED)
@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
def test_everything_typed_comes_back(adapter, user_input, mode):
    candidates = adapter.adapt(user_input, mode=mode, num_candidates=4, seed=3)
    parsed = prompts.parse(user_input)
    assert len({candidate.adapted_prompt for candidate in candidates}) == 4
    for candidate in candidates:
        assert parsed.lost_spans(candidate.adapted_prompt) == []
        assert prompts.kept_share(parsed.plain, candidate.adapted_prompt) == 1.0
        added = modifiers.split_modifiers(candidate.added)
        assert len(added) >= 3
        assert len({modifiers.normal(part) for part in added}) == len(added)
        assert candidate.num_clip_tokens <= 75


def test_the_same_seed_gives_the_same_text_and_another_seed_another(adapter, untouched_generators):
    with untouched_generators():
        first, again, other = (
            adapter.adapt("a lighthouse", mode="sample", num_candidates=3, seed=seed)
            for seed in (5, 5, 6)
        )
    assert first == again
    assert first != other


def test_a_batch_gives_what_each_gives_alone(adapter):
    user_inputs = ["a cat", "an old lighthouse on a rock in the sea at night", "queen"]
    for mode in ("beam", "diverse", "sample"):
        together = adapter.adapt_all(user_inputs, mode=mode, num_candidates=2, seed=1)
        for user_input, found in zip(user_inputs, together, strict=True):
            alone = adapter.adapt(user_input, mode=mode, num_candidates=2, seed=1)
            texts = [candidate.adapted_prompt for candidate in found.candidates]
            assert texts == [candidate.adapted_prompt for candidate in alone]


def test_many_candidates_are_distinct(adapter):
    candidates = adapter.adapt("a cat on a roof", num_candidates=64)
    assert len({modifiers.normal(one.adapted_prompt) for one in candidates}) == 64


def test_banned_words_are_never_added(adapter):
    usual = adapter.adapt("a cat on a roof", num_candidates=8)
    words = {part for one in usual for part in modifiers.split_modifiers(one.added)}
    for mode in ("beam", "diverse", "sample"):
        for one in adapter.adapt("a cat on a roof", num_candidates=8, ban=tuple(words), mode=mode):
            added = {modifiers.normal(part) for part in modifiers.split_modifiers(one.added)}
            assert not added & {modifiers.normal(word) for word in words}


def test_the_budget_cuts_between_modifiers(adapter):
    whole = adapter.adapt("a cat on a roof")[0]
    parts = modifiers.split_modifiers(whole.added)
    for token_budget in range(12, whole.num_clip_tokens):
        short = adapter.adapt("a cat on a roof", token_budget=token_budget)[0]
        assert short.num_clip_tokens <= token_budget
        assert set(modifiers.split_modifiers(short.added)) <= set(parts)


def test_an_input_over_the_budget_is_left_alone_with_the_reason(adapter):
    long = "a cat and a dog and " * 12
    found = adapter.adapt_all([long], token_budget=20)[0]
    assert found.gate.startswith("left alone: it has ")
    assert [one.adapted_prompt for one in found.candidates] == [long]


def test_kept_spans_come_back_verbatim_and_unknown_ones_are_refused(adapter):
    found = adapter.adapt("a cat with a Red  Scarf", keep=("Red  Scarf",))
    assert "Red  Scarf" in found[0].adapted_prompt
    with pytest.raises(SettingsError, match="keep: "):
        adapter.adapt("a cat", keep=("dog",))


def test_a_request_is_answered_with_what_it_asks_for(adapter):
    found = adapter.adapt("can you draw a cat on a roof?")[0]
    assert found.adapted_prompt.startswith("a cat on a roof, ")
    kept = adapter.adapt("can you draw a cat?", keep=("draw a cat",))[0]
    assert "draw a cat" in kept.adapted_prompt


@pytest.mark.parametrize("user_input", ["<lora:fur:1>", "__animal__", "!!!", "https://x.org/a"])
def test_an_input_without_words_is_left_alone(adapter, user_input):
    found = adapter.adapt_all([user_input])[0]
    assert found.gate == "left alone: there are no words in it to go by"
    assert found.candidates[0].adapted_prompt == user_input


def test_a_stop_ends_it_within_a_token(adapter):
    asked = []

    def should_stop():
        asked.append(True)
        return len(asked) > 3

    with pytest.raises(Stopped):
        adapter.adapt("a cat on a roof", should_stop=should_stop)
    assert len(asked) == 4


def test_an_unknown_setting_is_named(adapter):
    with pytest.raises(SettingsError, match="num_beans: no such setting"):
        adapter.adapt("a cat", num_beans=3)


def test_the_manifest_brings_defaults_and_the_call_overrides_them(adapter):
    for name, value in adapter.policy.manifest.decoding.items():
        assert getattr(adapter.settings(), name) == value
    assert adapter.settings(num_beams=3).num_beams == 3


def test_the_best_comes_first_also_where_candidates_were_filled_up(adapter):
    # so cold that many samples are the same, and further rounds have to fill up
    cold = {"mode": "sample", "temperature": 0.4, "num_candidates": 12}
    for user_input in ("a cat on a roof", "queen", "two dogs"):
        found = adapter.adapt(user_input, seed=2, **cold)
        scores = [one.logprob / one.num_tokens for one in found]
        assert len(scores) > 6
        assert scores == sorted(scores, reverse=True)
