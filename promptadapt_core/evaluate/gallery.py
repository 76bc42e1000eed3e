"""Pictures side by side: the first user inputs of each domain, one column a row of the evaluation.

Rendered after everything is measured, kept as PNG files beside the report, and put into the page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .. import runs
from ..decoding import Stopped
from ..images import ImageGenerator
from ..settings import SettingsError
from .measured import Measured
from .scoring import Plain, ShouldStop, chunks
from .settings import BEST_OF_N

FOLDER_NAME = "pictures"
SHOWN_PIXELS = 128  # of the width on the page
MOST_PIXELS = 256  # kept of it; twice as much for fine screens
AT_ONCE = 32
STYLE = f"""
.gallery td {{ vertical-align: top; }} .gallery td + td {{ max-width: {SHOWN_PIXELS}px; }}
.gallery div {{ font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere; }}
""".strip()  # of the page that shows it


class Gallery:
    """cells: for each (place of the user input, name of the row) the adapted prompt and the file
    of its picture, None where it could not be rendered."""

    def __init__(self, cells: dict[tuple[int, str], tuple[str, Path | None]]):
        self.cells = cells

    def html_of(self, measured: Measured, domain: str) -> str:
        """A table of the domain's pictures; "" where none is shown."""
        places = [
            place
            for place in measured.inputs.places_of(domain)
            if any(shown == place for shown, _ in self.cells)
        ]
        if not places:
            return ""
        names = [row.plan.name for row in measured.rows]
        lines = ["<tr><th>user input</th>" + "".join(f"<th>{_text(n)}</th>" for n in names)]
        for place in places:
            cells = [f"<td>{_text(measured.inputs.rows[place].user_input)}</td>"]
            for row in measured.rows:
                cells.append(self._cell(place, row.plan.name, measured))
            lines.append("<tr>" + "".join(cells) + "</tr>")
        lines[0] += "</tr>"
        rows = "\n".join(lines)
        return f'<div class="scroll"><table class="gallery">\n{rows}\n</table></div>'

    def _cell(self, place: int, name: str, measured: Measured) -> str:
        prompt, path = self.cells.get((place, name), ("", None))
        if not prompt:
            return "<td></td>"
        picture = "no picture" if path is None else _img(path, prompt)
        row = measured.row(name)
        reward = row.values["reward"][0, place] if row is not None else np.nan
        told = f"reward {reward:.2f}" if np.isfinite(reward) else ""
        return f'<td>{picture}<div>{_text(prompt)}</div><div class="note">{told}</div></td>'


def make_gallery(
    measured: Measured,
    plain: dict[str, Plain],
    seeds: dict[str, int],
    generator: ImageGenerator,
    out: Path,
    num_shown: int,
    should_stop: ShouldStop,
    report: runs.Reporter,
) -> Gallery:
    """seeds: the first seed of each user input; best_of_n shows the seed that it chose. Of a row
    with several training seeds the first is shown. SettingsError("out", ...) where the disk
    refuses."""
    wanted: dict[tuple[int, str], tuple[str, int]] = {}
    for domain in measured.inputs.domains:
        places = [
            place
            for place in measured.inputs.places_of(domain)
            if measured.inputs.rows[place].user_input in plain
        ]
        for place in places[:num_shown]:
            text = measured.inputs.rows[place].user_input
            for row in measured.rows:
                prompt = row.prompts[0].adapted_prompts[place]
                best = row.plan.name == BEST_OF_N
                if prompt is not None:
                    seed = plain[text].best_seed if best else seeds[text]
                    wanted[place, row.plan.name] = (prompt, seed)
    folder = out / FOLDER_NAME
    paths = {pair: folder / _name(generator.identity, *pair) for pair in set(wanted.values())}
    missing = [pair for pair in dict.fromkeys(wanted.values()) if not paths[pair].is_file()]
    done = 0
    for part in chunks(missing, AT_ONCE):
        for pair, pixels in zip(part, _rendered(generator, part, should_stop), strict=True):
            if pixels is not None:
                _save(pixels, paths[pair])
        done += len(part)
        report.step(done, len(missing), {})
    return Gallery(
        {
            key: (pair[0], paths[pair] if paths[pair].is_file() else None)
            for key, pair in wanted.items()
        }
    )


def _rendered(
    generator: ImageGenerator, pairs: Sequence[tuple[str, int]], should_stop: ShouldStop
) -> list[np.ndarray | None]:
    """A picture for each pair, None for one that fails."""
    texts, seeds = [text for text, _ in pairs], [seed for _, seed in pairs]
    try:
        return list(generator.generate(texts, seeds, should_stop=should_stop))
    except Stopped:
        raise
    except Exception:  # whatever a renderer can raise for one prompt
        if len(pairs) == 1:
            return [None]
        return [_rendered(generator, [pair], should_stop)[0] for pair in pairs]


def _name(identity: str, text: str, seed: int) -> str:
    key = f"{identity}\n{seed}\n{text}".encode("utf-8", "surrogatepass")
    return f"{hashlib.sha256(key).hexdigest()[:24]}.png"


def _save(pixels: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.width > MOST_PIXELS:
        height = max(round(picture.height * MOST_PIXELS / picture.width), 1)
        picture = picture.resize((MOST_PIXELS, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.replace_file(path, lambda partial: _write(partial, buffer.getvalue()))
    except OSError as error:
        raise SettingsError("out", f"{path} cannot be written ({error.strerror})") from None


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _img(path: Path, prompt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img width="{SHOWN_PIXELS}" alt="{_text(prompt)}" src="data:image/png;base64,{data}">'


def _text(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))
