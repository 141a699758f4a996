"""What follows, everywhere on the page, from the choice of source, target and adapter.

One handler follows the pickers, and only what the visitor does (`input`): `change` fires as well where a
handler sets a picker, so handlers that listen to it answer one another, and do so without end.

What has to be read first, be it from the Hub, follows in a step of its own. So nobody waits for it who has
chosen anew meanwhile, and it is not shown to them.
"""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from app import sharing, views
from app.engine import Engine
from app.expansions import Expansions, KeptList
from app.facts import Opened
from app.tabs import explore as explore_tab
from app.tabs import generate as generate_tab
from app.tabs import heads as heads_tab
from app.tabs import heads_jobs
from app.tabs import mode as mode_tab
from app.tabs import pick as pick_tab
from app.tabs.explore import ExploreTab
from app.tabs.generate import GenerateTab
from app.tabs.heads import HeadsTab
from app.tabs.pick import PickTab
from app.tabs.prompts import asked_for, hint_lines
from app.workspace import Attached, Pair, Selection, Workspace, clamp_strength

Updates = dict[Any, Any]


@dataclass(frozen=True)
class Tabs:
    """Everything on the page that depends on the choice."""

    pick: PickTab
    generate: GenerateTab
    heads: HeadsTab
    explore: ExploreTab

    @property
    def followers(self) -> list[Any]:
        """What follows from the choice beside the pickers themselves."""
        return [
            *self.pick.followers, *self.generate.followers, *self.heads.followers, *self.explore.followers
        ]  # fmt: skip


@dataclass(frozen=True)
class Stores:
    """What the visitor's browser keeps; apart, so that what writes one never undoes another.

    `choice` is also what the page shows: after a picker was only visited, all three are still equal to it.
    `listed` is of the list of prompts.
    """

    choice: gr.BrowserState
    settings: gr.BrowserState
    attached: gr.BrowserState
    listed: gr.BrowserState


@dataclass
class Latest:
    """What one visitor's page is about; of the server's session, so that handlers see what others note.

    `chosen` is the newest choice, `described` the one whose facts the page shows.
    """

    chosen: Selection | None = None
    described: Selection | None = None


def wire_choice(
    blocks: gr.Blocks, tabs: Tabs, engine: Engine, expansions: Expansions, stores: Stores, latest: gr.State
) -> gr.events.Dependency:
    """Connect the pickers and the loading of the page to everything that depends on the choice.

    Returns:
        The event after which the choice that the browser kept stands in the pickers.
    """
    pick, options = tabs.pick, tabs.generate.options
    settings = tabs.generate.settings
    jobs_shown = [*tabs.generate.job_shown, *tabs.heads.job_shown]

    def follow(
        source: str, target: str, adapter: str, mode: str, segment: int, prompt: str,
        shown: object, kept: object, seen: Latest,
    ) -> Updates:  # fmt: skip
        before = Workspace.from_json(shown).selection
        asked = Selection.of(source, target, adapter, mode, segment)
        if (asked.pair, asked.adapter) == (before.pair, before.adapter):
            return {stores.choice: gr.skip()}
        chosen, opened = _meant(engine, before, asked)
        seen.chosen = chosen
        had = Attached.from_json(kept)
        made = replace(had, folder=opened.folder) if opened else without_closed(engine, had, chosen)
        updates: Updates = {stores.choice: Workspace.of(chosen).choice()}
        if made != had:
            # What has not changed is not written back: another handler may have changed it meanwhile.
            updates |= {stores.attached: made.to_json()}
        updates |= pick_tab.set_to(pick, engine, asked, chosen) | pick_tab.waiting(pick, engine, chosen)
        if opened:
            updates |= generate_tab.mode_updates(tabs.generate, chosen.mode)
            updates |= {
                options.mode: chosen.mode,
                options.segment: reaching(chosen.segment or 0, chosen.mode),
                options.strength: clamp_strength(opened.strength),
            }
        if chosen.adapter != before.adapter:
            updates |= {tabs.generate.hints: hint_lines(engine, chosen.adapter)}
        if (chosen.adapter, chosen.target) != (before.adapter, before.target):
            updates |= {tabs.generate.beside.retrained: ""}
        return updates | generate_tab.follow_choice(tabs.generate, engine, before, chosen, prompt or "")

    def restore(shown: object, kept: object, kept_jobs: object, link: str, seen: Latest) -> Updates:
        space = sharing.read(link or "", Workspace.from_json(shown, kept))
        made = Attached.from_json(kept_jobs)
        translation = engine.job(made.translate_job)
        mode, made = generate_tab.adopted(translation, made, space.mode)
        seen.chosen = chosen = replace(space, mode=mode).selection
        first: Updates = dict(zip(settings, space.settings().values(), strict=True))
        first |= generate_tab.mode_updates(tabs.generate, mode)
        first |= {
            options.mode: mode,
            options.segment: reaching(space.segment, mode, pick_tab.target_depth(engine, chosen.pair) or 1),
            tabs.generate.hints: hint_lines(engine, chosen.adapter),
            stores.choice: space.choice(),
            stores.attached: made.to_json(),
        }
        jobs = [
            *generate_tab.job_updates(translation), *heads_jobs.job_updates(engine, made.heads_job)
        ]  # fmt: skip
        first |= dict(zip(jobs_shown, jobs, strict=True))
        first |= pick_tab.set_to(pick, engine, None, chosen) | pick_tab.waiting(pick, engine, chosen)
        first |= _recorded(tabs, engine, seen, chosen, made)
        return first | generate_tab.follow(tabs.generate, engine, chosen, space.prompt)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    followed = [
        *pick.chosen, options.mode, options.strength, tabs.generate.prompt, stores.choice, stores.attached,
        *tabs.followers,
    ]  # fmt: skip
    # A list is left, and a typed name taken, with an `input` as well.
    chosen_anew = gr.on(
        [picker.input for picker in pick.chosen],
        follow,
        [*pick.chosen, *options.way, tabs.generate.prompt, stores.choice, stores.attached, latest],
        followed,
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    link = gr.Textbox(visible=False)
    restored = blocks.load(
        restore, [stores.choice, stores.settings, stores.attached, link, latest],
        list(dict.fromkeys([*followed, *settings, *jobs_shown])),
        js="(...kept) => [...kept.slice(0, -2), window.castStage.takeLink(), kept.at(-1)]", **quiet,
    )  # fmt: skip
    # A list that was still being built when its value came shows the page's first one: said once more. The
    # wait is a step of its own, so that what is said is what is chosen by then.
    put_back = restored.then(
        None, js="() => window.castStage.built('.pick-adapter input')", api_visibility="private"
    ).then(
        None, stores.choice, pick.chosen, api_visibility="private",
        js="(kept) => [kept.source, kept.target, kept.adapter]",
    )  # fmt: skip

    def follow_way(
        source: str, target: str, adapter: str, mode: str, segment: int, seen: Latest
    ) -> Updates:  # fmt: skip
        seen.chosen = Selection.of(source, target, adapter, mode, segment)
        return generate_tab.mode_updates(tabs.generate, mode)

    way_anew = gr.on(
        [widget.input for widget in options.way],
        follow_way, [*pick.chosen, *options.way, latest], tabs.generate.mode_shown,
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    for event in (chosen_anew, restored, way_anew):
        describe_after(event, tabs, engine, expansions, stores, latest)
    # A job that ends may change the mode, and teaches how long the next one takes.
    gr.on(
        [tabs.generate.steps.change, tabs.generate.hints.blur, stores.listed.change, stores.attached.change],
        trigger_mode="always_last", **_expecting(tabs, engine, expansions, stores, latest),
    )  # fmt: skip
    _wire_settings(settings, stores)
    return put_back


def _wire_settings(settings: list[Any], stores: Stores) -> None:
    """Keep the settings as they change; in the browser itself, where an older answer cannot come later."""
    names = ", ".join(Workspace().settings())
    for widget in settings:
        widget.change(
            None, settings, stores.settings, api_visibility="private", js=f"({names}) => [{{{names}}}]"
        )


def _expecting(
    tabs: Tabs, engine: Engine, expansions: Expansions, stores: Stores, latest: gr.State
) -> dict[str, Any]:
    """What an event is given to tell how long *Translate* may take, by all that it would read."""

    def expect(mode: str, segment: int, steps: int, hints: str, of_list: object, seen: Latest) -> str:
        if seen.chosen is None or not engine.knows(seen.chosen):
            # It is told once the choice's facts are.
            return gr.skip()
        of = seen.chosen
        chosen = Selection.of(of.source, of.target, of.adapter, mode, segment)
        request = asked_for(expansions, chosen, steps, hints, KeptList.from_json(of_list))
        return pick_tab.expected(engine, request)

    tab = tabs.generate
    return {
        "fn": expect,
        "inputs": [*tab.options.way, tab.steps, tab.hints, stores.listed, latest],
        "outputs": tabs.pick.expected,
        "show_progress": "hidden",
        "api_visibility": "private",
    }


def _meant(engine: Engine, before: Selection, asked: Selection) -> tuple[Selection, Opened | None]:
    """What the visitor's choice means, and the translated folder that it opens."""
    if asked.source != before.source and asked.adapter == before.adapter:
        options = engine.adapters(asked.source)
        kept = pick_tab.keep_adapter(options, asked.adapter, engine.is_shipped(asked.adapter))
        return replace(asked, adapter=kept), None
    try:
        opened = engine.opened(asked)
    except Exception:
        # The summary reads the same folder, and says what is wrong with it.
        return asked, None
    return (opened.selection, opened) if opened else (asked, None)


def without_closed(engine: Engine, made: Attached, chosen: Selection) -> Attached:
    """What a visitor has made and opened; the opened folder only while the choice is its own."""
    return made if engine.still_open(made.folder, chosen) else replace(made, folder="")


def reaching(segment: int, mode: str, blocks: int = 1) -> Any:
    """The segment slider at a place that it may not reach before the target's depth is read."""
    return gr.update(maximum=max(blocks, segment), value=segment, visible=mode == "hosted")


def describe_after(
    event: gr.events.Dependency, tabs: Tabs, engine: Engine, expansions: Expansions, stores: Stores,
    latest: gr.State,
) -> None:  # fmt: skip
    """Show what has to be read for the choice that an event leaves, unless another one is made meanwhile."""

    def described(segment: int, kept_jobs: object, seen: Latest) -> Updates:
        chosen, made = seen.chosen, Attached.from_json(kept_jobs)
        if chosen is None:
            return {tabs.pick.found: gr.skip()}
        updates = _described(tabs, engine, seen.described, chosen, int(segment or 0), made)
        if seen.chosen != chosen:
            return {tabs.pick.found: gr.skip()}
        seen.described = chosen
        return updates

    told = event.then(
        described, [tabs.generate.options.segment, stores.attached, latest], tabs.followers,
        trigger_mode="multiple", show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    told.then(trigger_mode="multiple", **_expecting(tabs, engine, expansions, stores, latest))


def _described(
    tabs: Tabs, engine: Engine, before: Selection | None, chosen: Selection, segment: int, made: Attached
) -> Updates:  # fmt: skip
    """What has to be read first; what is of the pair alone stays as it is while the pair does."""
    opened = engine.still_open(made.folder, chosen)
    updates = pick_tab.follow(tabs.pick, engine, chosen, views.opened(opened) if opened else "")
    if before is None or opened or chosen.target != before.target:
        updates |= mode_tab.follow(tabs.generate.options, engine, chosen.pair, segment)
    if before is None or chosen.pair != before.pair:
        updates |= _of_the_pair(tabs, engine, chosen.pair, made)
    return updates


def _recorded(tabs: Tabs, engine: Engine, seen: Latest, chosen: Selection, made: Attached) -> Updates:
    """What was recorded of a pair, where it was: it is shown at once, before anything is imported."""
    if engine.showcase is None or chosen.pair != engine.showcase.pair:
        return {}
    seen.described = chosen
    return _of_the_pair(tabs, engine, chosen.pair, made)


def _of_the_pair(tabs: Tabs, engine: Engine, pair: Pair, made: Attached) -> Updates:
    return heads_tab.follow(tabs.heads, engine, pair, made.heads_job) | explore_tab.follow(
        tabs.explore, engine, pair
    )
