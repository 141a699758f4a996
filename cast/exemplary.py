"""Found forms that could be given as example prompts, and more of their kind.

Of the forms of `cast.forms` those on which an adapter's kernels act most have the headings of its prompts,
about as much energy as these, and much that nobody would write: words of other languages, numbers for lines.
The most readable of them are near enough to real prompts to show a base model what more shall look like, as
five given ones are (`cast.exciting`); what it writes has more energy than forms put together from parts.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from cast.adapters import Lora
from cast.exciting import SHOTS, best_writer, expanded
from cast.kernel_energy import log_energy_at_ends, speaking
from cast.models import LanguageModel
from cast.progress import OnProgress, ignore
from cast.runners import PlainRunner
from cast.scoring import completion_log_probs

# Of all forms such a share is looked at, those with the most energy, and of these the more readable ones.
_EXCITING, _READABLE = 1 / 16, 0.5
# So many forms with the same headings are examples, and no more are needed. Of a second skill there are at
# least such a share of the first one's.
_FEWEST, _MOST, _BESIDE = 5, 16, 0.5
# What is shown and written is together no longer than so many forms.
_TOGETHER = SHOTS + 3
_HEADING = re.compile(r"[^\W\d_][\w ]{0,20}(?=:)")


@dataclass(frozen=True)
class Examples:
    """Forms that could be given as example prompts."""

    groups: Sequence[Sequence[str]]
    """Those of each skill, which have the same headings, the most readable first."""
    are_usual: bool
    """Whether most of the exciting forms end as these do; not where there are none."""


def exemplary(source: LanguageModel, target: LanguageModel, forms: Mapping[str, float]) -> Examples:
    """Forms with the same headings that could be given as example prompts.

    Args:
        source: the adapter's model.
        target: it tells how readable a form is, by its nats a byte.
        forms: with the energy of each.

    Returns:
        No groups where the most exciting forms have too little in common.
    """
    exciting = _most(forms)[: round(_EXCITING * len(forms))]
    room = min(lm.context_length or math.inf for lm in (source, target)) / _TOGETHER
    some = [form for form in exciting if _headings(form)[-1]]
    for lm in (source, target):
        ids, _ = lm.tokens(some)
        some = [form for form, of_form in zip(some, ids, strict=True) if len(of_form) <= room]
    nats = completion_log_probs(PlainRunner(target), [("", form) for form in some])
    a_byte = {form: total / len(form.encode()) for form, total in zip(some, nats, strict=True)}
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for form in _most(a_byte)[: round(_READABLE * len(some))]:
        alike[_headings(form)].append(form)
    by_cue: dict[str, list[str]] = {}
    for headings, group in alike.items():
        by_cue[headings[-1]] = max(by_cue.get(headings[-1], []), group, key=len)
    least = max(_FEWEST, _BESIDE * max(map(len, by_cue.values()), default=0))
    groups = {cue: group for cue, group in by_cue.items() if len(group) >= least}
    usual = sum(_headings(form)[-1] in groups for form in exciting)
    return Examples([group[:_MOST] for group in groups.values()], 2 * usual > len(exciting))


def more_of_the_best(
    source: LanguageModel,
    lora: Lora,
    target: LanguageModel,
    forms: Mapping[str, float],
    count: int,
    *,
    words: Sequence[str] = (),
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> dict[str, float]:
    """Prompts like the best of found forms, as a base model writes them, with the energy of their ends.

    Args:
        source: the adapter's model.
        lora: the adapter.
        target: the model that the adapter shall go to; it writes them if it knows such text better.
        forms: found ones, with the energy of each.
        count: how many there shall be, those that are shown among them.
        words: what new ones may begin with; see `cast.exciting.expanded`.
        seed: of all that is drawn.
        on_progress: gets the stages `generate` and `forms`.

    Returns:
        Nothing where no forms could be examples, or most exciting ones end in another way, or where those put
        together from parts excite the adapter as much as what is written.
    """
    found = exemplary(source, target, forms)
    if not found.are_usual:
        return {}
    shown = sum(map(len, found.groups))
    written: list[str] = []
    for group in found.groups:
        written += expanded(
            best_writer([source, target], group), group, round(count * len(group) / shown),
            words=words, seed=seed, on_progress=on_progress,
        )  # fmt: skip
    energies = log_energy_at_ends(source, speaking(lora), written, on_progress=on_progress)
    best = [forms[form] for form in _most(forms)[: len(written)]]
    return dict(zip(written, energies, strict=True)) if fmean(energies) > fmean(best) else {}


def _most(values: Mapping[str, float]) -> list[str]:
    return sorted(values, key=values.__getitem__, reverse=True)


def _headings(form: str) -> tuple[str, ...]:
    """The heading of each line; empty where it has none."""
    found = (_HEADING.match(line) for line in form.split("\n"))
    return tuple(match.group() if match else "" for match in found)
