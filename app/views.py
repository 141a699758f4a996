"""Facts turned into HTML. Every string that comes from outside is escaped here, and only here."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from app import heads_words, live
from app.facts import NO_HEADS, AdapterFacts, HeadsFacts, JointMap, ModelFacts, Opened, Room, TokenMark
from app.jobs import Job, JobState
from app.workspace import clamp_strength

PANES = ("source", "source_adapter", "target", "target_adapter")
"""The panes that always stand there; `PANE_TITLES` names the others as well, in their order."""
PANE_TITLES = {
    "source": "Source",
    "source_adapter": "Source + adapter",
    "target": "Target",
    "target_adapter": "Target + translated",
    "second": "Target, the second way",
    "retrained": "Target, retrained",
}
_PROMPT_SHOWN = 90
# At most so many tokens of an answer are marked, each at least twice as likely as before.
_MOST_MARKS = 8
_LEAST_CHANGE = math.log(2)
_MOST_TIMES = 1000
# A table may be wider than a phone; the keyboard must reach it to scroll it.
SCROLLS = 'tabindex="0" role="group" aria-label="Table"'
# The stages that `cast` reports, in a visitor's words.
_STAGES = {
    "convert": "Unpacking the model",
    "load": "Loading the models",
    "text": "Reading text",
    "activations": "Reading the states of both models",
    "heads": "Fitting the heads",
    "quality": "Measuring on held-out text",
    "moments": "Looking where the adapter acts in general text",
    "forms": "Looking behind which cues the adapter acts",
    "coverage": "Seeing what the text shows of the adapter",
    "sites": "Mapping the adapted sites",
    "compile": "Fitting the LoRA",
    "score": "Scoring",
    "choose": "Choosing among the answers",
    "generate": "Generating",
    "judge": "Keeping the answers that the adapter is sure of",
    "umap": "Preparing UMAP for its first map here",
    "map": "Laying out the map",
    "layers": "Comparing the layers",
}
_NEXT = {
    "translate": "Press Generate: the fourth pane now runs this adapter.",
    "prompts": "Translate reads the list as it stands below.",
    "answers": "The table can be downloaded.",
    "heads": "Press Show heads to see how good they are; whatever crosses by states now uses them.",
}
# What a cancelled job leaves behind, where that is something.
_LEFT = {"heads": ""}
_METRICS = {"r_squared": "held-out R²", "kl": "KL", "tokens": "tokens"}
_MARKS = {
    "source": ("source",),
    "source_adapter": ("source", "adapter"),
    "target": ("target",),
    "target_adapter": ("target", "adapter"),
    "second": ("target", "adapter"),
    "retrained": ("target", "baseline"),
}


@dataclass(frozen=True)
class Pane:
    """One of the answers; `state` is idle, running, stopped, done, or note (`text` is then a sentence)."""

    key: str
    name: str
    text: str = ""
    state: str = "idle"
    marks: tuple[TokenMark, ...] = ()


def shortened(prompt: str) -> str:
    """The end of a prompt: every pane repeats it, and the answer is what should be seen."""
    if len(prompt) <= _PROMPT_SHOWN:
        return prompt
    tail = prompt[-_PROMPT_SHOWN:]
    return "…" + (tail[tail.index(" ") :] if " " in tail else tail)


def panes(prompt: str, shown: Sequence[Pane], caption: str = "") -> str:
    """The answers side by side, the prompt quiet and the answer plain."""
    cards = "".join(_pane(prompt, pane) for pane in shown)
    note = f'<p class="cast-caption">{escape(caption)}</p>' if caption else ""
    return (
        f'<section class="cast-panes" data-count="{len(shown)}" aria-label="Answers side by side">{cards}'
        f"</section>{note}"
    )


def stopped(shown: str) -> str:
    """Answers that were being written, as they stood when the visitor stopped them."""
    # A text is escaped and holds no quotation mark, so only a pane can say this.
    return (shown or "").replace('data-state="running"', 'data-state="stopped"')


def pane_marks(key: str) -> str:
    """The signs of what a pane runs."""
    marks = "".join(f'<i class="mark mark-{mark}"></i>' for mark in _MARKS[key])
    return f'<span class="marks">{marks}</span>'


def _pane(prompt: str, pane: Pane) -> str:
    if pane.state == "note":
        body = f'<p class="cast-note">{escape(pane.text)}</p>'
    elif pane.state == "idle":
        body = '<p class="cast-note">Press Generate to read this model.</p>'
    else:
        body = (
            f'<p class="cast-text"><span class="cast-prompt">{escape(shortened(prompt))}</span>'
            f'<span class="cast-answer">{marked(pane)}</span></p>'
        )
    return (
        f'<article class="cast-pane cast-pane-{pane.key}" data-pane="{pane.key}" data-state="{pane.state}">'
        f"<header>{pane_marks(pane.key)}<strong>{PANE_TITLES[pane.key]}</strong>"
        f"<span>{escape(pane.name)}</span></header>{body}</article>"
    )


def marked(pane: Pane) -> str:
    """The answer, with the tokens marked whose probability the adapter raised most."""
    raised = sorted((mark.change for mark in pane.marks), reverse=True)[:_MOST_MARKS]
    least = max(_LEAST_CHANGE, raised[-1]) if raised else 0.0
    whole = "".join(mark.text for mark in pane.marks)
    if whole != pane.text[: len(whole)]:
        return escape(pane.text)
    shown = "".join(_mark(mark) if mark.change >= least else escape(mark.text) for mark in pane.marks)
    return shown + escape(pane.text[len(whole) :])


def _mark(mark: TokenMark) -> str:
    # A factor says more than nats; beyond a thousand it says no more than "new".
    times = math.exp(min(mark.change, math.log(_MOST_TIMES)))
    more = f"{'over ' if times >= _MOST_TIMES * 0.999 else ''}{times:,.0f} times as likely"
    hint = escape(f"{more}\n{mark.hint}")
    return (
        f'<mark class="cast-moved" tabindex="0" data-hint="{hint}" aria-description="{hint}">'
        f"{escape(mark.text)}</mark>"
    )


def sentence(text: str, kind: str = "info") -> str:
    """One sentence to the visitor; kind is info, good or error."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="cast-sentence cast-{kind}" role="{role}">{escape(text)}</p>' if text else ""


def caption(text: str) -> str:
    """A quiet line under something."""
    return f'<p class="cast-caption">{escape(text)}</p>' if text else ""


def compatibility(
    source: ModelFacts, target: ModelFacts, adapter: AdapterFacts | None, room: Room | None = None
) -> str:
    """The two models side by side, the adapter under them, and what follows in a sentence or two.

    Args:
        source: the left column.
        target: the right column.
        adapter: of the source.
        room: where both would be loaded; None where it has not been looked at yet.
    """
    rows = [
        ("Family", source.family, target.family),
        ("Width", f"{source.width:,}", f"{target.width:,}"),
        ("Blocks", f"{source.depth}", f"{target.depth}"),
        ("Heads", f"{source.heads or '–'}", f"{target.heads or '–'}"),
        ("Tokenizer", source.tokenizer, target.tokenizer),
        ("Vocabulary", f"{source.vocabulary:,}", f"{target.vocabulary:,}"),
        ("Parameters", count(source.parameters), count(target.parameters)),
    ]
    if source.licence or target.licence:
        rows.append(("Licence", source.licence or "not stated", target.licence or "not stated"))
    if source.download_bytes or target.download_bytes:
        rows.append(("Download", size(source.download_bytes), size(target.download_bytes)))
    if room:
        rows.append(("Memory", size(room.source_bytes), size(room.target_bytes)))
    body = "".join(_row(row) for row in rows)
    head = (
        '<tr><td></td><th scope="col"><i class="mark mark-source"></i>Source</th>'
        '<th scope="col"><i class="mark mark-target"></i>Target</th></tr>'
    )
    return (
        f'<div class="cast-card cast-facts" {SCROLLS}>'
        f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        f"{_adapter_line(adapter, source)}{_other_base(adapter, source)}"
        f'<p class="cast-verdict">{escape(verdict(source, target))} '
        f"{escape(_fits(source, target, room))}</p></div>"
    )


def _fits(source: ModelFacts, target: ModelFacts, room: Room | None) -> str:
    """Whether both models fit into what is free."""
    if room is None or not (source.parameters and target.parameters):
        return ""
    needed, free = room.source_bytes, room.free_bytes
    if source.name != target.name:
        needed += room.target_bytes
    if needed < free:
        return f"Their weights take {size(needed)} of the {size(free)} that are free ({room.device})."
    return (
        f"Their weights take {size(needed)} and only {size(free)} are free ({room.device}): choose smaller "
        "models, or free memory first."
    )


def opened(found: Opened) -> str:
    """One sentence on a translated folder that has become the choice."""
    chosen = found.selection
    strength = f"strength {found.strength:g}"
    if found.strength != clamp_strength(found.strength):
        strength += f", of which the slider takes {clamp_strength(found.strength):g}"
    return sentence(
        f"Opened {found.folder}: {chosen.adapter} carried from {chosen.source} to {chosen.target} "
        f"(mode {chosen.way}; {strength}). Everything below is set to it.",
        "good",
    )


def verdict(source: ModelFacts, target: ModelFacts) -> str:
    """What the differences mean for a translation."""
    if source.name == target.name:
        return (
            "Source and target are the same model: a translation must come out close to the adapter itself."
        )
    differ = []
    if source.family != target.family:
        differ.append("family")
    if source.width != target.width:
        differ.append("width")
    if source.depth != target.depth:
        differ.append("depth")
    if (source.tokenizer, source.vocabulary) != (target.tokenizer, target.vocabulary):
        differ.append("tokenizer")
    if not differ:
        return "The two models have the same shape, but states of their own: the change has to be carried."
    return f"They differ in {_and(differ)}, so the adapter cannot be copied: its change has to be carried."


def _row(row: tuple[str, str, str]) -> str:
    name, left, right = (escape(cell) for cell in row)
    css = "" if left == right else ' class="differs"'
    return f'<tr{css}><th scope="row">{name}</th><td>{left}</td><td>{right}</td></tr>'


def _adapter_line(adapter: AdapterFacts | None, source: ModelFacts) -> str:
    if adapter is None:
        return ""
    targets = ", ".join(target.removesuffix("_proj") for target in adapter.targets)
    return (
        '<p class="cast-adapter-line"><i class="mark '
        f'mark-adapter"></i><strong>{escape(adapter.name)}</strong>, '
        f"rank {adapter.rank}, at {escape(targets)} in {len(adapter.sites)} of {source.depth} blocks, "
        f"licence {escape(adapter.licence or 'not stated')}.</p>"
    )


def _other_base(adapter: AdapterFacts | None, source: ModelFacts) -> str:
    """A warning where the adapter names another model than the chosen source as its base.

    It is no refusal: a folder and a Hub id may be the same model.
    """
    if adapter is None or adapter.base_model in ("", source.name):
        return ""
    return sentence(
        f"This adapter was trained on {adapter.base_model}, not on {source.name}. Unless the two are the "
        "same model, choose an adapter of this source, or take its own model as the source.",
        "error",
    )


def heads_line(facts: HeadsFacts | None) -> str:
    """One sentence on the heads of the pair."""
    if facts is None:
        return sentence(NO_HEADS)
    worst = min(facts.depths, key=lambda d: d.r_squared)
    mean = sum(d.r_squared for d in facts.depths) / len(facts.depths)
    return sentence(
        f"Heads are ready ({facts.kind}, {facts.tokens:,} tokens): held-out R² {mean:.2f} on "
        f"average, weakest at target depth {worst.depth} ({worst.r_squared:.2f}).",
        "good",
    ) + caption(heads_words.weakness(facts))


def heads_table(facts: HeadsFacts) -> str:
    """Held-out quality by depth, each measure beside its control on shuffled pairs."""
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Target depth", "Source depth", "R²", "Cosine", "k-NN overlap", "CKA")
    )
    body = "".join(
        f"<tr{' class=weak' if heads_words.is_weak(d) else ''}><td>{d.depth}</td><td>{d.source_depth}</td>"
        + _measured(d.r_squared, d.r_squared_control)
        + _measured(d.cosine, d.cosine_control)
        + _measured(d.knn_overlap, d.knn_overlap_control)
        + _measured(d.cka, d.cka_control)
        + "</tr>"
        for d in facts.depths
    )
    return (
        f'<div class="cast-facts cast-wide" {SCROLLS}>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        '<p class="cast-caption">Measured on text that the heads were not fitted on. In grey: the same '
        "measure "
        "with the pairs shuffled. Weak depths are marked.</p></div>"
    )


def _measured(value: float, control: float) -> str:
    return f'<td>{figure(value)} <span class="control">{figure(control)}</span></td>'


def trust(drawn: JointMap) -> str:
    """How far the picture keeps the neighbours of the full space, in a sentence; empty where not measured."""
    share = drawn.trustworthiness
    if share is None:
        return ""
    much = "closely" if share >= 0.9 else "roughly" if share >= 0.75 else "poorly"
    return f"The picture keeps the neighbours of the full space {much} (trustworthiness {share:.2f})."


def _stage_in_words(stage: str) -> str:
    """A stage as `cast` reports it; behind a name may stand which round of it."""
    name, _, turn = stage.rpartition(" ")
    return f"{_STAGES[name]}, round {turn}" if name in _STAGES else _STAGES.get(stage, stage)


def job(view: Job | None) -> str:
    """A job as a bar with words: stage, share, time gone and left, the newest measures."""
    if view is None:
        return ""
    now = time.monotonic()
    if view.is_over:
        return _finished(view, now)
    progress = view.progress
    share = progress.fraction if progress else 0.0
    stage = _queued(view.ahead) if view.state is JobState.QUEUED else "Starting"
    if progress:
        stage = _stage_in_words(progress.stage)
    if view.cancelling:
        stage = "Stopping"
    left = view.seconds_left(now)
    times = f"{duration(view.seconds(now))} gone" + (
        f", about {duration(left)} left of this step" if left else ""
    )
    metrics = (
        ", ".join(f"{_METRICS.get(k, k)} {_short(v)}" for k, v in progress.metrics.items())
        if progress
        else ""
    )
    steps = f"{progress.done:,} of {progress.total:,}" if progress and progress.total > 1 else ""
    detail = " · ".join(escape(part) for part in (steps, live.pace(view, now), times, metrics) if part)
    return (
        f'<div class="cast-job" data-state="{view.state}" '
        f'role="status"><p><strong>{escape(view.title)}</strong> '
        f"{escape(stage)}</p>"
        f'<div class="cast-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{round(100 * share)}" aria-label="{escape(view.title)}">'
        f'<span style="width:{100 * share:.1f}%"></span></div><p class="cast-caption">{detail}</p>'
        f"{live.curves(view)}</div>"
    )


def _queued(ahead: int) -> str:
    """The place in the queue, in words."""
    if ahead <= 1:
        return "Next in the queue: it begins as soon as a job ends"
    return f"Waiting in the queue, {ahead} jobs before it"


def _finished(view: Job, now: float) -> str:
    spent = duration(view.seconds(now))
    words = {
        JobState.DONE: f"Done in {spent}. {_NEXT.get(view.kind, '')}",
        JobState.CANCELLED: f"Cancelled. {_LEFT.get(view.kind, 'Nothing was kept half-done.')}",
        JobState.FAILED: view.message,
    }[view.state]
    kind = {JobState.DONE: "good", JobState.CANCELLED: "info", JobState.FAILED: "error"}[view.state]
    return (
        f'<div class="cast-job" data-state="{view.state}"><p><strong>{escape(view.title)}</strong></p>'
        f"{sentence(words, kind)}</div>"
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def figure(value: float) -> str:
    """A measure with two digits, with a true minus sign and none before a zero."""
    words = f"{value:.2f}"
    return "0.00" if words == "-0.00" else words.replace("-", "−")


def count(number: int) -> str:
    """A parameter count in short form."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number}" if number else "–"


def size(number: int) -> str:
    """Bytes in short form."""
    for limit, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number} B" if number else "none"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
