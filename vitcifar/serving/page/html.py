"""The HTML of the page: heading, status and the cards of a prediction. All text is escaped here; page.css styles it."""

from collections.abc import Sequence
from html import escape

from vitcifar.errors import listed
from vitcifar.inference.session import Prediction
from vitcifar.release.manifest import served_evaluation
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import PoolState

TOP_K = 5  # classes with a bar
NUM_CLASSES_LISTED = 10
FOOTER = "Images are classified on the machine that serves this page, sent nowhere else, and deleted within the hour."


def percent(value: float) -> str:
    """A probability as text: 97.3%, and 100% or 0% only when it is exactly that."""
    if 0.9995 <= value < 1:
        return "> 99.9%"
    if 0 < value < 0.0005:
        return "< 0.1%"
    return f"{value:.1%}"


def milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def heading(model_name: str, class_names: Sequence[str]) -> str:
    """The model's name and its classes."""
    names = escape(listed(class_names, NUM_CLASSES_LISTED))
    return f'<h1>{escape(model_name)}</h1><p class="lead">{len(class_names)} classes: {names}</p>'


def status(state: PoolState, seen_serial: int, selected: LoadedModel | None = None) -> str:
    """The version that predicts, any problem, and, for a page that showed an older state, the move of the alias."""
    model = selected or state.current
    accuracy = served_evaluation(model.manifest).get("accuracy")
    quiet = "" if accuracy is None else f'<span class="badge quiet">{percent(accuracy)} test accuracy</span>'
    badges = f"{_aliases(state, model)} {quiet}"
    if model.version != state.current.version:
        badges += f' <span class="small">selected here; version {state.current.version} is the default</span>'
    lines = [f'<p class="now"><span class="dot"></span><b>{escape(model.name)}</b> {badges}</p>']
    if state.problem:
        lines.append(f'<p class="note problem" role="alert">{escape(state.problem)}</p>')
    elif state.moved and seen_serial not in (0, state.serial):
        lines.append(f'<p class="note" role="status">{escape(state.moved)}</p>')
    return "".join(lines)


def prediction_card(prediction: Prediction, model: LoadedModel, state: PoolState) -> str:
    """The card of a prediction: label, confidence, bars, timing and the version."""
    bars = "".join(
        f'<li><span class="name">{escape(name)}</span><span class="track"><i style="width:{100 * value:.2f}%"></i>'
        f'</span><span class="value">{percent(value)}</span></li>'
        for name, value in list(prediction.probabilities.items())[:TOP_K]
    )
    confidence = times = ""
    threshold = model.manifest.threshold  # one line for every prediction: the height of the card does not change
    if threshold is None:
        confidence = '<p class="note">Not confident: this version is never confident</p>'
    elif threshold:
        confident = model.manifest.is_confident(prediction.probability)
        style, verdict = ("note quiet", "Confident: at least") if confident else ("note", "Not confident: below")
        confidence = f'<p class="{style}">{verdict} this version\'s threshold of {percent(threshold)}</p>'
    if timing := prediction.timing:
        named = (("Decode", timing.decode_ms), ("Inference", timing.inference_ms), ("Total", timing.total_ms))
        items = "".join(f"<div><dt>{name}</dt><dd>{milliseconds(value)}</dd></div>" for name, value in named)
        times = f'<dl class="times">{items}</dl>'
    return (
        f'<section class="card prediction"><p class="small">Most likely</p>'
        f'<p class="verdict"><b>{escape(prediction.label)}</b><span>{percent(prediction.probability)}</span></p>'
        f'{confidence}<ol class="bars">{bars}</ol>{times}'
        f'<p class="by">Predicted by <b>{escape(model.name)}</b> {_aliases(state, model)}</p></section>'
    )


def empty_card(model: LoadedModel, state: PoolState) -> str:
    """The card when there is no image."""
    return (
        '<section class="card empty"><p class="verdict"><b>No image yet</b></p>'
        "<p>Choose, drop or paste an image, or take one with the camera.</p>"
        f'<p class="by"><b>{escape(model.name)}</b> is ready {_aliases(state, model)}</p></section>'
    )


def error_card(message: str) -> str:
    """The card of an image that cannot be classified."""
    return (
        f'<section class="card error" role="alert"><p class="small">No prediction</p><p>{escape(message)}</p></section>'
    )


def _aliases(state: PoolState, model: LoadedModel) -> str:
    return " ".join(f'<span class="badge">{escape(alias)}</span>' for alias in state.aliases(model.version))
