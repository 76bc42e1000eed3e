"""The Automatic1111 and Forge entry: two scripts, settings, axes for X/Y/Z plot, an HTTP API.

The host runs this file by its path and keeps our folder on sys.path for only so long; what needs
torch is imported when it is used. Every rule lives in promptadapt_core.
"""

from __future__ import annotations

import functools
import html
import importlib.util
from pathlib import Path

import gradio as gr
import modules.scripts as scripts
from fastapi import Body, Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import devices, images, paths, processing, script_callbacks, shared

from promptadapt_core import controls, infotext, job_settings, jobs, model_folders
from promptadapt_core.settings import SettingsError

TITLE = infotext.TITLE  # requests and pictures name the scripts by their titles: never change them
ALWAYS_TITLE = f"{TITLE} (always on)"
ROOT = Path(scripts.basedir())
AXES = "promptadapt_axes"  # attribute of a job: the settings that X/Y/Z plot puts in
SEEN = "promptadapt_seen"  # attribute of a job that the script which is always on has had
MAKERS = {
    controls.DROPDOWN: gr.Dropdown,
    controls.SLIDER: gr.Slider,
    controls.NUMBER: functools.partial(gr.Number, precision=0),
    controls.CHECKBOX: gr.Checkbox,
    controls.TEXT: functools.partial(gr.Textbox, lines=2),
}


def folders():
    """Where models lie besides the bundled ones."""
    given = getattr(shared.cmd_opts, "promptadapt_models_path", None)
    return [Path(given) if given else Path(paths.models_path) / "promptadapt"]


def device():
    """The name of the device of our models: the CPU, or what the host chooses."""
    by_host = getattr(shared.opts, "promptadapt_device", "cpu") != "cpu"
    return str(devices.get_device_for("promptadapt")) if by_host else "cpu"


@functools.lru_cache(maxsize=1)
def missing():
    """What install.py misses in this Python, "" for nothing."""
    spec = importlib.util.spec_from_file_location("promptadapt_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "; ".join(module.complaints())


def models():
    if missing():
        raise SettingsError("promptadapt", missing())
    from promptadapt_core.loaded_models import MODELS

    return MODELS


def stopped():
    return shared.state.interrupted or shared.state.stopping_generation


def read(text):
    """What the host reads of a prompt."""
    hides = getattr(shared.opts, "enable_prompt_comments", False)
    return jobs.without_comments(text) if hides else text


def always_shown():
    return bool(getattr(shared.opts, "promptadapt_always", False))


def fitted(p, settings):
    """The settings for a job; None where there is nothing to adapt. The host's button that draws a
    picture of the gallery larger gives us that picture."""
    if getattr(p, "firstpass_image", None) is None or not getattr(p, "txt2img_upscale", False):
        return settings
    from modules import infotext_utils  # as old as that button

    told, _ = images.read_info_from_image(p.firstpass_image)
    params = infotext_utils.parse_generation_parameters(told or "", [])
    return infotext.for_upscaling(settings, read(p.prompt), params)


def adapted(user_inputs, settings, image_seed, num_images):
    """An AdaptedInput for each; None once the user interrupts."""
    held, state = models(), shared.state
    state.textinfo = f"{TITLE}: {settings.policy} is writing"
    return held.adapt_job(user_inputs, settings, image_seed, num_images, state, folders(), device())


class Page:
    """What both scripts show. names: the settings that have a control."""

    prompt_box = seed_box = None

    def after_component(self, component, **kwargs):
        tab = "img2img" if self.is_img2img else "txt2img"
        if kwargs.get("elem_id") == f"{tab}_prompt":
            self.prompt_box = component
        elif kwargs.get("elem_id") == f"{tab}_seed":
            self.seed_box = component

    def build(self):
        """The controls, in the order of `names`."""
        if missing():
            gr.HTML(f"<p>{TITLE} cannot adapt yet: {html.escape(missing())}</p>")
        choices = {
            "policy": model_folders.policy_names(folders()),
            "scorer": model_folders.scorer_names(folders()),
        }
        made = {}
        for row in controls.ROWS:
            names = [name for name in row if name in self.names]
            with gr.Row(visible=bool(names)):
                for one in controls.job_controls(names, choices):
                    make, elem_id = MAKERS[one.kind], self.elem_id(one.name)
                    made[one.name] = make(label=one.label, elem_id=elem_id, **one.options)
        self.infotext_fields = [
            (made[name], functools.partial(infotext.control_of, name=name)) for name in self.names
        ]
        made = [made[name] for name in self.names]
        self.build_preview(made)
        return made

    def build_preview(self, made):
        with gr.Row():
            show, use, unload = (
                gr.Button(label, elem_id=self.elem_id(label.split()[0].lower()))
                for label in ("Preview", "Use this one", "Unload models")
            )
        shown = gr.HTML(elem_id=self.elem_id("candidates"))
        chosen = gr.Radio(label="Candidate", choices=[], elem_id=self.elem_id("chosen"))
        seed_used = gr.State(job_settings.IMAGE_SEED)
        boxes = [box for box in (self.prompt_box, self.seed_box) if in_this_page(box)]
        if boxes[:1] == [self.prompt_box]:
            handler = functools.partial(preview, self.names, len(boxes) == 2)
            show.click(handler, inputs=boxes + made, outputs=[shown, chosen, seed_used])
        rank, seed = (made[self.names.index(name)] for name in ("rank", "seed"))
        use.click(use_candidate, inputs=[chosen, seed_used], outputs=[rank, seed])
        unload.click(unload_models, inputs=[], outputs=[shown])


def in_this_page(component):
    """Whether a control of the host's belongs to the page that is being built: an API without a
    page asks for our controls too."""
    from gradio.context import Context

    known = getattr(Context.root_block, "blocks", None) or {}
    return component is not None and known.get(component._id) is component


def preview(names, has_seed, typed, *values):
    image_seed, values = (values[0], values[1:]) if has_seed else (None, values)
    try:
        held = models()
        from promptadapt_core import preview as previews

        found = previews.preview(held, read(typed), image_seed, values, names, folders(), device())
    except SettingsError as error:
        told = f"<p class='error'>{html.escape(str(error))}</p>"
        return told, gr.update(choices=[], value=None), job_settings.IMAGE_SEED
    return found.html, gr.update(choices=found.choices, value=found.choices[0]), found.seed


def use_candidate(choice, seed):
    """(rank, seed) for the controls; as they are where no candidate was shown."""
    return (controls.rank_of(choice), seed) if choice else (gr.update(), gr.update())


def unload_models():
    dropped = [] if missing() else models().unload()
    devices.torch_gc()
    return f"<p>unloaded: {' and '.join(dropped) or 'nothing was loaded'}</p>"


class PromptAdapt(Page, scripts.Script):
    """The script in the dropdown."""

    names = job_settings.NAMES

    def title(self):
        return TITLE

    def ui(self, is_img2img):
        return self.build()

    def run(self, p, *args):
        known = [one.args_to for one in getattr(p.scripts, "scripts", []) if one.args_to]
        num_missing = max(known) - len(p.script_args) if known else 0
        try:
            sent = job_settings.sent_arguments(args, len(self.names), num_missing)
            settings = fitted(p, job_settings.from_arguments(sent))
            return Job(p, settings).run() if settings else None
        except SettingsError as error:
            if getattr(p, "is_api", False):  # answered with a sentence, not with a trace
                raise HTTPException(status_code=422, detail=str(error)) from error
            raise


class Job:
    """One click on Generate, or one request, with the script of the dropdown."""

    def __init__(self, p, settings):
        processing.fix_seed(p)
        self.p, self.settings, self.user_input = p, settings, read(p.prompt)
        self.num_images = p.batch_size * p.n_iter
        self.scored = settings.keep_best != job_settings.KEEP_OFF

    def run(self):
        # before anything is rendered: it tells what is missing
        scorer = models().scorer(self.settings.scorer, folders(), device()) if self.scored else None
        self.count(jobs.num_batches(self.settings, self.num_images, self.p.n_iter))
        found = adapted([self.user_input], self.settings, self.p.seed, self.num_images)
        if found is None:
            return self.nothing()
        plan = jobs.renderings(self.settings, self.user_input, found[0].texts, self.num_images)
        shared.state.job_no = 1
        pictures, processed = [], None
        for number, rendering in enumerate(plan, 1):
            if stopped():
                break
            shared.state.textinfo = f"{TITLE}: rendering {number} of {len(plan)}"
            p = self.copy(rendering, found[0], alone=len(plan) == 1)
            processed = processing.process_images(p)
            pictures += jobs.pictures_of(rendering, p, processed)
        if not pictures or (len(plan) == 1 and not self.scored):
            return processed or self.nothing()
        return self.merged(self.kept(scorer, pictures) if self.scored else pictures)

    def nothing(self):
        return processing.Processed(self.p, [], self.p.seed, "")

    def count(self, num_batches):
        """True percentages: writing is one job, and so is every batch of every pass."""
        passes = 2 if getattr(self.p, "enable_hr", False) else 1
        shared.state.job_count, shared.state.job_no = 1 + passes * num_batches, 0
        shared.state.processing_has_refined_job_count = True

    def copy(self, rendering, found, alone):
        """The host's job for one rendering."""
        p = jobs.job_of(rendering, self.p, self.num_images)
        told = jobs.pairs_of(self.settings, found, rendering.rank, self.p.seed, self.num_images)
        p.extra_generation_params = {**self.p.extra_generation_params, "Script": TITLE, **told}
        p.do_not_save_grid = p.do_not_save_grid or not alone
        p.do_not_save_samples = p.do_not_save_samples or self.scored  # saved with their scores
        return p

    def kept(self, scorer, pictures):
        from promptadapt_core.keep_best import keep_best

        shared.state.textinfo = f"{TITLE}: scoring {len(pictures)} pictures"
        pictures, lines = keep_best(scorer, self.user_input, pictures, self.settings, stopped)
        for line in lines:
            self.p.comment(f"{TITLE}: {line}")
        for one in pictures if shared.opts.samples_save and not self.p.do_not_save_samples else []:
            images.save_image(
                one.image, self.p.outpath_samples, "", one.row["all_seeds"],
                one.row["all_prompts"], shared.opts.samples_format, info=one.infotext, p=one.job,
            )  # fmt: skip
        return pictures

    def merged(self, pictures):
        """One Processed of them all, with a grid where the host wants one."""
        shown, told = [one.image for one in pictures], [one.infotext for one in pictures]
        first = int(len(shown) > 1 and shared.opts.return_grid and not self.p.do_not_save_grid)
        if first:
            shown, told = [images.image_grid(shown), *shown], [told[0], *told]
        rows = {name: [one.row[name] for one in pictures] for name in jobs.ROW}
        merged = processing.Processed(
            pictures[0].job, shown, rows["all_seeds"][0], told[0], rows["all_subseeds"][0],
            index_of_first_image=first, infotexts=told, **rows,
        )  # fmt: skip
        if pictures[0].score:
            scores = {f"{TITLE} scores": [one.as_json() for one in pictures]}
            merged.extra_generation_params = {**merged.extra_generation_params, **scores}
        return merged


class PromptAdaptAlways(Page, scripts.Script):
    """The script that adapts every job, whatever makes it; there where a setting says so."""

    names = job_settings.ADAPTING_NAMES

    def title(self):
        return ALWAYS_TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible if always_shown() else False

    def ui(self, is_img2img):
        with gr.Accordion(ALWAYS_TITLE, open=False, elem_id=self.elem_id("accordion")):
            enabled = gr.Checkbox(label="Adapt every prompt", elem_id=self.elem_id("enabled"))
            made = self.build()
        self.infotext_fields.insert(0, (enabled, infotext.always_on_of))
        return [enabled, *made]

    def process(self, p, *args):
        axes = getattr(p, AXES, {})
        if getattr(p, SEEN, False):  # Loopback and the like render one job several times
            p.extra_generation_params = infotext.without_ours(p.extra_generation_params)
        setattr(p, SEEN, True)
        try:
            enabled, settings = job_settings.switched(args, self.names, axes)
            settings = fitted(p, settings)
            if enabled and settings and infotext.ORIGINAL not in p.extra_generation_params:
                self.adapt(p, settings)
        except SettingsError as error:
            p.comment(f"{ALWAYS_TITLE}: {error}")
            params = {infotext.FAILED: infotext.packed(str(error))}
            p.extra_generation_params = {**p.extra_generation_params, **params}

    def adapt(self, p, settings):
        typed = p.prompt if isinstance(p.prompt, list) else [p.prompt] * len(p.all_prompts)
        styled = functools.partial(shared.prompt_styles.apply_styles_to_prompt, styles=p.styles)
        inputs = jobs.inputs_of_images(map(read, typed), p.all_prompts, styled)
        different = list(dict.fromkeys(text for text, _ in inputs))
        found = adapted(different, settings, p.all_seeds[0], len(inputs))
        if found is None:
            return
        by_input = dict(zip(different, found, strict=True))
        chosen = jobs.texts_of_images(settings, inputs, by_input, p.all_seeds[0])
        texts = [one.text for one in chosen]
        if getattr(p, "enable_hr", False):
            p.all_hr_prompts = jobs.replaced(p.all_hr_prompts, p.all_prompts, texts)
        p.all_prompts, p.main_prompt = texts, texts[0]
        told = {infotext.ALWAYS_ON: "True", **infotext.of_images([one.pairs for one in chosen])}
        p.extra_generation_params = {**p.extra_generation_params, **told}


def on_ui_settings():
    make = functools.partial(shared.OptionInfo, section=("promptadapt", TITLE))
    always = make(False, f"Show {ALWAYS_TITLE}, which works with other scripts too")
    choices = {"choices": ["cpu", "as the host"]}
    where = make("cpu", f"Where {TITLE} runs its models", gr.Radio, choices)
    shared.opts.add_option("promptadapt_always", always.needs_reload_ui())
    shared.opts.add_option("promptadapt_device", where)


def on_before_ui():
    """Axes for X/Y/Z plot."""
    for script in scripts.scripts_data if always_shown() else []:
        if Path(script.path).name == "xyz_grid.py":
            add_axes(script.module)


def add_axes(xyz_grid):
    known = {option.label for option in xyz_grid.axis_options}
    choices = {
        "policy": functools.partial(model_folders.policy_names, folders()),
        "mode": functools.partial(controls.choices_of, "mode"),
    }
    for name in controls.AXES:
        label, kind = f"[{TITLE}] {controls.LABELS[name]}", str if name in choices else int
        option = xyz_grid.AxisOption(
            label, kind, functools.partial(put, name), choices=choices.get(name)
        )
        if label not in known:
            xyz_grid.axis_options.append(option)


def put(name, p, value, values):
    setattr(p, AXES, {**getattr(p, AXES, {}), name: value})


def on_app_started(demo, app):
    """The HTTP API; only where the host serves its own, and as guarded as that."""
    if not (shared.cmd_opts.api or shared.cmd_opts.nowebui):
        return
    guards = [Depends(authorised)] if shared.cmd_opts.api_auth else []
    for method, name in (("GET", "policies"), ("POST", "adapt"), ("POST", "score")):
        path = f"/promptadapt/v1/{name}"
        app.add_api_route(path, answer_to(name), methods=[method], dependencies=guards)


def authorised(sent: HTTPBasicCredentials = Depends(HTTPBasic())):  # noqa: B008
    if not controls.is_account(sent.username, sent.password, shared.cmd_opts.api_auth):
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})


def answer_to(name):
    def answer(request=Body(default=None)):  # noqa: B008
        try:
            held = models()
            from promptadapt_core import http_requests

            return http_requests.ANSWERS[name](held, request, folders(), device())
        except SettingsError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error

    return answer


def on_infotext_pasted(text, params):
    infotext.restore(params, always_shown())


for name, callback in (
    ("ui_settings", on_ui_settings), ("before_ui", on_before_ui), ("app_started", on_app_started),
    ("infotext_pasted", on_infotext_pasted), ("script_unloaded", unload_models),
):  # fmt: skip
    try:  # given our file's name, the host does not look for it on the stack for a quarter second
        known = script_callbacks.callback_map[f"callbacks_{name}"]
        script_callbacks.add_callback(known, callback, category=name, filename=__file__)
    except (AttributeError, KeyError, TypeError):  # another host
        getattr(script_callbacks, f"on_{name}")(callback)
