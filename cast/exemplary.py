"""Found forms that could be given as example prompts, and more of their kind.

Of the forms of `cast.forms` those on which an adapter's kernels act most have the headings of its prompts,
about as much energy as these, and much that nobody would write: words of other languages, numbers for lines.
The most readable of them are near enough to real prompts to show a base model what more shall look like, as
five given ones are (`cast.exciting`); what it writes has more energy than forms put together from parts.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from cast.adapters import Lora
from cast.exciting import best_writer, expanded
from cast.kernel_energy import log_energy_at_ends, speaking
from cast.models import LanguageModel
from cast.progress import OnProgress, ignore
from cast.runners import PlainRunner
from cast.scoring import completion_log_probs

# Of all forms such a share is looked at, those with the most energy, and of these the more readable ones.
_EXCITING, _READABLE = 1 / 16, 0.5
# So many forms with the same headings are examples, and no more are needed.
_FEWEST, _MOST = 5, 16
_HEADING = re.compile(r"[^\W\d_][\w ]{0,20}(?=:)")


def exemplary(writer: LanguageModel, forms: Mapping[str, float]) -> list[str]:
    """Forms with the same headings that could be given as example prompts, the most readable first.

    Args:
        writer: the model that tells how readable a form is, by its nats a byte.
        forms: with the energy of each.

    Returns:
        None where the most exciting forms have too little in common.
    """
    count = round(_EXCITING * len(forms))
    exciting = [form for form in _most(forms)[:count] if _headings(form)[-1]]
    nats = completion_log_probs(PlainRunner(writer), [("", form) for form in exciting])
    a_byte = {form: nats[place] / len(form.encode()) for place, form in enumerate(exciting)}
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for form in _most(a_byte)[: round(_READABLE * len(exciting))]:
        groups[_headings(form)].append(form)
    largest = max(groups.values(), key=len, default=[])
    return largest[:_MOST] if len(largest) >= _FEWEST else []


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
        None where no forms could be examples, or where those put together from parts excite the adapter as
        much as what is written.
    """
    shown = exemplary(target, forms)
    if not shown:
        return {}
    written = expanded(
        best_writer([source, target], shown), shown, count, words=words, seed=seed, on_progress=on_progress
    )
    energies = log_energy_at_ends(source, speaking(lora), written, on_progress=on_progress)
    best = [forms[form] for form in _most(forms)[: len(written)]]
    return dict(zip(written, energies, strict=True)) if fmean(energies) > fmean(best) else {}


def _most(values: Mapping[str, float]) -> list[str]:
    return sorted(values, key=values.__getitem__, reverse=True)


def _headings(form: str) -> tuple[str, ...]:
    """The heading of each line; empty where it has none."""
    found = (_HEADING.match(line) for line in form.split("\n"))
    return tuple(match.group() if match else "" for match in found)
