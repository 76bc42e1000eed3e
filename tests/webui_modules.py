"""A small stand-in for the `modules` package of Automatic1111 and Forge. Not a test itself.

It loads a script as these hosts do, hands out arguments as they do, and renders pictures of one
colour. gradio and fastapi are the real ones.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import random
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from PIL import Image

# How the hosts read what they wrote: modules/infotext_utils.py of Automatic1111 1.10.1.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SIZE = re.compile(r"^(\d+)x(\d+)$")
CALLBACKS = ("ui_settings", "before_ui", "infotext_pasted", "app_started", "script_unloaded")


def parse(text: str) -> dict[str, Any]:
    """The pairs of a picture's text, and its prompt as "Prompt"."""
    *lines, last = text.strip().split("\n")
    found: dict[str, Any] = {}
    for key, value in PAIR.findall(last):
        if value[0] == value[-1] == '"':
            value = json.loads(value)
        size = SIZE.match(value)
        found.update({f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value})
    return {**found, "Prompt": "\n".join(lines)}


def quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(m in text for m in ",:\n") else text


class Script:
    """The base of the host's scripts."""

    args_from = args_to = filename = name = infotext_fields = None
    alwayson = False

    def show(self, is_img2img):
        return True

    def ui(self, is_img2img):
        return []

    def process(self, p, *args):
        pass

    def elem_id(self, item_id):
        tab = "img2img" if self.is_img2img else "txt2img"
        return f"script_{tab}_{re.sub(r'[^a-z_0-9]', '', self.title().lower())}_{item_id}"


class Runner:
    """The scripts of one tab."""

    def __init__(self, classes, is_img2img):
        self.scripts, self.inputs = [], [None]
        for kind in classes:
            script = kind()
            script.is_img2img, script.is_txt2img = is_img2img, not is_img2img
            visibility = script.show(is_img2img)
            script.alwayson = visibility is ALWAYS
            if visibility:
                self.scripts.append(script)

    def setup_ui(self):
        """Always-on scripts first, as in the host."""
        for script in sorted(self.scripts, key=lambda one: not one.alwayson):
            script.args_from = len(self.inputs)
            script.controls = script.ui(script.is_img2img)
            self.inputs += script.controls
            script.args_to = len(self.inputs)

    def defaults(self):
        return [0, *(control.value for control in self.inputs[1:])]

    def arguments(self, title, given):
        """As the API puts a request's script_args in: by slice, so that short ones move others."""
        values = self.defaults()
        script = self.script(title)
        if given is not None:
            values[script.args_from : script.args_to] = given
        return values

    def script(self, title):
        return next(one for one in self.scripts if one.title().lower() == title.lower())

    def process(self, p):
        for script in self.scripts:
            if script.alwayson:
                script.process(p, *p.script_args[script.args_from : script.args_to])


ALWAYS = object()


class Processing:
    """A job: only what scripts touch."""

    def __init__(self, **given):
        self.prompt, self.negative_prompt, self.styles = "", "", []
        self.seed = self.subseed = -1
        self.subseed_strength, self.batch_size, self.n_iter, self.iteration = 0, 1, 1, 0
        self.enable_hr, self.hr_prompt, self.is_api = False, "", False
        self.do_not_save_grid = self.do_not_save_samples = False
        self.outpath_samples, self.comments, self.extra_generation_params = "", {}, {}
        self.scripts, self.script_args, self.init_images = None, [], []
        self.all_prompts = self.all_negative_prompts = self.all_seeds = self.all_subseeds = None
        self.__dict__.update(given)

    def comment(self, text):
        self.comments[text] = 1


class Processed:
    def __init__(
        self, p, images_list, seed=-1, info="", subseed=None, all_prompts=None,
        all_negative_prompts=None, all_seeds=None, all_subseeds=None, index_of_first_image=0,
        infotexts=None,
    ):  # fmt: skip
        self.images, self.seed, self.info, self.subseed = images_list, seed, info, subseed
        self.all_prompts = all_prompts or p.all_prompts or [p.prompt]
        self.all_negative_prompts = all_negative_prompts or p.all_negative_prompts or [""]
        self.all_seeds = all_seeds or p.all_seeds or [seed]
        self.all_subseeds = all_subseeds or p.all_subseeds or [subseed]
        self.index_of_first_image = index_of_first_image
        self.infotexts = infotexts or [info] * len(images_list)
        self.comments = list(p.comments)
        self.extra_generation_params = p.extra_generation_params


class Host:
    """The stand-in. shared, processing and so on are its modules."""

    def __init__(self, models: Path):
        self.rendered: list[Any] = []
        self.saved: list[str] = []
        self.on_render = lambda p: None
        self.callbacks: dict[str, list] = {name: [] for name in CALLBACKS}
        state = SimpleNamespace(
            interrupted=False, skipped=False, stopping_generation=False, textinfo=None, job_no=0,
            job_count=-1, sampling_step=0, sampling_steps=0,
        )  # fmt: skip
        self.state = state
        self.opts = SimpleNamespace(return_grid=True, samples_save=True, samples_format="png",
                                    enable_prompt_comments=True)  # fmt: skip
        self.opts.add_option = lambda name, info: setattr(self.opts, name, info.default)
        self.cmd_opts = SimpleNamespace(api=True, nowebui=False, api_auth=None)
        styles = SimpleNamespace(
            apply_styles_to_prompt=lambda text, styles: ", ".join([text, *styles])
        )
        self.modules = {
            "scripts": {"Script": Script, "AlwaysVisible": ALWAYS, "scripts_data": [],
                        "basedir": lambda: self.basedir},
            "shared": {"state": state, "opts": self.opts, "cmd_opts": self.cmd_opts,
                       "prompt_styles": styles, "OptionInfo": OptionInfo},
            "processing": {"Processed": Processed, "process_images": self.process_images,
                           "fix_seed": fix_seed},
            "images": {"image_grid": lambda shown: Image.new("RGB", (8, 8)),
                       "save_image": self.save_image,
                       "read_info_from_image": lambda image: (image.info.get("parameters"), {})},
            "infotext_utils": {"parse_generation_parameters": lambda text, skipped: parse(text)},
            "paths": {"models_path": str(models)},
            "devices": {"get_device_for": lambda task: "cpu", "torch_gc": lambda: None},
            "script_callbacks": {
                f"on_{name}": functools.partial(self.register, name) for name in CALLBACKS
            } | {"add_callback": self.add_callback, "callback_map": {
                f"callbacks_{name}": self.callbacks[name] for name in CALLBACKS
            }},
        }  # fmt: skip

    def add_callback(self, callbacks, function, *, name=None, category, filename):
        assert callbacks is self.callbacks[category]
        assert Path(filename).name == "promptadapt.py"
        callbacks.append(function)

    def register(self, name, callback):
        self.callbacks[name].append(callback)

    def install(self):
        package = sys.modules["modules"] = ModuleType("modules")
        package.__path__ = []
        for name, content in self.modules.items():
            module = sys.modules[f"modules.{name}"] = ModuleType(f"modules.{name}")
            module.__dict__.update(content)
            setattr(package, name, module)

    def load(self, folder: Path, keeps_path: bool) -> ModuleType:
        """The extension's script, as the host loads it. keeps_path: Forge leaves the folder of an
        extension on sys.path."""
        self.basedir = str(folder)
        path = folder / "scripts" / "promptadapt.py"
        before = list(sys.path)
        sys.path.insert(0, str(folder))
        try:
            spec = importlib.util.spec_from_file_location(path.name, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            if not keeps_path:
                sys.path[:] = before
        for callback in self.callbacks["ui_settings"]:
            callback()
        return module

    def script_classes(self, module):
        kinds = [one for one in vars(module).values() if isinstance(one, type)]
        return [one for one in kinds if issubclass(one, Script)]

    def process_images(self, p):
        """One call of the host's renderer, in its order."""
        seed, subseed = fixed(p.seed), fixed(p.subseed)
        if len(p.init_images) > p.batch_size:
            raise RuntimeError(f"bad number of images passed: {len(p.init_images)}")
        typed = p.prompt if isinstance(p.prompt, list) else [p.prompt] * p.batch_size * p.n_iter
        styled = sys.modules["modules.shared"].prompt_styles.apply_styles_to_prompt
        p.all_prompts = [styled(text, p.styles) for text in typed]
        if p.enable_hr:
            hires = p.hr_prompt or p.prompt
            hires = hires if isinstance(hires, list) else [hires] * len(typed)
            p.all_hr_prompts = [styled(text, p.styles) for text in hires]
        number = range(len(typed))
        p.all_seeds = [seed + (i if p.subseed_strength == 0 else 0) for i in number]
        p.all_subseeds, p.all_negative_prompts = [subseed + i for i in number], [""] * len(typed)
        if self.opts.enable_prompt_comments:  # a script of the host's, the first of all
            p.all_prompts = [without_comments(text) for text in p.all_prompts]
        p.main_prompt = p.all_prompts[0]
        if p.scripts is not None:
            p.scripts.process(p)
        self.rendered.append(p)
        shown, told = [], []
        for iteration in range(p.n_iter):
            p.iteration = iteration
            if self.state.interrupted or self.state.stopping_generation:
                break
            self.on_render(p)
            start = p.iteration * p.batch_size
            prompts = p.all_prompts[start : start + p.batch_size]
            for i, text in enumerate(prompts):
                image = painted(text, p.all_seeds[start + i])
                told.append(infotext(p, prompts, i, p.all_seeds[start + i]))
                image.info["parameters"] = told[-1]
                shown.append(image)
            self.state.job_no += 1
        told = told or [infotext(p, p.all_prompts, 0, p.all_seeds[0])]
        first = int(len(shown) > 1 and not p.do_not_save_grid)
        if first:
            of_grid = infotext(p, prompts, 0, p.all_seeds[0], use_main_prompt=True)
            shown, told = [Image.new("RGB", (8, 8)), *shown], [of_grid, *told]
        if not p.do_not_save_samples:
            self.saved += told[first:]
        return Processed(p, shown, p.all_seeds[0], told[0], index_of_first_image=first,
                         infotexts=told)  # fmt: skip

    def save_image(self, image, path, basename, seed, prompt, extension, info, p):
        self.saved.append(info)


class OptionInfo:
    def __init__(self, default, label, component=None, component_args=None, section=None):
        self.default, self.label, self.section = default, label, section

    def needs_reload_ui(self):
        return self


def painted(text, seed):
    """A picture that differs with text and seed."""
    digest = hashlib.sha256(f"{text} {seed}".encode()).digest()
    return Image.new("RGB", (64, 64), tuple(digest[:3]))


def fixed(seed):
    return random.Random(0).randrange(4294967294) if seed == -1 else seed


def fix_seed(p):
    p.seed, p.subseed = fixed(p.seed), fixed(p.subseed)


def without_comments(text):
    return re.sub(r"#[^\n]*(\n|$)", "\n", re.sub(r"(^|\n)#[^\n]*(\n|$)", "\n", text))


def infotext(p, all_prompts, index, seed, use_main_prompt=False):
    """As the host's create_infotext; index counts within all_prompts."""
    values = {"Steps": 2, "Sampler": "Euler", "Seed": seed, **p.extra_generation_params}
    for key, value in values.items():
        if callable(value):
            values[key] = value(**{**locals()})
    pairs = ", ".join(f"{key}: {quote(v)}" for key, v in values.items() if v is not None)
    prompt = p.main_prompt if use_main_prompt else all_prompts[index]
    return f"{prompt}\n{pairs}, Version: v1.10.1"
