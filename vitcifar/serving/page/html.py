"""The HTML of the page: heading, status and the cards of a prediction. All text is escaped here; page.css styles it."""

from collections.abc import Sequence
from html import escape

import numpy as np

from vitcifar.errors import listed
from vitcifar.inference.session import Prediction
from vitcifar.release.manifest import Manifest, served_evaluation
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import PoolState

TOP_K = 5  # classes with a bar; the others are one more
NUM_CLASSES_LISTED = 10
MIN_SLOTS = 25  # bars in the plot of the last predictions
PYTHON_CALL = """import httpx

with open("cat.jpg", "rb") as file:
    response = httpx.post("http://ADDRESS/v1/predict", files={"image": file}AUTH)
response.raise_for_status()
for prediction in response.json()["predictions"]:
    print(prediction["label"], prediction["probabilities"])"""
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


def chance_level(manifest: Manifest) -> float:
    """The accuracy on the test images of always guessing their most frequent class."""
    counts = manifest.counts.get("test") or {}
    return max(counts.values()) / sum(counts.values()) if any(counts.values()) else 1 / len(manifest.class_names)


def accuracy_badge(manifest: Manifest) -> tuple[str, bool]:
    """The test accuracy beside that of chance, and whether it may be no better than chance."""
    evaluation, chance = served_evaluation(manifest), chance_level(manifest)
    accuracy = evaluation.get("accuracy")
    if accuracy is None:
        return "", False
    useless = evaluation.get("accuracy_low", accuracy) <= chance
    verdict = "no better than chance, " if useless else "chance "
    text = f"{percent(accuracy)} test accuracy ({verdict}{percent(chance)})"
    return f'<span class="badge {"warn" if useless else "quiet"}">{text}</span>', useless


def status(state: PoolState, seen_serial: int, selected: LoadedModel | None = None) -> str:
    """The version that predicts, any problem, and, for a page that showed an older state, the move of the alias."""
    model = selected or state.current
    accuracy, useless = accuracy_badge(model.manifest)
    badges = f"{_aliases(state, model)} {accuracy}"
    if model.version != state.current.version:
        badges += f' <span class="small">selected here; version {state.current.version} is the default</span>'
    dot = "dot warn" if useless or state.problem else "dot"
    lines = [f'<p class="now"><span class="{dot}"></span><b>{escape(model.name)}</b> {badges}</p>']
    lines.append('<p class="note problem unreachable" role="alert" hidden></p>')  # page.js, when no server answers
    if state.problem:
        lines.append(f'<p class="note problem" role="alert">{escape(state.problem)}</p>')
    elif state.moved and seen_serial not in (0, state.serial):
        lines.append(f'<p class="note moved" role="status">{escape(state.moved)}</p>')
    return "".join(lines)


def prediction_card(prediction: Prediction, model: LoadedModel, state: PoolState, times: Sequence[float] = ()) -> str:
    """The card of a prediction: label, confidence, bars, timing and the version; `times` of the last ones, in ms."""
    note, doubtful = confidence_note(prediction, model.manifest)
    label = escape(prediction.label)
    lead = "Perhaps" if doubtful else "Most likely"
    said = f"{lead} {prediction.label}, {percent(prediction.probability)}. {note if doubtful else ''}"
    return (
        f'<section class="card prediction{" weak" if doubtful else ""}" data-say="{escape(said)}">'
        f'<p class="small">{lead}</p>'
        f'<p class="verdict"><b title="{label}">{label}</b><span>{percent(prediction.probability)}</span></p>'
        f'<p class="note{"" if doubtful else " quiet"}">{escape(note)}</p>'
        f"{_bars(prediction.probabilities)}{_timing(prediction, times)}"
        f'<p class="by">Predicted by <b>{escape(model.name)}</b> {_aliases(state, model)}</p></section>'
    )


def confidence_note(prediction: Prediction, manifest: Manifest) -> tuple[str, bool]:
    """One line for every prediction, so that the card keeps its height; and whether to doubt the prediction."""
    threshold = manifest.threshold
    if prediction.out_of_distribution:
        return "Unlike the training images: do not rely on this", True
    if threshold is None:
        return "Not confident: this version is never confident", True
    if not threshold:
        return "This version has no threshold of confidence", False
    if manifest.is_confident(prediction.probability):
        return f"Confident: at least this version's threshold of {percent(threshold)}", False
    return f"Not confident: below this version's threshold of {percent(threshold)}", True


def _bars(probabilities: dict[str, float]) -> str:
    """A bar for each of the first classes, and one for the others, which opens them."""
    ranked = list(probabilities.items())
    shown = ranked if len(ranked) <= TOP_K + 1 else ranked[:TOP_K]
    others, rows = ranked[len(shown) :], "".join(bar(escape(name), value) for name, value in shown)
    if not others:
        return f'<ul class="bars">{rows}</ul>'
    total = bar(f"{len(others)} others", min(1.0, sum(value for _, value in others)), tag="span")
    hidden = "".join(bar(escape(name), value) for name, value in others)
    return (
        f'<ul class="bars">{rows}</ul><details class="others"><summary>{total}</summary>'
        f'<ul class="bars" tabindex="0" aria-label="The other classes">{hidden}</ul></details>'
    )


def bar(name: str, value: float, tag: str = "li") -> str:
    """A class, whose `name` is escaped, with its probability as a bar and as text."""
    return (
        f'<{tag} class="bar"><span class="name" title="{name}">{name}</span><span class="track">'
        f'<i style="width:{100 * value:.2f}%"></i></span><span class="value">{percent(value)}</span></{tag}>'
    )


def _timing(prediction: Prediction, times: Sequence[float]) -> str:
    if not (timing := prediction.timing):
        return ""
    named = (("Decode", timing.decode_ms), ("Inference", timing.inference_ms), ("Total", timing.total_ms))
    items = "".join(f"<div><dt>{name}</dt><dd>{milliseconds(value)}</dd></div>" for name, value in named)
    return f'<dl class="times">{items}</dl>{_plot(times) if times else ""}'


def _plot(times: Sequence[float]) -> str:
    """The total times of the last predictions as bars, the newest on the right, with lines at p50 and p95."""
    p50, p95 = (float(value) for value in np.percentile(times, (50, 95)))
    top = 1.25 * p95 or 1.0  # one slow prediction does not flatten the others
    width = 100 / max(len(times), MIN_SLOTS)
    bars = "".join(
        f'<rect x="{100 - width * (len(times) - index - 0.1):.2f}" y="{24 - height:.1f}" width="{0.8 * width:.2f}" '
        f'height="{height:.1f}"/>'
        for index, height in enumerate(24 * min(1.0, value / top) for value in times)
    )
    lines = "".join(
        f'<line class="{name}" x1="0" x2="100" y1="{y:.1f}" y2="{y:.1f}"/>'
        for name, y in (("p50", 24 * (1 - p50 / top)), ("p95", 24 * (1 - p95 / top)))
    )
    text = f"Last {len(times)}: p50 {milliseconds(p50)},<br>p95 {milliseconds(p95)}"
    return (
        f'<figure class="recent"><svg viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true">{bars}{lines}'
        f"</svg><figcaption>{text}</figcaption></figure>"
    )


def empty_card(model: LoadedModel, state: PoolState) -> str:
    """The card when there is no image."""
    return (
        '<section class="card empty"><p class="verdict"><b>No image yet</b></p>'
        "<p>Choose, drop or paste an image, or start the camera.</p>"
        f'<p class="by"><b>{escape(model.name)}</b> is ready {_aliases(state, model)}</p></section>'
    )


def error_card(message: str, number: int = 0) -> str:
    """The card of an image that cannot be classified; by `number`, the same error of another image is a new card."""
    return (
        f'<section class="card error" data-say="{escape(message)}" data-number="{number}">'
        f'<p class="small">No prediction</p><p>{escape(message)}</p></section>'
    )


def _aliases(state: PoolState, model: LoadedModel) -> str:
    return " ".join(f'<span class="badge">{escape(alias)}</span>' for alias in state.aliases(model.version))


def programs(password: bool) -> str:
    """How programs call the server; page.js writes its address."""
    user = " -u NAME:PASSWORD" if password else ""
    auth = ', auth=("NAME", "PASSWORD")' if password else ""
    curl = f"curl -s{user} -F image=@cat.jpg 'http://ADDRESS/v1/predict?top_k=3'"
    python = PYTHON_CALL.replace("AUTH", auth)
    blocks = "".join(
        f'<h2>{name}</h2><pre tabindex="0" aria-label="{name}" class="{name.lower()}">{escape(code)}</pre>'
        for name, code in (("curl", curl), ("Python", python))
    )
    return (
        f'<details class="programs"><summary>Use from a program</summary>{blocks}<p>All parameters, with examples: '
        f'<a class="docs" href="docs">the API\'s documentation</a>.</p></details><p>{FOOTER}</p>'
    )
