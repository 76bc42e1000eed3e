import pytest

from promptadapt_core.additions import AdditionRules, banned_pattern, trim_to_budget
from promptadapt_core.settings import SettingsError


def test_accepted_keeps_modifiers_in_order_and_once():
    rules = AdditionRules("a cat on a roof")
    written = ["highly detailed", "golden hour", "Highly-Detailed", "sharp focus"]
    assert rules.accepted(written) == ["highly detailed", "golden hour", "sharp focus"]


def test_what_the_user_said_is_not_added_again():
    rules = AdditionRules("a cat, Sharp Focus, roof")
    assert rules.accepted(["sharp focus", "golden hour"]) == ["golden hour"]


def test_banned_words_go_whatever_their_case_and_spacing():
    rules = AdditionRules("a cat", ban=["8k", "Sharp-Focus"])
    assert rules.accepted(["8 k", "8K resolution", "sharp focus", "golden hour"]) == ["golden hour"]


def test_a_ban_is_of_whole_words():
    assert banned_pattern(["art"]).search("digital art, smooth")
    assert not banned_pattern(["art"]).search("trending on artstation")


@pytest.mark.parametrize("ban", ["", "  ", "!!"])
def test_a_ban_without_a_word_is_refused(ban):
    with pytest.raises(SettingsError, match="ban: expected a word or phrase"):
        AdditionRules("a cat", ban=[ban])


def test_artists_and_explicit_words_are_not_added():
    rules = AdditionRules("a cat")
    assert rules.accepted(["by greg rutkowski", "nsfw", "oil painting"]) == ["oil painting"]
    generous = AdditionRules("a cat", artists=True)
    assert generous.accepted(["by greg rutkowski", "nsfw"]) == ["by greg rutkowski"]


def test_invented_content_is_not_added():
    rules = AdditionRules("a cat on a roof")
    written = ["a dog biting a postman", "two women with umbrellas", "cinematic lighting"]
    assert rules.accepted(written) == ["cinematic lighting"]


class TestMayFollow:
    def test_a_repeated_modifier_cannot_be_closed(self):
        rules = AdditionRules("a cat")
        assert rules.may_follow(" sharp focus, golden hour", ",")
        assert not rules.may_follow(" sharp focus, sharp focus", ",")
        assert not rules.may_follow(" sharp focus, sharp focus", "")

    def test_a_banned_modifier_cannot_be_closed_but_may_grow(self):
        rules = AdditionRules("a cat", ban=["art"])
        assert not rules.may_follow(" digital art", ",")
        assert rules.may_follow(" trending on art", "station")

    def test_a_sample_has_no_alternative_so_it_may_close_anything(self):
        rules = AdditionRules("a cat", ban=["art"], backtracks=False)
        assert rules.may_follow(" digital art", ",")
        assert not rules.may_follow(" digital art,", ",")

    def test_no_empty_modifier(self):
        rules = AdditionRules("a cat")
        assert not rules.may_follow("", ",")
        assert not rules.may_follow(" sharp focus,", ",")

    def test_the_end_waits_for_enough_modifiers(self):
        rules = AdditionRules("a cat", min_modifiers=2)
        assert not rules.may_follow(" sharp focus", "")
        assert not rules.may_follow(" sharp focus, sharp focus", "")
        assert rules.may_follow(" sharp focus, golden hour", "")

    @pytest.mark.parametrize("mark", ["\n", " (", ")", " [", "<", " {", "|", "\\"])
    def test_no_syntax_of_the_hosts(self, mark):
        assert not AdditionRules("a cat").may_follow(" sharp", mark)


def test_trim_to_budget_drops_whole_additions_from_the_end():
    def render(additions):
        text = ", ".join(["a cat", *additions])
        return text, len(text.split())

    additions = ["sharp focus", "golden hour", "oil painting"]
    assert trim_to_budget(additions, render, 8)[0] == additions
    assert trim_to_budget(additions, render, 7) == (
        ["sharp focus", "golden hour"], "a cat, sharp focus, golden hour", 6,
    )  # fmt: skip
    assert trim_to_budget(additions, render, 1) == ([], "a cat", 2)


def test_what_says_nothing_new_is_a_repeat():
    rules = AdditionRules("a cat")
    written = ["concept art", "oil painting", "concept art painting", "detailed", "highly detailed"]
    assert rules.accepted(written) == ["concept art", "oil painting", "detailed", "highly detailed"]


def test_a_photo_is_not_called_a_painting():
    rules = AdditionRules("a photo of a bench")
    written = ["digital painting", "golden hour", "artstation", "bokeh"]
    assert rules.accepted(written) == ["golden hour", "bokeh"]
    assert not rules.may_follow(" golden hour, digital painting", ",")


def test_a_ban_reads_underscores_and_hyphens_as_spaces():
    pattern = banned_pattern(["concept_art", "u\u0308ber-real"])
    for text in ("concept art", "Concept-Art", "\u00fcber real", "concept_art_1"):
        assert pattern.search(text)
    with pytest.raises(SettingsError, match="ban: expected a word or phrase"):
        banned_pattern(["_"])


@pytest.mark.parametrize("addition", ["\ufffd sharp focus", "sharp\x1b focus", "8k\u202e"])
def test_broken_and_invisible_characters_are_not_added(addition):
    assert AdditionRules("a cat").accepted([addition, "oil painting"]) == ["oil painting"]


def test_a_modifier_that_goes_in_circles_is_refused():
    rules = AdditionRules("a cat")
    circles = "rendered in octane rendered in octane"
    long = "soft warm golden dramatic volumetric cinematic moody studio lighting"
    assert rules.accepted([circles, long, "octane render"]) == ["octane render"]
