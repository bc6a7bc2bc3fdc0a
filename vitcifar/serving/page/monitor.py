"""The tab Monitor: what the last predictions say of each version, without labels, and of the challenger."""

import functools
from html import escape
from typing import TYPE_CHECKING, Any

from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.monitor import LEVEL, REFRESH_SECONDS, Report
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.html import percent
from vitcifar.serving.shadow import Agreement, Shadow

if TYPE_CHECKING:
    import gradio

EMPTY = "Nothing was classified yet."
WHAT_IT_MEANS = (
    "<b>Estimated accuracy</b> supposes that confidences mean here what they mean on the test images; after a drift it "
    f"is often too high. The test of <b>drift</b> alarms in {LEVEL:.0%} of the cases without a drift. Of each image a "
    "checksum, the label, the confidence and the network's embedding are kept while the server runs, not the image. "
    "The same image counts once."
)


def build_monitor(pool: ModelPool, shadow: Shadow | None, tab: "gradio.Tab") -> None:
    """The tab, which is drawn when it is opened and while it is."""
    gradio = load_gradio()
    shown = gradio.HTML(elem_id="monitor", apply_default_css=False)
    timer = gradio.Timer(REFRESH_SECONDS, active=False)
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    draw = functools.partial(monitor_html, pool, shadow)
    tab.select(lambda: (draw(), gradio.Timer(REFRESH_SECONDS, active=True)), None, [shown, timer], **at_once)
    timer.tick(draw, None, shown, **at_once)


def monitor_html(pool: ModelPool, shadow: Shadow | None) -> str:
    """A section for each version with predictions, one for the challenger, and what the numbers mean."""
    reports = pool.monitor.reports()
    sections = [version_section(report, pool) for report in reports] or [f'<p class="none">{EMPTY}</p>']
    if shadow:
        sections.append(shadow_section(shadow))
    return f'<div class="monitor">{"".join(sections)}<p class="small">{WHAT_IT_MEANS}</p></div>'


def version_section(report: Report, pool: ModelPool) -> str:
    """The figures of one version."""
    state = pool.state
    badges = "".join(f' <span class="badge">{escape(alias)}</span>' for alias in state.aliases(report.version))
    if report.version == state.current.version:
        badges += ' <span class="badge quiet">serves</span>'
    times = (
        f", {report.since[:16].replace('T', ' ')} to {report.until[:16].replace('T', ' ')} UTC" if report.since else ""
    )
    count = f"{report.num_images:,} different images, {report.num_predictions:,} predictions since the start"
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        f'<section class="watched"><h2>Version {report.version}{badges}</h2><p class="small">{count}{times}</p>'
        f"<dl>{''.join(figures(report))}</dl>{f'<ul>{notes}</ul>' if notes else ''}</section>"
    )


def figures(report: Report) -> list[str]:
    """The figures that there are, each with what to compare it with."""
    shown = []
    if (estimated := report.estimated_accuracy) is not None:
        band = f"95% band {percent(report.estimated_low or 0.0)} to {percent(report.estimated_high or 0.0)}"
        tested = (
            "" if report.test_accuracy is None else f"; measured on the test images {percent(report.test_accuracy)}"
        )
        shown.append(figure("Estimated accuracy", percent(estimated), band + tested))
    if report.not_confident is not None:
        share = report.test_not_confident
        against = "" if share is None else f"of the test images {percent(share)}"
        shown.append(figure("Not confident", percent(report.not_confident), against))
    if (p_value := report.drift_p_value) is not None:
        against = f"p = {p_value:.3f}, against {report.num_reference:,} test images"
        shown.append(figure("Drift", "Found" if report.drift else "None found", against, warn=bool(report.drift)))
    return shown


def figure(name: str, value: str, against: str, *, warn: bool = False) -> str:
    style = ' class="warn"' if warn else ""
    return f"<div{style}><dt>{name}</dt><dd>{value}</dd><dd>{against}</dd></div>"


def shadow_section(shadow: Shadow) -> str:
    """How often the challenger agrees, for each version that it has been beside."""
    number = shadow.number()
    now = f"Version {number}" if number else f"No version is {escape(shadow.spec)} besides the one that serves"
    problem = f'<p class="problem" role="alert">{escape(shadow.problem)}</p>' if shadow.problem else ""
    pairs = "".join(map(pair_figure, shadow.agreements())) or f"<div><dt>Agreement</dt><dd>–</dd><dd>{EMPTY}</dd></div>"
    badge = f' <span class="badge">{escape(shadow.spec)}</span>' if number else ""
    return f'<section class="watched"><h2>In the shadow: {now}{badge}</h2>{problem}<dl>{pairs}</dl></section>'


def pair_figure(one: Agreement) -> str:
    both = one.agreed + one.disagreed
    against = (
        f"the same label on {one.agreed:,} of {both:,} images; {one.dropped:,} more were not predicted, it was busy"
    )
    against += f"; {one.failed:,} failed" if one.failed else ""
    share = "–" if one.share is None else percent(one.share)
    return figure(f"Agreement of {one.shadow} with {one.version}", share, against)
