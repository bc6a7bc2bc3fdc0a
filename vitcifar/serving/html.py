"""How the page looks: its style sheet and the few pieces of HTML that show an answer. All text is escaped here."""

from collections.abc import Sequence
from html import escape

from vitcifar.inference.session import Prediction
from vitcifar.serving.loaded_model import LoadedModel
from vitcifar.serving.model_pool import State

NUM_SHOWN = 5  # classes with a bar
FOOT = "Answered on the machine that serves this page. Images go nowhere else and are deleted within the hour."


def percent(value: float) -> str:
    """A probability for reading: 97.3 %, and never 100 % or 0 % for what is only near to it."""
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    if 0 < value < 0.0005:
        return "< 0.1 %"
    return f"{100 * value:.1f} %"


def milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def heading(model_name: str, class_names: Sequence[str]) -> str:
    """The model's name and what it tells apart."""
    shown = ", ".join(class_names[:10]) + (f" and {len(class_names) - 10} more" if len(class_names) > 10 else "")
    return f'<h1>{escape(model_name)}</h1><p class="lead">Tells apart {escape(shown)}.</p>'


def status(state: State, seen: int, chosen: LoadedModel | None = None) -> str:
    """Which version answers now, the chosen one if there is one; what is wrong; and, for who watched it, what moved."""
    answers = chosen or state.current
    badges = f"{_aliases(state, answers)} {_accuracy(state, answers)}"
    if answers.version != state.current.version:
        badges += f' <span class="small">chosen here; otherwise version {state.current.version} answers</span>'
    lines = [f'<p class="now"><span class="dot"></span><b>{escape(answers.name)}</b> {badges}</p>']
    if state.problem:
        lines.append(f'<p class="note problem" role="alert">{escape(state.problem)}</p>')
    elif state.moved and seen and seen != state.serial:
        lines.append(f'<p class="note" role="status">{escape(state.moved)}</p>')
    return "".join(lines)


def prediction(answer: Prediction, opened: LoadedModel, state: State) -> str:
    """The card of one answer: class, bars, who answered, and where the time went."""
    shown = list(answer.probabilities.items())[:NUM_SHOWN]
    bars = "".join(
        f'<li><span class="name">{escape(name)}</span><span class="track"><i style="width:{100 * value:.2f}%"></i>'
        f'</span><span class="value">{percent(value)}</span></li>'
        for name, value in shown
    )
    unsure = ""
    if answer.probability < opened.release.threshold:
        unsure = (
            f'<p class="note">Not sure: below this version\'s threshold of {percent(opened.release.threshold)}.</p>'
        )
    timing = answer.timing
    times = "".join(
        f"<div><dt>{name}</dt><dd>{milliseconds(value)}</dd></div>"
        for name, value in (
            ("Decode", timing.decode_ms),
            ("Inference", timing.inference_ms),
            ("Total", timing.total_ms),
        )
    )
    return (
        f'<section class="card answer"><p class="small">Most likely</p>'
        f'<p class="verdict"><b>{escape(answer.label)}</b><span>{percent(answer.probability)}</span></p>{unsure}'
        f'<ol class="bars">{bars}</ol><dl class="times">{times}</dl>'
        f'<p class="by">Answered by <b>{escape(opened.name)}</b> {_aliases(state, opened)}</p></section>'
    )


def waiting(opened: LoadedModel, state: State) -> str:
    """The card before there is an image."""
    return (
        '<section class="card empty"><p class="verdict"><b>No image yet</b></p>'
        "<p>Choose or drop one, paste it, or take one with the camera. The answer comes by itself.</p>"
        f'<p class="by"><b>{escape(opened.name)}</b> is ready {_aliases(state, opened)}</p></section>'
    )


def failure(sentence: str) -> str:
    """The card of what cannot be answered."""
    return (
        f'<section class="card failure" role="alert"><p class="small">No answer</p><p>{escape(sentence)}</p></section>'
    )


def _aliases(state: State, opened: LoadedModel) -> str:
    return " ".join(f'<span class="badge">{escape(alias)}</span>' for alias in state.aliases(opened.version))


def _accuracy(state: State, opened: LoadedModel) -> str:
    accuracy = next((v.test_accuracy for v in state.versions if v.number == opened.version), None)
    return "" if accuracy is None else f'<span class="badge quiet">{percent(accuracy)} on its test images</span>'


STYLE = """
.gradio-container { --ink: #14213a; --soft: #5b6880; --line: #dfe5ee; --paper: #ffffff; --blue: #1f6fb2;
  --tint: #e8f1fa; --red: #b4331b; --redtint: #fdf0ec; --track: #eaeff6;
  width: 100% !important; max-width: 1040px !important; margin: 0 auto !important; padding: 28px 20px 12px !important; }
.dark .gradio-container, .gradio-container.dark { --ink: #e8edf6; --soft: #9aa8c0; --line: #2a3650; --paper: #151d2e;
  --blue: #5aa7e6; --tint: #1b2d47; --red: #ff9b85; --redtint: #34201f; --track: #2a3650; }
.gradio-container > .app { padding: 0 !important; max-width: none !important; }
.html-container { padding: 0 !important; }
#top { align-items: end; gap: 16px 32px; border-bottom: 1px solid var(--line); padding-bottom: 18px; }
#head h1 { font-size: 30px; line-height: 1.15; letter-spacing: -.02em; font-weight: 650; margin: 0 0 6px;
  color: var(--ink); }
#head .lead { color: var(--soft); margin: 0; max-width: 60ch; }
#top .form { border-radius: 12px; border-color: var(--line); box-shadow: none; min-width: min(260px, 100%) !important; }
#choice { border: 0; box-shadow: none; }
.now { margin: 0; color: var(--soft); display: flex; flex-wrap: wrap; gap: 6px 10px; align-items: center; }
.now b, .by b { color: var(--ink); font-weight: 600; }
.dot { width: 9px; height: 9px; border-radius: 50%; background: #1a9e6c; box-shadow: 0 0 0 4px #1a9e6c26;
  margin: 0 3px; }
.badge { display: inline-block; padding: 1px 9px; border-radius: 99px; font-size: 13px; background: var(--tint);
  color: var(--blue); font-weight: 550; white-space: nowrap; }
.badge.quiet { background: none; color: var(--soft); border: 1px solid var(--line); font-weight: 400; }
.note { margin: 10px 0 0; padding: 9px 13px; border-radius: 8px; background: var(--tint); color: var(--ink); }
.note.problem { background: var(--redtint); color: var(--red); }
.card { border: 1px solid var(--line); border-radius: 14px; background: var(--paper); padding: 22px 24px;
  color: var(--ink); box-sizing: border-box; min-height: 392px; display: flex; flex-direction: column; }
.card p { margin: 0; }
.card .note { margin: 0 0 16px; }
.card .small { color: var(--soft); font-size: 14px; }
.card .verdict { display: flex; justify-content: space-between; align-items: baseline; gap: 16px; flex-wrap: wrap;
  font-size: 30px; line-height: 1.2; letter-spacing: -.02em; margin: 2px 0 16px; }
.card .verdict b { font-weight: 650; color: var(--ink); overflow-wrap: anywhere; }
.card .verdict span { color: var(--blue); font-variant-numeric: tabular-nums; }
.bars { list-style: none; margin: 0 0 20px; padding: 0; display: grid; gap: 11px 14px; align-items: center;
  grid-template-columns: fit-content(40%) 1fr max-content; }
.bars li { display: contents; }
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--ink); min-width: 1.5em; }
.bars .track { height: 10px; border-radius: 5px; background: var(--track); overflow: hidden; }
.bars i { display: block; height: 100%; min-width: 2px; border-radius: 5px; background: var(--blue); opacity: .5; }
.bars li:first-child i { opacity: 1; }
.bars li:first-child .name { font-weight: 600; }
.bars .value { text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
.times { display: grid; grid-template-columns: repeat(3, 1fr); margin: auto 0 0; padding: 14px 0 0;
  border-top: 1px solid var(--line); }
.times dt { color: var(--soft); font-size: 14px; margin: 0; }
.times dd { margin: 1px 0 0; font-size: 17px; font-weight: 550; color: var(--ink);
  font-variant-numeric: tabular-nums; }
.card .by { margin-top: 14px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 4px 8px;
  align-items: center; }
.card.empty > p { color: var(--soft); }
.card.empty .verdict { font-size: 24px; margin-bottom: 8px; }
.card.empty .by { margin-top: auto; padding-top: 20px; }
.card.failure { background: var(--redtint); border-color: color-mix(in srgb, var(--red) 35%, transparent); }
.card.failure p:last-child { margin-top: 4px; color: var(--red); font-size: 17px; line-height: 1.45;
  overflow-wrap: anywhere; }
#image { border-radius: 14px; border: 1px solid var(--line); box-shadow: none; }
#image .image-frame img { object-fit: contain !important; }
#examples { border: 0; padding: 0; background: none; box-shadow: none; }
#examples .gallery { gap: 8px; border: 0; }
#examples .gallery-item { border-radius: 8px; border-color: var(--line); width: 66px; height: 66px; }
#examples .container { width: 64px; height: 64px; }
#examples img { width: 64px; height: 64px; object-fit: contain; image-rendering: pixelated; }
#foot { color: var(--soft); font-size: 13px; }
footer { margin: 4px 0 0 !important; padding: 0 !important; }
footer .divider { display: none !important; }
@media (max-width: 700px) {
  .gradio-container { padding: 18px 14px 8px !important; }
  #top { flex-direction: column; align-items: stretch; }
  #head h1 { font-size: 26px; }
  .card { min-height: 0; padding: 18px; }
  .card .verdict { font-size: 26px; }
  .times { margin-top: 6px; }
}
@media (prefers-reduced-motion: no-preference) { .bars i { transition: width .25s ease-out; } }
"""
