"""Pick: the source, the target and the adapter, with what follows from the choice. Stands above every tab."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from app import expecting, picture, views
from app.engine import Engine, PairFacts
from app.facts import FitRequest, Option, Room, TranslateRequest
from app.saying import said
from app.searching import HubSearch, may_have_adapters, words_to_search
from app.workspace import Pair, Selection, Workspace
from cast.errors import CastError

_ANYWHERE = (
    '<p class="cast-caption">Typing searches the Hub. A folder, a .gguf file or a Hub id can be typed as '
    "well; a folder that was translated already opens as it was made.</p>"
)
_READING_HERE = "Reading the pair."
_READING = (
    "Reading what is known of this choice. A name that is not on this machine is asked of the Hub, which may "
    "take up to 20 seconds each."
)
# Only the last of several keys in a row is answered: a promise that is never kept asks the server nothing.
_DEBOUNCED = """(...given) => new Promise((ask) => {
  const waits = (window.castWaits ??= {});
  clearTimeout(waits.%s);
  waits.%s = setTimeout(() => ask(given), 350);
})"""


Updates = tuple[Any, Any]


@dataclass(frozen=True)
class PickTab:
    """The widgets of the chooser."""

    source: gr.Dropdown
    target: gr.Dropdown
    adapter: gr.Dropdown
    notice: gr.HTML
    picture: gr.HTML
    summary: gr.HTML
    found: gr.HTML
    expected: gr.HTML

    @property
    def chosen(self) -> list[gr.Dropdown]:
        """The three pickers, in the order in which every handler takes them."""
        return [self.source, self.target, self.adapter]

    @property
    def followers(self) -> list[Any]:
        """What `follow` sets."""
        return [self.picture, self.summary, self.notice, self.found, self.expected]


def create_pick_tab(engine: Engine, start: Workspace) -> PickTab:
    """Build the chooser with the starting choice already described."""
    models = _choices(engine.models())
    # What is not known yet would import torch; it is described once the page is open.
    known = engine.knows(start.selection)
    drawn, summary = describe(engine, start.selection) if known else (views.sentence(_READING_HERE), "")
    with gr.Row(equal_height=True, elem_classes="cast-first"):
        with gr.Column(scale=4, min_width=320, elem_classes="cast-pickers"):
            source = gr.Dropdown(
                models, value=start.source, label="Source model", allow_custom_value=True,
                elem_classes="pick-source",
            )  # fmt: skip
            target = gr.Dropdown(
                models, value=start.target, label="Target model", allow_custom_value=True,
                elem_classes="pick-target",
            )  # fmt: skip
            adapter = gr.Dropdown(
                _choices(engine.adapters(start.source)), value=start.adapter, label="Adapter of the source",
                allow_custom_value=True, elem_classes="pick-adapter",
            )  # fmt: skip
            notice = gr.HTML(elem_classes="cast-notice")
            found = gr.HTML(_ANYWHERE, elem_classes="cast-detail cast-found")
        with gr.Column(scale=6, min_width=320):
            stacks = gr.HTML(drawn)
        with gr.Column(scale=5, min_width=320, elem_classes="cast-detail"):
            facts = gr.HTML(summary)
    expected = gr.HTML(elem_classes="cast-detail cast-expected")
    return PickTab(source, target, adapter, notice, stacks, facts, found, expected)


def wire_pick_tab(tab: PickTab, engine: Engine, hub: HubSearch) -> None:
    """Let typing search the Hub; `app.tabs.choice` follows what is chosen."""

    def models(_: str, typed: gr.KeyUpData) -> Updates:
        words = words_to_search(typed.input_value or "") if _writes(typed.key) else ""
        if not words:
            return gr.skip(), gr.skip()
        return _with_hits(lambda: hub.models(words), engine.models(), f"model called “{words}”")

    def adapters(_: str, source: str, typed: gr.KeyUpData) -> Updates:
        if not may_have_adapters(source or "") or not _writes(typed.key):
            return gr.skip(), gr.skip()
        words = words_to_search(typed.input_value or "")
        wanted = f"adapter of {source} called “{words}”" if words else f"adapter of {source}"
        return _with_hits(lambda: hub.adapters(source, words), engine.adapters(source), wanted)

    def all_adapters(source: str) -> Updates:
        if not may_have_adapters(source or ""):
            return gr.skip(), gr.skip()
        return _with_hits(lambda: hub.adapters(source, ""), engine.adapters(source), f"adapter of {source}")

    for name, picker in (("source", tab.source), ("target", tab.target)):
        picker.key_up(
            models, picker, [picker, tab.found], js=_DEBOUNCED % (name, name),
            show_progress="hidden", trigger_mode="multiple", api_visibility="private",
        )  # fmt: skip
    tab.adapter.key_up(
        adapters, [tab.adapter, tab.source], [tab.adapter, tab.found], js=_DEBOUNCED % ("adapter", "adapter"),
        show_progress="hidden", trigger_mode="multiple", api_visibility="private",
    )  # fmt: skip
    tab.adapter.focus(
        all_adapters, tab.source, [tab.adapter, tab.found], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip


def _writes(key: str) -> bool:
    """Whether a key changes what is written; arrows and Enter choose in a list."""
    return len(key) == 1 or key in ("Backspace", "Delete")


def _with_hits(ask: Callable[[], Sequence[Option]], here: Sequence[Option], wanted: str) -> Updates:
    """What is here and what the Hub has, as a picker's entries, and a sentence; what is chosen stays."""
    try:
        hits = ask()
    except CastError as error:
        # Nothing went wrong with what is chosen: it is said, and not in red.
        return gr.skip(), views.sentence(str(error))
    except Exception as error:
        return gr.skip(), said(error)
    if not hits:
        return gr.update(choices=_choices(here)), views.sentence(f"The Hub lists no {wanted}.")
    words = f"The Hub lists {len(hits)} × {wanted}, most downloaded first: choose one in the list."
    return gr.update(choices=_choices([*here, *hits])), views.sentence(words, "good")


def keep_adapter(options: Sequence[Option], adapter: str, shipped: bool) -> str:
    """The adapter after a change of source.

    What was typed stays. For a shipped adapter of another model comes the same skill where it is shipped for
    the new source, else its first one, else none.
    """
    names = [option.name for option in options]
    if adapter and not shipped:
        return adapter
    if adapter in names or not names:
        return adapter if adapter in names else ""
    skill = adapter.rsplit("/", 1)[-1]
    return next((name for name in names if name.rsplit("/", 1)[-1] == skill), names[0])


def set_to(tab: PickTab, engine: Engine, held: Selection | None, chosen: Selection) -> dict[Any, Any]:
    """The pickers set to a choice, each with what it offers.

    What a picker holds already is not written back: the visitor may be choosing in it meanwhile. `held` is
    None where the pickers hold nothing yet.
    """
    models, adapters = engine.models(), engine.adapters(chosen.source)
    names = (chosen.source, chosen.target, chosen.adapter)
    now = (held.source, held.target, held.adapter) if held else (None, None, None)
    return {
        picker: gr.update(choices=_choices(options, name), **({} if name == has else {"value": name}))
        for picker, options, name, has in zip(tab.chosen, (models, models, adapters), names, now, strict=True)
    }


def follow(tab: PickTab, engine: Engine, chosen: Selection, notice: str) -> dict[Any, Any]:
    """The picture, the summary and the notice of a choice."""
    drawn, summary = describe(engine, chosen, engine.room)
    return {tab.picture: drawn, tab.summary: summary, tab.notice: notice, tab.found: _ANYWHERE}


def waiting(tab: PickTab, engine: Engine, chosen: Selection) -> dict[Any, Any]:
    """What stands where the last choice's facts stood, until those of this one are read."""
    if engine.knows(chosen):
        return {}
    here = all(not name or engine.is_at_hand(name) for name in (chosen.source, chosen.target))
    shipped = not chosen.adapter or engine.is_shipped(chosen.adapter)
    words = views.sentence(_READING_HERE if here and shipped else _READING)
    return {tab.picture: words, tab.summary: "", tab.notice: "", tab.expected: ""}


def expected(engine: Engine, request: TranslateRequest) -> str:
    """How long *Translate* and *Train heads* may take; empty where the models are not known."""
    chosen = request.selection
    if not engine.knows(chosen):
        # They were just asked for: a Hub that hangs would be waited for once more.
        return ""
    try:
        fit, hosted = engine.expected(FitRequest(chosen.pair)), chosen.mode == "hosted"
        if hosted:
            # What *Translate* makes of it.
            request = replace(request, selection=replace(chosen, mode="compiled", segment=None))
        prompts = len(request.prompts) if request.selection.mode == "compiled" else 0
        return views.caption(
            expecting.in_words(chosen.way, engine.expected(request), fit, hosted=hosted, prompts=prompts)
        )
    except CastError:
        return ""


def _choices(options: Sequence[Option], chosen: str = "") -> list[tuple[str, str]]:
    """The entries of a picker, and the name that was typed into it."""
    listed = [(option.label, option.name) for option in options]
    return listed if not chosen or any(chosen == name for _, name in listed) else [*listed, (chosen, chosen)]


def describe(
    engine: Engine,
    selection: Selection,
    room: Callable[[PairFacts], Room] | None = None,
) -> tuple[str, str]:
    """The picture and the summary of a choice, or an empty picture and a sentence.

    `room` looks for the memory that is free. It imports torch, so the page is built without it.
    """
    try:
        # A translated folder whose recipe cannot be used says here why it did not open.
        engine.opened(selection)
        facts = engine.facts(selection)
    except Exception as error:
        return views.sentence("The picture of the pair stands here once both models are known."), said(error)
    return _draw(engine, facts, selection), views.compatibility(
        facts.source, facts.target, facts.adapter, room(facts) if room else None
    )


def _draw(engine: Engine, facts: PairFacts, selection: Selection) -> str:
    table, fitted = engine.layer_map(facts), selection.mode == "compiled"
    return picture.stacks(facts.source, facts.target, facts.adapter, table, selection.by_words, fitted)


def target_depth(engine: Engine, pair: Pair) -> int | None:
    """Blocks of the chosen target; None where they are not known, which the summary says."""
    models = Selection.of(pair.source, pair.target, "")
    return engine.facts(models).target.depth if engine.knows(models) else None
