"""Example prompts on the way to *Translate*: asked for, made more, shown, edited and measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from app import views
from app.engine import Engine
from app.expansions import Expansions, KeptList, Line, Made, escaped, lines_of, unescaped
from app.facts import TranslateRequest
from app.jobs import is_going
from app.saying import said
from app.tabs.steps import steps_of
from app.workspace import Attached, Selection, Workspace

HEADERS = ["Use", "Prompt", "Answer"]
READ_BY = ("hosted", "compiled")
"""The modes in which *Translate* fits a LoRA, and so reads prompts."""
_REACH = "Reach: the adapter's mean effect on what is read, over that on the tokens where it is largest."
_READ = (
    "Translate reads the ticked prompts as they stand, has each answered anew, and mixes them into general "
    "text."
)
_WRITTEN = "Translate has such passages written anew, and mixes them into general text."
_UNLESS = "Unless you edit this list, Translate has such texts written anew; then:"
_OTHER = "It was made for {}; Translate reads no more than these, and another target may take more prompts."
# Written in the browser, where the list is as it was edited last.
_DOWNLOAD = """(table) => {
  const ticked = table.data.filter(([use]) => String(use) === "true").map(([, prompt]) => prompt);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([ticked.join("\\n") + "\\n"], {type: "text/plain"}));
  link.download = "prompts.txt";
  link.click();
}"""

Updates = dict[Any, Any]


@dataclass(frozen=True)
class PromptsPanel:
    """The widgets; `made` holds those that stand there once something was made of the prompts."""

    group: gr.Column
    hints: gr.Textbox
    show: gr.Button
    cancel: gr.Button
    job: gr.HTML
    made: gr.Column
    told: gr.HTML
    table: gr.Dataframe
    again: gr.Button
    discard: gr.Button
    download: gr.Button
    timer: gr.Timer

    @property
    def standing(self) -> list[Any]:
        """What `_standing` sets."""
        return [
            self.job, self.cancel, self.timer, self.made, self.told, self.table, self.again, self.download,
        ]  # fmt: skip


def create_prompts_panel(engine: Engine, start: Workspace) -> PromptsPanel:
    """Build the panel above *Translate*."""
    with gr.Column(visible=start.mode in READ_BY, elem_classes="cast-prompts cast-detail") as group:
        hints = gr.Textbox(
            hint_lines(engine, start.adapter),
            label="Up to five example prompts without answers, one a line (optional)", lines=3, max_lines=6,
            info="They show the fit where the adapter acts: a base model of the pair writes more like them. "
            "\\n stands for a line break. Without any, the adapter is asked what it says to general text and "
            "behind cues of many kinds, or, where it is unsure of all its answers, let write.",
        )  # fmt: skip
        with gr.Row():
            show = gr.Button("Show what is made of them", size="sm", min_width=200)
            cancel = gr.Button("Cancel the prompts", size="sm", min_width=120, visible=False)
        job = gr.HTML()
        with gr.Column(visible=False) as made:
            told = gr.HTML()
            table = gr.Dataframe(
                headers=HEADERS, datatype=["bool", "str", "str"], type="array", interactive=True, wrap=True,
                column_count=3, static_columns=[2], column_widths=["16%", "54%", "30%"], max_height=480,
                label="What the fit reads, and what the source with its adapter answers",
                buttons=["fullscreen"], show_search="search", elem_classes="cast-list",
            )  # fmt: skip
            with gr.Row():
                again = gr.Button("Measure the ticked ones anew", size="sm", min_width=200)
                download = gr.Button("Download prompts.txt", size="sm", min_width=160)
                discard = gr.Button("Discard the list", size="sm", min_width=120)
        timer = gr.Timer(0.5, active=False)
    return PromptsPanel(
        group, hints, show, cancel, job, made, told, table, again, discard, download, timer
    )  # fmt: skip


def wire_prompts_panel(
    blocks: gr.Blocks, panel: PromptsPanel, steps: gr.Slider, expansions: Expansions,
    stores: Sequence[gr.BrowserState], kept: gr.BrowserState,
) -> None:  # fmt: skip
    """Connect the panel's events.

    Args:
        blocks: the page, whose loading puts the list back.
        panel: the widgets.
        steps: of the fit, which reads as much text as they need.
        expansions: what makes the prompts.
        stores: the choice, and what the visitor has started.
        kept: what the browser keeps of the list.
    """
    choice, attached = stores

    def standing(chosen: object, shown: object) -> Updates:
        """The job as it stands, and the list of the chosen adapter once it is there."""
        before = KeptList.from_json(shown)
        now = expansions.settled(before)
        updates = _standing(panel, expansions, _selection(chosen), now)
        # What has not changed is not written back: another handler may have changed it meanwhile.
        return updates if now == before else updates | {kept: now.to_json()}

    def start(
        chosen: object, given: object, shown: object, steps: int, prompts: tuple[str, ...], expand: bool
    ) -> Updates:
        request = TranslateRequest(_selection(chosen), steps_of(steps), prompts, expand)
        try:
            job_id = expansions.start(request, Attached.from_json(given).heads_job)
        except Exception as error:
            return {panel.job: said(error)}
        started = replace(KeptList.from_json(shown), pending=job_id).to_json()
        return {kept: started} | standing(chosen, started)

    def show(chosen: object, given: object, shown: object, steps: int, hints: str) -> Updates:
        """Make prompts of the examples, and have them answered."""
        return start(chosen, given, shown, steps, prompts_of(hints), True)

    def again(chosen: object, given: object, shown: object, steps: int, cells: object) -> Updates:
        """Have the ticked prompts answered and measured as they stand."""
        ticked = tuple(line.prompt for line in lines_of(cells) if line.use)
        return start(chosen, given, shown, steps, ticked, False)

    def edit(shown: object, cells: object) -> dict[str, Any]:
        return replace(KeptList.from_json(shown), lines=lines_of(cells)).to_json()

    def cancel(chosen: object, shown: object) -> Updates:
        expansions.cancel(KeptList.from_json(shown))
        return standing(chosen, shown)

    def discard(chosen: object) -> Updates:
        nothing = KeptList().to_json()
        return {kept: nothing} | standing(chosen, nothing)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    shown = [*panel.standing, kept]
    panel.show.click(show, [choice, attached, kept, steps, panel.hints], shown, **quiet)
    panel.again.click(again, [choice, attached, kept, steps, panel.table], shown, **quiet)
    panel.cancel.click(cancel, [choice, kept], shown, **quiet)
    panel.discard.click(discard, choice, shown, **quiet)
    panel.download.click(None, panel.table, js=_DOWNLOAD, api_visibility="private")
    panel.table.input(edit, [kept, panel.table], kept, **quiet)
    panel.timer.tick(standing, [choice, kept], shown, **quiet)
    choice.change(standing, [choice, kept], shown, trigger_mode="multiple", **quiet)
    blocks.load(standing, [choice, kept], shown, **quiet)


def hint_lines(engine: Engine, adapter: str) -> str:
    """Example prompts of a shipped adapter's task, one a line; empty for any other."""
    return "\n".join(escaped(prompt) for prompt in engine.hints(adapter))


def prompts_of(hints: str) -> tuple[str, ...]:
    r"""The prompts that the box of example prompts holds, one a line; `\n` stands for a line break."""
    return tuple(unescaped(line) for line in (hints or "").splitlines() if line.strip())


def asked_for(
    expansions: Expansions, selection: Selection, steps: float, hints: str, kept: KeptList
) -> TranslateRequest:
    """What *Translate* does with a choice, the slider of the steps, the example prompts, and the list."""
    return expansions.asked(TranslateRequest(selection, steps_of(steps), prompts_of(hints)), kept)


def _standing(panel: PromptsPanel, expansions: Expansions, chosen: Selection, shown: KeptList) -> Updates:
    job, made = expansions.pending(shown), expansions.made(shown, chosen)
    running = is_going(job)
    updates: Updates = {
        panel.job: views.job(job),
        panel.cancel: gr.update(visible=running, interactive=not (job and job.cancelling)),
        panel.timer: gr.update(active=running),
        panel.made: gr.update(visible=made is not None),
    }
    if made is None:
        return updates
    lines = shown.shown(made)
    return updates | {
        panel.told: told(made, lines, chosen.target),
        panel.table: gr.update(
            value=_cells(lines), visible=bool(made.expansion.rows), interactive=not made.is_unasked
        ),
        panel.again: gr.update(visible=not made.is_unasked),
        panel.download: gr.update(visible=not made.is_unasked),
    }


def told(made: Made, lines: tuple[Line, ...], target: str) -> str:
    """How much of the adapter the text excites, and what would help; and whether it is of another target."""
    found = made.expansion
    if not found.rows:
        read = "General text alone."
    elif made.asked.prompts:
        read = f"{len(lines):,} prompts and general text."
    elif made.is_unasked:
        read = f"{len(lines):,} passages that the adapter writes by itself, and general text."
    else:
        read = f"{len(lines):,} texts that the adapter answers by itself, and general text."
    of_target = made.asked.selection.target
    other = _OTHER.format(of_target) if made.is_read(lines) and of_target != target else ""
    words = " ".join(filter(None, (f"{read} {found.words}.", found.warning, other)))
    good = found.excites and not found.warning
    reads = _WRITTEN if made.is_unasked else _READ if made.asked.prompts else f"{_UNLESS} {_READ}"
    caption = f"{_REACH} {reads}" if found.rows else ""
    return views.sentence(words, "good" if good else "info") + views.caption(caption)


def _cells(lines: Sequence[Line]) -> list[list[Any]]:
    return [[line.use, escaped(line.prompt), escaped(line.answer)] for line in lines]


def _selection(chosen: object) -> Selection:
    """The choice as a fit takes it: what is shown is what a compiled LoRA would read."""
    pair = Workspace.from_json(chosen)
    return Selection(pair.source, pair.target, pair.adapter, "compiled")
