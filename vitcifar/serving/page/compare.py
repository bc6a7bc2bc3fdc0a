"""The tab Compare: two versions on the same images, side by side; how often they agree, and where they do not."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from vitcifar.inference.session import Prediction
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page.dropdown import build_dropdown, numbered_versions
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.html import bar, percent
from vitcifar.serving.page.images import Decoded, Part, build_images, build_skeleton, decode, describe, error_row, row

if TYPE_CHECKING:
    import gradio

TOP_K = 3  # classes with a bar
COLUMNS = (
    ("first", "First label"),
    ("firstp", "Probability"),
    ("second", "Second label"),
    ("secondp", "Probability"),
    ("agree", "Agree"),
)
# The numbers are counted by the script.
AGREEMENT = (
    '<div class="pictured"></div>'
    '<p class="agreement">Agreement so far: <b data-count="tr[data-agree=yes]">0</b> of '
    '<b data-count="tr[data-agree]">0</b> images</p>'
    '<label class="filter"><input type="checkbox" class="agreeing"> Also list images on which they agree</label>'
)


def build_compare(pool: ModelPool, seen: "gradio.Number", max_bytes: int) -> None:
    """The tab. `seen` changes when the registry does: the lists of versions follow it."""
    gradio = load_gradio()
    first, second = default_pair(pool)
    with gradio.Row(elem_classes="pair"):
        pair = [
            build_dropdown(numbered_versions(pool), value, label=label, elem_id=elem_id)
            for value, label, elem_id in (
                (first, "First version", "first-version"),
                (second, "Second version", "second-version"),
            )
        ]

    def answer(part: Part, specs: Sequence[str]) -> dict[str, Any]:
        return answer_compare(pool, part, specs[0], specs[-1])

    skeleton = build_skeleton(
        COLUMNS,
        action="Compare",
        name="Disagreements",
        above=AGREEMENT,
        below="Images on which the two versions disagree are listed here.",
        max_bytes=max_bytes,
    )
    shown = build_images(pool, answer, pair, skeleton=skeleton, elem_id="compare", max_bytes=max_bytes)
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    restarts = iter(range(1, 2**62))
    gradio.on([version.input for version in pair], lambda: {"restart": next(restarts)}, None, shown, **at_once)

    def follow(*values: Any) -> list[Any]:
        return [gradio.HTML(value, choices=numbered_versions(pool)) for value in values]

    seen.change(follow, pair, pair, **at_once)


def default_pair(pool: ModelPool) -> tuple[str, str]:
    """The version that serves and the newest other one; the same twice where there is one only."""
    current = pool.state.current.version
    other = next((version.number for version in pool.state.versions if version.number != current), current)
    return str(current), str(other)


def answer_compare(pool: ModelPool, part: Part, first: str, second: str) -> dict[str, Any]:
    """The rows of a part. An image is decoded once for both versions. Raises VitCifarError."""
    models = pool.get(first), pool.get(second)
    rows = []
    for number, image in enumerate(decode(part), part.start + 1):
        if not hasattr(image.pixels, "shape"):
            rows.append({"row": error_row(number, image, len(COLUMNS)), "line": "", "shown": ""})
            continue
        one, other = (model.classifier.predict(b"", image.name, read=image.read) for model in models)
        shown = side_by_side(image, models, (one, other))
        rows.append({"row": table_row(number, image, one, other), "line": "", "shown": shown})
    caption = f"{describe(models[0], pool.state)} and {describe(models[1], pool.state)}"
    if set(models[0].class_names) != set(models[1].class_names):
        caption += ", which know different classes"
    return {"rows": rows, "versions": [str(model.version) for model in models], "caption": caption}


def table_row(number: int, image: Decoded, one: Prediction, other: Prediction) -> str:
    agree = "yes" if one.label == other.label else "no"
    cells = "".join(
        f'<td>{escape(prediction.label)}</td><td class="number">{percent(prediction.probability)}</td>'
        for prediction in (one, other)
    )
    return row(
        number,
        image,
        f"{cells}<td>{agree}</td>",
        is_button=True,
        agree=agree,
        first=one.label,
        firstp=f"{one.probability:.9f}",
        second=other.label,
        secondp=f"{other.probability:.9f}",
    )


def side_by_side(
    image: Decoded, models: tuple[LoadedModel, LoadedModel], predictions: tuple[Prediction, Prediction]
) -> str:
    """The image and, for each version, its label and the bars of its most likely classes."""
    sides = []
    for model, prediction in zip(models, predictions, strict=True):
        bars = "".join(bar(escape(name), value) for name, value in list(prediction.probabilities.items())[:TOP_K])
        label = escape(prediction.label)
        sides.append(
            f'<section><h2>{escape(model.name)}</h2><p class="verdict"><b title="{label}">{label}</b> '
            f'<span>{percent(prediction.probability)}</span></p><ul class="bars">{bars}</ul></section>'
        )
    agree = len({prediction.label for prediction in predictions}) == 1
    verdict = '<span class="badge">agree</span>' if agree else '<span class="badge differ">disagree</span>'
    return (
        f"<figure>{image.thumbnail()}<figcaption>{escape(image.name)} {verdict}</figcaption></figure>{''.join(sides)}"
    )
