"""What scripts/promptadapt.py does in a host. Run by test_scripts.py with a real gradio, in the
environment of webui_host.py; the host's own modules are those of webui_modules.py."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fastapi
import gradio as gr
import pytest
from fastapi.testclient import TestClient

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ["PROMPTADAPT_EXTENSION"])  # a copy of the extension, as users have it
EXPECTED = json.loads(os.environ["PROMPTADAPT_EXPECTED"])  # of the command line, by user input
HEAVY = {"torch", "transformers", "tokenizers", "open_clip"}
TYPED = "a (red:1.3) cat <lora:foo:0.8> BREAK __colors__ {a|b} [roof:moon:0.5]"
LABELS = [
    "Policy", "Mode", "Candidates", "Adapting seed", "Token budget", "Keep", "Ban",
    "Leave engineered prompts alone", "Use candidate", "Prompts of the images", "Keep the best",
    "Scorer", "Aesthetic weight", "Relevance weight",
]  # fmt: skip


def load_modules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("webui_modules", HERE / "webui_modules.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


webui = load_modules()


class Page:
    """The extension in a host, with both tabs built."""

    def __init__(self, tmp_path: Path, always: bool = False, keeps_path: bool = False):
        self.host = webui.Host(tmp_path / "models")
        self.host.install()
        self.module = self.host.load(FOLDER, keeps_path)
        self.host.opts.promptadapt_always = always
        classes = self.host.script_classes(self.module)
        self.tabs = [webui.Runner([*classes, Later], is_img2img) for is_img2img in (False, True)]
        with gr.Blocks() as self.demo:
            for tab, name in zip(self.tabs, ("txt2img", "img2img"), strict=True):
                box = gr.Textbox(elem_id=f"{name}_prompt")
                seed = gr.Number(value=-1, elem_id=f"{name}_seed")
                for script in tab.scripts:
                    if hasattr(script, "after_component"):
                        script.after_component(box, elem_id=f"{name}_prompt")
                        script.after_component(seed, elem_id=f"{name}_seed")
                tab.setup_ui()

    def job(self, **given: Any) -> Any:
        fields = {"prompt": "a cat on a roof", "seed": 7, "scripts": self.tabs[0]}
        p = webui.Processing(**{**fields, **given})
        return p

    def run(self, arguments: list[Any] | None = None, **given: Any) -> Any:
        """A request with the script of the dropdown."""
        p, tab = self.job(**given), self.tabs[0]
        p.script_args = tab.arguments("Prompt Adapt", arguments)
        script = tab.script("Prompt Adapt")
        return script.run(p, *p.script_args[script.args_from : script.args_to])

    def always(self, arguments: list[Any], **given: Any) -> Any:
        """A request with the script that adapts every job."""
        p, tab = self.job(**given), self.tabs[0]
        p.script_args = tab.defaults()
        start = tab.script("Prompt Adapt (always on)").args_from
        p.script_args[start : start + len(arguments)] = arguments
        return self.host.process_images(p)


class Later(webui.Script):
    """A script that stands behind ours; its arguments must never be taken for ours."""

    def title(self) -> str:
        return "Later"

    def ui(self, is_img2img: bool) -> list[Any]:
        return [gr.Textbox(value=f"later {number}") for number in range(20)]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    before = list(sys.path)
    yield Page(tmp_path)
    sys.path[:] = before


@pytest.fixture
def page_always(tmp_path: Path) -> Page:
    return Page(tmp_path, always=True)


def test_it_loads_light_and_fast(tmp_path: Path) -> None:
    """After what the host has loaded: gradio and fastapi. Their objects are frozen: a look of the
    garbage collector at them is a matter of chance, and theirs."""
    code = f"""
import gc, sys, time
sys.path.insert(0, {str(HERE)!r})
import gradio, fastapi.security, webui_modules, pathlib
sys.path.remove({str(HERE)!r})
host = webui_modules.Host(pathlib.Path({str(tmp_path)!r}))
host.install()
before = set(sys.modules)
gc.collect()
gc.freeze()
started = time.process_time()
host.load(pathlib.Path({str(FOLDER)!r}), False)
seconds = time.process_time() - started
print(seconds, *sorted({{name.split(".")[0] for name in set(sys.modules) - before}}))
"""
    # as on a user's machine, where the second start finds the compiled modules of the first
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    least = float("inf")
    for _ in range(5):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, *loaded = run.stdout.split()
        assert not set(loaded) & HEAVY
        assert "promptadapt_core" in loaded
        assert "promptadapt.py" not in loaded
        least = min(least, float(seconds))
    print(f"adds {least * 1000:.1f} ms")
    assert least < 0.050


def test_both_tabs_can_be_built_again_and_again(page: Page) -> None:
    for tab in page.tabs:
        script = tab.script("Prompt Adapt")
        assert [control.label for control in script.controls] == LABELS
        assert [label for label, _ in script.infotext_fields] == script.controls
    dependencies = len(page.demo.get_config_file()["dependencies"])
    assert dependencies == 2 * 3  # Preview, Use this one, Unload in each tab
    with gr.Blocks() as other:  # an API without a page asks for the controls alone, twice
        for _ in range(2):
            for tab in page.tabs:
                assert len(tab.script("Prompt Adapt").ui(tab.scripts[0].is_img2img)) == len(LABELS)
    other.get_config_file()
    ids = [one.elem_id for tab in page.tabs for one in tab.script("Prompt Adapt").controls]
    assert len(set(ids)) == len(ids) == 2 * len(LABELS)


def test_the_always_on_twin_is_there_where_the_setting_says_so(
    page: Page, page_always: Page
) -> None:
    titles = [[script.title() for script in one.tabs[0].scripts] for one in (page, page_always)]
    assert titles == [
        ["Prompt Adapt", "Later"], ["Prompt Adapt", "Prompt Adapt (always on)", "Later"],
    ]  # fmt: skip
    twin = page_always.tabs[1].script("Prompt Adapt (always on)")
    assert [control.label for control in twin.controls] == ["Adapt every prompt", *LABELS[:10]]
    assert twin.controls[0].value is False


def test_the_text_is_that_of_the_command_line(page: Page, page_always: Page) -> None:
    for user_input, adapted in EXPECTED.items():
        assert page.run(prompt=user_input).all_prompts == [adapted]
        assert page_always.always([True], prompt=user_input).all_prompts == [adapted]
    assert EXPECTED[TYPED] != TYPED


@pytest.mark.parametrize("count", range(4))
def test_missing_arguments_are_the_defaults(page: Page, count: int) -> None:
    whole = page.run(["promptadapt-sd", "sample", 3], images=None, n_iter=1)
    given = page.run(["promptadapt-sd", "sample", 3][:count])
    assert len(given.images) == 1
    assert (given.all_prompts == whole.all_prompts) == (count == 3)
    assert given.all_prompts[0].startswith("a cat on a roof, ")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([5], "policy: expected str, got 5"),
        (["nobody"], "there is no policy 'nobody'"),
        (["promptadapt-sd", "wild"], "mode: expected one of auto, beam, diverse, sample"),
        (["promptadapt-sd", "auto", "3"], "num_candidates: expected int, got '3'"),
        (["promptadapt-sd", "auto", 65], "num_candidates: expected a number from 1 to 64"),
        (["promptadapt-sd", "auto", 1, -2], "seed: expected a number from -1"),
        (["promptadapt-sd", "auto", 1, -1, 75, "a dog"], "keep: "),
        (["promptadapt-sd"] * 15, "script_args: expected at most 14 values, got 15"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(
    page: Page, arguments: list[Any], reason: str
) -> None:
    with pytest.raises(fastapi.HTTPException) as refused:
        page.run(arguments, is_api=True)
    assert refused.value.status_code == 422
    assert reason in refused.value.detail
    with pytest.raises(ValueError, match=reason[:20]):
        page.run(arguments)
    assert page.host.rendered == []
    assert len(page.run().images) == 1  # the host goes on


def test_another_candidate_for_each_image(page: Page) -> None:
    alike = page.run(["promptadapt-sd", "auto", 3], batch_size=2, n_iter=2)
    assert len(set(alike.all_prompts)) == 1
    assert alike.all_seeds == [7, 8, 9, 10]
    found = page.run(
        ["promptadapt-sd", "auto", 3, -1, 75, "", "", True, 1, "different"], batch_size=2, n_iter=2
    )
    assert len(set(found.all_prompts)) == 4
    assert (found.all_seeds, found.all_subseeds[0]) == ([7, 8, 9, 10], found.all_subseeds[3] - 3)
    pictures = [webui.parse(text) for text in found.infotexts[1:]]
    assert [one["Prompt Adapt rank"] for one in pictures] == ["1", "2", "3", "4"]
    assert [one["Prompt"] for one in pictures] == found.all_prompts
    assert (found.index_of_first_image, len(found.images)) == (1, 5)
    again = page.run(
        ["promptadapt-sd", "auto", 4, 7, 75, "", "", True, 3, "different"], seed=9
    )  # as the third picture tells
    assert again.all_prompts == [found.all_prompts[2]]
    assert again.images[0].tobytes() == found.images[3].tobytes()


def test_use_candidate_takes_the_one_with_that_number(page: Page) -> None:
    settings = ["promptadapt-sd", "auto", 3, -1, 75, "", "", True]
    texts = [page.run([*settings, rank]).all_prompts[0] for rank in (1, 2, 3)]
    assert len(set(texts)) == 3
    shown, radio, seed = page.module.preview(
        page.tabs[0].script("Prompt Adapt").names, True, "a cat on a roof", 7,
        *settings, 1, "same", "off", "lab", 1.0, 1.0,
    )  # fmt: skip
    assert seed == 7
    choices = [one[0] if isinstance(one, (tuple, list)) else one for one in radio["choices"]]
    assert choices == [f"{rank}. {text}" for rank, text in enumerate(texts, 1)]
    assert shown.count("<li>") == 3
    assert shown.count("<b>") == 3
    assert page.module.use_candidate(choices[1], seed) == (2, 7)


def test_a_preview_without_a_seed_draws_one_that_brings_it_again(page: Page) -> None:
    names = page.tabs[0].script("Prompt Adapt").names
    _, radio, seed = page.module.preview(names, True, "a cat on a roof", -1)
    assert 0 <= seed < 2**32
    found = page.run(["promptadapt-sd", "auto", 1, seed], seed=123)
    assert f"1. {found.all_prompts[0]}" in json.dumps(radio["choices"])
    told, radio, seed = page.module.preview(names, False, "<b>", "promptadapt-sd", "wild")
    assert "error" in told
    assert "mode: expected one of" in told
    assert radio["choices"] == []
    kept = page.module.use_candidate(None, -1)
    assert all("value" not in one for one in kept)


@pytest.mark.parametrize("keep_best", ["all", "best"])
def test_the_best_pictures_are_kept(page: Page, keep_best: str) -> None:
    pytest.importorskip("open_clip")
    arguments = ["promptadapt-sd", "auto", 2, -1, 75, "", "", True, 1, "same", keep_best]
    found = page.run(arguments, batch_size=2)
    scores = found.extra_generation_params["Prompt Adapt scores"]
    rewards = [score["reward"] for score in scores]
    pictures = found.images[found.index_of_first_image :]
    told = [webui.parse(text) for text in found.infotexts[found.index_of_first_image :]]
    assert [float(one["Prompt Adapt reward"]) for one in told] == pytest.approx(rewards, abs=1e-4)
    assert [one.info["parameters"] for one in pictures] == found.infotexts[-len(pictures) :]
    assert page.host.saved == found.infotexts[-len(pictures) :]
    assert len([p for p in page.host.rendered if p.prompt == "a cat on a roof"]) == 1
    if keep_best == "all":
        assert len(pictures) == 6
        assert rewards == sorted(rewards, reverse=True)
        assert {(score["rank"], score["image"]) for score in scores} == {
            (rank, image) for rank in range(3) for image in range(2)
        }
    else:
        everything = page.run([*arguments[:-1], "all"], batch_size=2)
        rows = everything.extra_generation_params["Prompt Adapt scores"]
        best = [max(r["reward"] for r in rows if r["image"] == image) for image in (0, 1)]
        assert rewards == best
        assert [score["image"] for score in scores] == [0, 1]
        assert found.all_seeds == [7, 8]
    assert any("is best, reward" in line for line in found.comments)


def test_a_scorer_that_is_not_there_is_told_before_anything_is_rendered(page: Page) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(ValueError, match="there is no scorer 'nobody'"):
        page.run(["promptadapt-sd", "auto", 1, -1, 75, "", "", True, 1, "same", "all", "nobody"])
    assert page.host.rendered == []


def test_pasting_brings_back_the_user_input_and_every_control(page: Page) -> None:
    given = [
        "promptadapt-sd", "diverse", 3, 5, 60, "red: cat\nfoo", "blurry, bad\n8k", False, 2,
        "same", "off", "lab", 0.5, 2.0,
    ]  # fmt: skip
    typed = 'a "red: cat", 512x512\nwith foo, <lora:x:1>'
    found = page.run(given, prompt=typed)
    params = webui.parse(found.infotexts[-1])
    adapted = params["Prompt"]
    assert adapted != typed
    for callback in page.host.callbacks["infotext_pasted"]:
        callback(found.infotexts[-1], params)
    assert params["Prompt"] == typed
    assert params["Script"] == "Prompt Adapt"
    fields = page.tabs[0].script("Prompt Adapt").infotext_fields
    values = [restore(params) for _, restore in fields]
    assert values == given
    again = page.run(values, prompt=params["Prompt"], seed=int(params["Seed"]))
    assert again.all_prompts == [adapted]
    assert again.infotexts == found.infotexts


@pytest.mark.parametrize(
    "typed",
    [
        "a cat", "512x512 ", '"a cat"', 'say "hi"', " a cat ", "json:cat", "a\tcat, b", "a\\nb: c",
        "Steps: 3, Seed: 4", "猫, 屋根", "a cat\nNegative: x",
    ],
)  # fmt: skip
def test_any_user_input_survives_a_picture(page: Page, typed: str) -> None:
    found = page.run(prompt=typed)
    params = webui.parse(found.infotexts[-1])
    for callback in page.host.callbacks["infotext_pasted"]:
        callback("", params)
    assert params["Prompt"] == typed


def test_pictures_of_others_change_nothing(page: Page, page_always: Page) -> None:
    for one in (page, page_always):
        params = {"Prompt": "a cat", "Steps": "2"}
        for callback in one.host.callbacks["infotext_pasted"]:
            callback("", params)
        assert params == {"Prompt": "a cat", "Steps": "2"}
        for script in one.tabs[0].scripts[:-1]:
            assert {restore(params) for _, restore in script.infotext_fields} == {None}


def test_nothing_is_adapted_twice(page_always: Page) -> None:
    """Neither by both scripts at once, nor where a host pastes without asking us."""
    p, tab = page_always.job(), page_always.tabs[0]
    p.script_args = tab.defaults()
    twin, script = tab.script("Prompt Adapt (always on)"), tab.script("Prompt Adapt")
    p.script_args[twin.args_from] = True
    found = script.run(p, *p.script_args[script.args_from : script.args_to])
    assert found.all_prompts == [EXPECTED["a cat on a roof"]]
    told = page_always.always([True]).infotexts[-1]
    enabled = twin.infotext_fields[0][1]
    params = webui.parse(told)
    assert enabled(params) is False  # the adapted prompt is still in it
    for callback in page_always.host.callbacks["infotext_pasted"]:
        callback(told, params)
    assert enabled(params) is True
    assert params["Prompt"] == "a cat on a roof"
    by_script = webui.parse(page_always.run().infotexts[-1])
    for callback in page_always.host.callbacks["infotext_pasted"]:
        callback("", by_script)
    assert enabled(by_script) is False


def test_a_picture_of_the_twin_stays_as_it_is_where_there_is_no_twin(
    page: Page, page_always: Page
) -> None:
    told = page_always.always([True]).infotexts[-1]
    params = webui.parse(told)
    page.module.always_shown = lambda: False
    for callback in page.host.callbacks["infotext_pasted"]:
        callback(told, params)
    assert params["Prompt"] == EXPECTED["a cat on a roof"]


def test_the_twin_gives_each_image_its_own_words(page_always: Page) -> None:
    arguments = [True, "promptadapt-sd", "auto", 3, -1, 75, "", "", True, 1, "different"]
    found = page_always.always(
        arguments, batch_size=2, n_iter=2, enable_hr=True, styles=["in style"]
    )
    p = page_always.host.rendered[-1]
    assert len(set(found.all_prompts)) == 4
    assert all(text.endswith(", in style") for text in found.all_prompts)
    assert p.all_hr_prompts == found.all_prompts
    assert p.main_prompt == found.all_prompts[0]
    pictures = [webui.parse(text) for text in found.infotexts[1:]]
    assert [one["Prompt Adapt rank"] for one in pictures] == ["1", "2", "3", "4"]
    assert {one["Prompt Adapt original"] for one in pictures} == {"a cat on a roof"}
    plain = page_always.always([True]).all_prompts[0]
    styled = page_always.always([True], styles=["in style"]).all_prompts[0]
    assert styled == f"{plain}, in style"


@pytest.mark.parametrize("twin", [False, True], ids=["dropdown", "twin"])
def test_a_picture_that_is_drawn_larger_keeps_its_text(page_always: Page, twin: bool) -> None:
    """The button of the gallery gives the picture, and its seed as that of the job."""
    generate = page_always.always if twin else page_always.run
    values = ["promptadapt-sd", "auto", 3, -1, 75, "", "", True, 1, "different"]
    arguments = [True, *values] if twin else values
    first = generate(arguments, n_iter=3)
    drawn = first.images[first.index_of_first_image :]
    texts = first.all_prompts[-3:]
    for number, image in enumerate(drawn):
        larger = {"seed": 7 + number, "txt2img_upscale": True, "firstpass_image": image}
        again = generate(arguments, **larger)
        assert again.all_prompts == [texts[number]]
        assert webui.parse(again.infotexts[-1])["Prompt Adapt rank"] == str(number + 1)
        other = generate(arguments, prompt="a red house", **larger)  # typed since
        assert other.all_prompts[0].startswith("a red house, ")
    stranger = webui.painted("a cat", 1)
    again = generate(arguments, txt2img_upscale=True, firstpass_image=stranger)
    assert again.all_prompts == texts[:1]


def test_the_best_picture_is_drawn_larger_alone(page: Page) -> None:
    """One rendering and no scores, and the plain input where that was best."""
    arguments = ["promptadapt-sd", "auto", 2, -1, 75, "", "", True, 1, "same", "all", "lab"]
    best = page.run(["promptadapt-sd", "auto", 2])
    image = best.images[0]
    before = len(page.host.rendered)
    larger = {"txt2img_upscale": True, "firstpass_image": image}
    assert page.run(arguments, **larger).all_prompts == best.all_prompts
    assert len(page.host.rendered) == before + 1
    image.info["parameters"] = image.info["parameters"].replace(
        "Prompt Adapt rank: 1", "Prompt Adapt rank: 0"
    )
    assert page.run(arguments, **larger) is None  # the host renders what was typed


def test_the_twin_serves_lists_of_prompts_and_other_extensions(page_always: Page) -> None:
    found = page_always.always([True], prompt=["a cat", "a red house"], n_iter=2)
    assert [text.split(",")[0] for text in found.all_prompts] == ["a cat", "a red house"]
    originals = [webui.parse(text)["Prompt Adapt original"] for text in found.infotexts[1:]]
    assert originals == ["a cat", "a red house"]
    hires = page_always.always([True], enable_hr=True, hr_prompt="another text")
    assert page_always.host.rendered[-1].all_hr_prompts == ["another text"]
    assert hires.all_prompts == [EXPECTED["a cat on a roof"]]
    twin = page_always.tabs[0].script("Prompt Adapt (always on)")
    p = page_always.job(prompt="a __pet__ on a roof", all_prompts=["a cat on a roof"])
    p.all_seeds = [7]
    twin.process(p, True)  # wildcards were filled in before us
    assert p.all_prompts == [EXPECTED["a cat on a roof"]]


def test_a_grid_tells_of_its_first_image(page_always: Page) -> None:
    arguments = [True, "promptadapt-sd", "auto", 3, -1, 75, "", "", True, 1, "different"]
    found = page_always.always(arguments, n_iter=3)
    assert found.index_of_first_image == 1
    grid, first = (webui.parse(found.infotexts[number]) for number in (0, 1))
    assert grid["Prompt"] == first["Prompt"]
    assert grid["Prompt Adapt rank"] == first["Prompt Adapt rank"] == "1"


def test_a_job_that_is_rendered_again_is_adapted_again(page_always: Page) -> None:
    """Loopback and the batch of img2img give the host the same job for every picture."""
    p = page_always.job()
    p.script_args = page_always.tabs[0].defaults()
    p.script_args[page_always.tabs[0].script("Prompt Adapt (always on)").args_from] = True
    adapted = EXPECTED["a cat on a roof"]
    assert [page_always.host.process_images(p).all_prompts for _ in range(2)] == [[adapted]] * 2
    p.prompt = "a red house"
    found = page_always.host.process_images(p)
    assert found.all_prompts == [EXPECTED["a red house"]]
    assert webui.parse(found.infotexts[-1])["Prompt Adapt original"] == "a red house"
    p.script_args[page_always.tabs[0].script("Prompt Adapt (always on)").args_from] = False
    assert "Prompt Adapt" not in page_always.host.process_images(p).infotexts[-1]
    other = page_always.job(prompt=adapted)  # as ADetailer: a new job with the pairs of the old
    other.script_args = page_always.tabs[0].defaults()
    other.script_args[page_always.tabs[0].script("Prompt Adapt (always on)").args_from] = True
    other.extra_generation_params = dict(found.extra_generation_params)
    assert page_always.host.process_images(other).all_prompts == [adapted]


@pytest.mark.parametrize("typed", ["a cat on a roof # note", "# note\na cat on a roof"])
@pytest.mark.parametrize("early", [False, True])
def test_what_the_host_takes_for_a_comment_swallows_nothing(
    page: Page, page_always: Page, typed: str, early: bool
) -> None:
    """early: Forge takes comments out where it puts styles on, Automatic1111 later."""
    adapted = EXPECTED["a cat on a roof"]
    if early:
        styles = sys.modules["modules.shared"].prompt_styles
        plain = styles.apply_styles_to_prompt
        styles.apply_styles_to_prompt = lambda text, styles: plain(
            webui.without_comments(text).strip(), styles
        )
    assert page_always.always([True], prompt=typed).all_prompts[0].strip() == adapted
    twin = page_always.always([True], prompt=typed.replace(" # note", ""), styles=["in style"])
    assert twin.all_prompts == [f"{adapted}, in style"]
    found = page.run(prompt=typed, enable_hr=True, hr_prompt=typed)
    assert found.all_prompts == [adapted]
    assert page.host.rendered[-1].all_hr_prompts == [adapted]
    names = page.tabs[0].script("Prompt Adapt").names
    _, radio, _ = page.module.preview(names, True, typed, 7)
    assert f"1. {adapted}" in json.dumps(radio["choices"])
    page.host.opts.enable_prompt_comments = False
    _, radio, _ = page.module.preview(names, True, typed, 7)
    assert "note" in json.dumps(radio["choices"])


def test_every_picture_to_start_from_gets_its_own_words(page: Page) -> None:
    arguments = ["promptadapt-sd", "auto", 3, -1, 75, "", "", True, 1, "different"]
    page.run(arguments, batch_size=2, n_iter=2, init_images=["first", "second"])
    shown = [p.init_images for p in page.host.rendered]
    assert shown == [["first"], ["second"], ["first"], ["second"]]
    page.run(arguments, batch_size=2, init_images=["only"])
    assert page.host.rendered[-1].init_images == ["only"]


def test_pictures_that_cannot_be_scored_are_not_lost(page: Page) -> None:
    pytest.importorskip("open_clip")
    found = page.run(
        ["promptadapt-sd", "auto", 2, -1, 75, "", "", True, 1, "same", "best"], prompt="", n_iter=2
    )
    assert len(found.images) - found.index_of_first_image == len(page.host.saved) == 2
    assert "the pictures have no scores: user_input" in found.comments[0]


def test_the_twin_off_touches_nothing(page_always: Page) -> None:
    for arguments in ([False], [None], []):
        found = page_always.always(arguments)
        assert found.all_prompts == ["a cat on a roof"]
        assert page_always.host.rendered[-1].extra_generation_params == {}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["yes"], "enabled: expected true or false, got 'yes'"),
        ([True, "nobody"], "there is no policy 'nobody'"),
        ([True, "promptadapt-sd", 3], "mode: expected str, got 3"),
    ],
)
def test_the_twin_tells_in_the_picture_what_is_wrong(
    page_always: Page, arguments: list[Any], reason: str
) -> None:
    found = page_always.always(arguments)
    assert found.all_prompts == ["a cat on a roof"]
    told = webui.parse(found.infotexts[-1])
    from promptadapt_core import infotext

    assert reason in infotext.unpacked(told["Prompt Adapt failed"])
    assert reason in found.comments[0]


def test_the_axes_of_xyz_plot_set_one_job_only(page_always: Page) -> None:
    option = SimpleNamespace
    grid = ModuleType("xyz_grid.py")
    grid.AxisOption = lambda label, kind, apply, choices=None: option(
        label=label, type=kind, apply=apply, choices=choices
    )
    grid.axis_options = []
    data = sys.modules["modules.scripts"].scripts_data
    data.append(option(path="/somewhere/scripts/xyz_grid.py", module=grid))
    for callback in page_always.host.callbacks["before_ui"] * 2:
        callback()
    axes = {axis.label: axis for axis in grid.axis_options}
    assert list(axes) == [
        "[Prompt Adapt] Policy", "[Prompt Adapt] Mode", "[Prompt Adapt] Candidates",
        "[Prompt Adapt] Use candidate", "[Prompt Adapt] Adapting seed",
    ]  # fmt: skip
    assert "promptadapt-sd" in axes["[Prompt Adapt] Policy"].choices()
    assert "beam" in axes["[Prompt Adapt] Mode"].choices()
    first, cell = page_always.job(), page_always.job()
    axes["[Prompt Adapt] Adapting seed"].apply(cell, 3, [3])
    axes["[Prompt Adapt] Mode"].apply(cell, "sample", ["sample"])
    for p in (first, cell):
        p.script_args = page_always.tabs[0].defaults()
    texts = [page_always.host.process_images(p).all_prompts[0] for p in (first, cell)]
    assert texts[0] == "a cat on a roof"
    assert texts[1] == page_always.always(
        [True, "promptadapt-sd", "sample", 1, 3]
    ).all_prompts[0]  # fmt: skip
    data.clear()


def test_an_interrupt_while_writing_renders_nothing(page: Page, page_always: Page) -> None:
    page.host.state.interrupted = True
    found = page.run(["promptadapt-sd", "auto", 4])
    assert (found.images, page.host.rendered) == ([], [])
    page_always.host.state.interrupted = True
    found = page_always.always([True])
    assert (found.images, found.all_prompts) == ([], ["a cat on a roof"])


def test_a_skip_while_writing_renders_the_plain_input(page: Page) -> None:
    page.host.state.skipped = True
    found = page.run()
    assert found.all_prompts == ["a cat on a roof"]
    assert page.host.state.skipped is False
    assert (
        webui.parse(found.infotexts[-1])["Prompt Adapt result"]
        == "json:" + json.dumps("left alone: skipped")
        or "left alone: skipped" in found.infotexts[-1]
    )


@pytest.mark.parametrize("button", ["interrupted", "stopping_generation"])
def test_an_interrupt_while_rendering_returns_what_there_is(page: Page, button: str) -> None:
    pytest.importorskip("open_clip")

    def after_two(p: Any) -> None:
        if len(page.host.rendered) == 2:
            setattr(page.host.state, button, True)

    page.host.on_render = after_two
    found = page.run(["promptadapt-sd", "auto", 3, -1, 75, "", "", True, 1, "same", "all"])
    assert len(page.host.rendered) == 2
    pictures = found.images[found.index_of_first_image :]
    assert len(pictures) == len(page.host.saved) == 2
    assert any("stopped" in line for line in found.comments)
    assert "Prompt Adapt scores" not in found.extra_generation_params


def test_the_progress_bar_counts_writing_and_every_pass(page: Page) -> None:
    seen = []
    page.host.on_render = lambda p: seen.append((page.host.state.job_no, page.host.state.textinfo))
    page.run(["promptadapt-sd", "auto", 2, -1, 75, "", "", True, 1, "different"], n_iter=2)
    assert page.host.state.job_count == 3
    assert seen == [(1, "Prompt Adapt: rendering 1 of 2"), (2, "Prompt Adapt: rendering 2 of 2")]
    page.run(n_iter=3, enable_hr=True)
    assert page.host.state.job_count == 1 + 3 * 2
    assert page.host.state.job_no == 1 + 3  # the stand-in counts no second passes


def test_hires_fix_gets_the_same_words(page: Page) -> None:
    for hires in ("", "a cat on a roof"):
        found = page.run(enable_hr=True, hr_prompt=hires)
        assert page.host.rendered[-1].all_hr_prompts == found.all_prompts
    page.run(enable_hr=True, hr_prompt="another text")
    assert page.host.rendered[-1].all_hr_prompts == ["another text"]


def test_an_empty_prompt_stays_empty(page: Page, page_always: Page) -> None:
    for found in (page.run(prompt=""), page_always.always([True], prompt="  ")):
        assert found.all_prompts[0].strip() == ""
        assert "it is empty" in found.infotexts[-1]


def test_the_models_are_dropped_by_the_button_and_with_the_script(page: Page) -> None:
    page.run()
    assert "policy" in page.module.unload_models()
    assert "nothing" in page.module.unload_models()
    page.run()
    for callback in page.host.callbacks["script_unloaded"]:
        callback()
    assert "nothing" in page.module.unload_models()


def test_what_is_missing_is_told_and_the_script_is_there(tmp_path: Path) -> None:
    page = Page(tmp_path)
    page.module.missing = lambda: "torch is missing"
    with gr.Blocks():
        assert len(page.tabs[0].script("Prompt Adapt").ui(False)) == len(LABELS)
    with pytest.raises(ValueError, match="torch is missing"):
        page.run()
    told, _, _ = page.module.preview(["policy"], False, "a cat")
    assert "torch is missing" in told


def test_a_policy_folder_deleted_meanwhile_is_named(page: Page, tmp_path: Path) -> None:
    import shutil

    source = FOLDER / "promptadapt_core" / "policies" / "promptadapt-sd"
    shutil.copytree(source, tmp_path / "models" / "promptadapt" / "mine")
    assert page.run(["mine"]).all_prompts == [EXPECTED["a cat on a roof"]]
    shutil.rmtree(tmp_path / "models" / "promptadapt" / "mine")
    with pytest.raises(ValueError, match="there is no policy 'mine'"):
        page.run(["mine"])
    assert page.run().all_prompts == [EXPECTED["a cat on a roof"]]


@pytest.fixture
def client(page: Page) -> TestClient:
    app = fastapi.FastAPI()
    for callback in page.host.callbacks["app_started"]:
        callback(None, app)
    return TestClient(app)


def test_the_api_lists_adapts_and_scores(client: TestClient) -> None:
    import base64
    import io

    listed = client.get("/promptadapt/v1/policies").json()
    assert listed["policies"][0] == {"name": "promptadapt-sd", "default": True}
    request = {"user_input": "a cat on a roof", "seed": 7}
    found = client.post("/promptadapt/v1/adapt", json=request).json()
    candidate = found["adaptations"][0]["candidates"][0]
    assert candidate["adapted_prompt"] == EXPECTED["a cat on a roof"]
    both = client.post("/promptadapt/v1/adapt", json={"user_input": list(EXPECTED), "seed": 7})
    texts = [one["candidates"][0]["adapted_prompt"] for one in both.json()["adaptations"]]
    assert texts == list(EXPECTED.values())
    pytest.importorskip("open_clip")
    pictures = []
    for text in ("a", "b"):
        with io.BytesIO() as file:
            webui.painted(text, 1).save(file, "PNG")
            pictures.append(base64.b64encode(file.getvalue()).decode())
    request = {"images": pictures, "user_input": "a red house"}
    scored = client.post("/promptadapt/v1/score", json=request).json()
    assert sorted(scored["order"]) == [0, 1]
    assert scored["scores"][scored["order"][0]]["rank"] == 1


@pytest.mark.parametrize(
    ("path", "request_", "reason"),
    [
        ("adapt", None, "request: expected a JSON object"),
        ("adapt", ["a cat"], "request: expected a JSON object, got list"),
        ("adapt", {}, "user_input: expected a text"),
        ("adapt", {"user_input": 3}, "user_input: expected a text"),
        ("adapt", {"user_input": "a cat", "policy": "../x"}, "there is no policy '../x'"),
        ("adapt", {"user_input": "a cat", "sed": 3}, "sed: no such field"),
        ("adapt", {"user_input": "a cat", "seed": "3"}, "seed: expected int"),
        ("score", {"images": ["no"], "user_input": "a cat"}, "picture 1 is not a picture"),
        ("score", {"images": [], "user_input": "a cat"}, "images: expected one or more"),
        ("score", {"images": [], "user_input": "a cat", "scorer": "x"}, "no scorer 'x'"),
    ],
)
def test_the_api_refuses_with_a_sentence(
    client: TestClient, path: str, request_: dict[str, Any], reason: str
) -> None:
    pytest.importorskip("open_clip")
    answer = client.post(f"/promptadapt/v1/{path}", json=request_)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]


def test_the_api_is_as_guarded_as_the_hosts(page: Page) -> None:
    callback = page.host.callbacks["app_started"][0]
    page.host.cmd_opts.api_auth = "me:secret,you:other"
    app = fastapi.FastAPI()
    callback(None, app)
    client = TestClient(app)
    assert client.get("/promptadapt/v1/policies").status_code == 401
    assert client.get("/promptadapt/v1/policies", auth=("me", "other")).status_code == 401
    assert client.get("/promptadapt/v1/policies", auth=("you", "other")).status_code == 200
    page.host.cmd_opts.api = False
    app = fastapi.FastAPI()
    callback(None, app)
    assert TestClient(app).get("/promptadapt/v1/policies").status_code == 404


def test_a_stranger_who_imports_nodes_after_us_finds_none(tmp_path: Path) -> None:
    before = list(sys.path)
    try:
        Page(tmp_path, keeps_path=True)
        assert str(FOLDER) in sys.path
        with pytest.raises(ModuleNotFoundError, match="No module named 'nodes'"):
            importlib.import_module("nodes")
    finally:
        sys.path[:] = before
        sys.modules.pop("nodes", None)


def test_it_registers_with_hosts_that_know_the_public_calls_only(tmp_path: Path) -> None:
    host = webui.Host(tmp_path)
    del host.modules["script_callbacks"]["add_callback"]
    host.install()
    module = host.load(FOLDER, False)
    registered = {name: callbacks for name, callbacks in host.callbacks.items() if callbacks}
    assert set(registered) == set(webui.CALLBACKS)
    assert registered["script_unloaded"] == [module.unload_models]
