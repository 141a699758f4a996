"""The signature picture: two stacks of blocks, the layer map between them, the adapted blocks lit.

The adapter's green shows where its change crosses: along the map from block to block, or at the end of the
stacks where only words cross.

Drawn as inline SVG that takes its colours from the page, so it follows dark and light. Depth runs from left
to right; the source stands above the target. Source blocks are round and solid, target blocks square and
dashed, adapted blocks carry a triangle: no meaning rests on colour alone.
"""

from collections.abc import Sequence
from html import escape

from app.facts import AdapterFacts, ModelFacts

_WIDTH = 560.0
_LEFT, _RIGHT = 16.0, 544.0
_SOURCE_Y, _TARGET_Y = 48.0, 208.0
_HEIGHT = 256.0
_MAX_BLOCK = 72.0
_BLOCK_HEIGHT = 48.0


def stacks(
    source: ModelFacts,
    target: ModelFacts,
    adapter: AdapterFacts | None,
    layer_map: Sequence[int],
    by_words: bool = False,
    fitted: bool = False,
) -> str:
    """An SVG of the pair.

    Args:
        source: the upper stack.
        target: the lower stack.
        adapter: what acts in the source's blocks.
        layer_map: the source depth of each target depth 0 … L_t.
        by_words: the change crosses behind the last blocks instead of along the map.
        fitted: a LoRA of the target is fitted to the words of the source, which cross there as well.
    """
    by_words = by_words or fitted
    upper, lower = _centres(source.depth), _centres(target.depth)
    effect = {site.block: site.effect for site in adapter.sites} if adapter else {}
    roles = {site.block: ", ".join(site.roles) for site in adapter.sites} if adapter else {}
    parts = [_lane(_SOURCE_Y, "source"), _lane(_TARGET_Y, "target")]
    crossing = {} if by_words else effect
    parts += _map_lines(upper, lower, layer_map, crossing)
    if by_words and effect:
        parts.append(
            f'<path class="map-line lit" stroke-width="3.5" d="M{_RIGHT:g} {_SOURCE_Y:g} V{_TARGET_Y:g}"/>'
        )
    size = _block_size(source.depth)
    for block, x in enumerate(upper, 1):
        parts.append(_source_block(block, x, size, effect.get(block), roles.get(block, "")))
    size = _block_size(target.depth)
    for block, x in enumerate(lower, 1):
        hosted = _hosted(layer_map, block)
        reach = max((crossing[b] for b in hosted if b in crossing), default=None)
        parts.append(_target_block(block, x, size, hosted, reach, by_words))
    if by_words:
        parts.append(_moving(f"M{_LEFT:g} {_SOURCE_Y:g} H{_RIGHT:g} V{_TARGET_Y:g}"))
    else:
        parts.append(_token(upper, lower, layer_map, effect))
    crosses = _crossing(by_words, fitted)
    words = _in_words(source, target, adapter, crosses)
    return (
        f'<figure class="cast-card cast-stacks"><svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="{escape(words)}">{"".join(parts)}</svg>'
        f"<figcaption>{_legend(source, target, adapter, crosses)}</figcaption></figure>"
    )


def stack(source: ModelFacts, adapter: AdapterFacts) -> str:
    """An SVG of the source alone, its adapted blocks lit."""
    effect = {site.block: site.effect for site in adapter.sites}
    roles = {site.block: ", ".join(site.roles) for site in adapter.sites}
    size = _block_size(source.depth)
    blocks = "".join(
        _source_block(block, x, size, effect.get(block), roles.get(block, ""))
        for block, x in enumerate(_centres(source.depth), 1)
    )
    words = f"{source.depth} blocks of {source.name}; {adapter.name} acts in {len(adapter.sites)} of them."
    return (
        f'<figure class="cast-card cast-stacks"><svg viewBox="0 0 {_WIDTH:g} {2 * _SOURCE_Y:g}" role="img" '
        f'aria-label="{escape(words)}">{_lane(_SOURCE_Y, "source")}{blocks}</svg></figure>'
    )


def relative_layer_map(source_depth: int, target_depth: int) -> tuple[int, ...]:
    """The map that is drawn while no heads are known: equal relative depth."""
    return tuple(round(depth * source_depth / target_depth) for depth in range(target_depth + 1))


def _centres(depth: int) -> list[float]:
    step = (_RIGHT - _LEFT) / max(depth, 1)
    return [_LEFT + step * (block + 0.5) for block in range(depth)]


def _block_size(depth: int) -> float:
    return min(_MAX_BLOCK, 0.72 * (_RIGHT - _LEFT) / max(depth, 1))


def _lane(y: float, side: str) -> str:
    return f'<line class="lane lane-{side}" x1="{_LEFT:g}" y1="{y:g}" x2="{_RIGHT:g}" y2="{y:g}"/>'


def _hosted(layer_map: Sequence[int], block: int) -> range:
    if block >= len(layer_map):
        return range(0)
    return range(layer_map[block - 1] + 1, layer_map[block] + 1)


def _map_lines(
    upper: Sequence[float], lower: Sequence[float], layer_map: Sequence[int], effect: dict[int, float]
) -> list[str]:
    lines = []
    for block, x in enumerate(lower, 1):
        for hosted in _hosted(layer_map, block):
            if hosted > len(upper):
                continue
            lit = effect.get(hosted)
            css = "map-line lit" if lit is not None else "map-line"
            width = 1.0 + 2.5 * (lit or 0.0)
            top, middle, bottom = _SOURCE_Y, (_SOURCE_Y + _TARGET_Y) / 2, _TARGET_Y
            lines.append(
                f'<path class="{css}" stroke-width="{width:.2f}" '
                f'd="M{upper[hosted - 1]:.1f} {top:g} C{upper[hosted - 1]:.1f} {middle:g} {x:.1f} {middle:g} '
                f'{x:.1f} {bottom:g}"/>'
            )
    return lines


def _source_block(block: int, x: float, size: float, effect: float | None, roles: str) -> str:
    height = _BLOCK_HEIGHT
    title = f"Source block {block}" + (f": adapted at {roles}" if roles else ": not adapted")
    lit = _glow(x, _SOURCE_Y, size, height, effect)
    radius = min(height, size) / 2
    return (
        f"<g><title>{escape(title)}</title>{lit}"
        f'<rect class="block block-source" x="{x - size / 2:.1f}" y="{_SOURCE_Y - height / 2:g}" '
        f'width="{size:.1f}" height="{height:g}" rx="{radius:.1f}"/>'
        f"{_triangle(x, _SOURCE_Y, size, effect)}</g>"
    )


def _target_block(
    block: int, x: float, size: float, hosted: range, effect: float | None, by_words: bool
) -> str:
    height = _BLOCK_HEIGHT
    guests = ", ".join(str(b) for b in hosted)
    title = f"Target block {block}: {'like' if by_words else 'hosts'} "
    title += f"source block {guests}" if guests else "none"
    return (
        f"<g><title>{escape(title)}</title>{_glow(x, _TARGET_Y, size, height, effect)}"
        f'<rect class="block block-target" x="{x - size / 2:.1f}" y="{_TARGET_Y - height / 2:g}" '
        f'width="{size:.1f}" height="{height:g}"/></g>'
    )


def _glow(x: float, y: float, size: float, height: float, effect: float | None) -> str:
    if effect is None:
        return ""
    pad = 3.0
    return (
        f'<rect class="glow" opacity="{0.15 + 0.5 * effect:.2f}" x="{x - size / 2 - pad:.1f}" '
        f'y="{y - height / 2 - pad:.1f}" width="{size + 2 * pad:.1f}" height="{height + 2 * pad:.1f}" '
        'rx="6"/>'
    )


def _triangle(x: float, y: float, size: float, effect: float | None) -> str:
    if effect is None:
        return ""
    half = min(12.0, size / 3) * (0.5 + 0.5 * effect)
    points = f"{x:.1f},{y - half:.1f} {x + half:.1f},{y + half * 0.8:.1f} {x - half:.1f},{y + half * 0.8:.1f}"
    return f'<polygon class="adapter-mark" points="{points}"/>'


def _token(
    upper: Sequence[float], lower: Sequence[float], layer_map: Sequence[int], effect: dict[int, float]
) -> str:
    """One token that travels along the source, crosses at the last adapted block, and goes on."""
    if not upper or not lower or len(layer_map) != len(lower) + 1:
        return ""
    last = max((b for b in effect if b <= len(upper)), default=len(upper))
    landing = next((b for b in range(1, len(layer_map)) if layer_map[b] >= last), len(lower))
    cross, land = upper[last - 1], lower[landing - 1]
    path = (
        f"M{_LEFT:g} {_SOURCE_Y:g} L{cross:.1f} {_SOURCE_Y:g} "
        f"C{cross:.1f} {(_SOURCE_Y + _TARGET_Y) / 2:g} {land:.1f} {(_SOURCE_Y + _TARGET_Y) / 2:g} "
        f"{land:.1f} {_TARGET_Y:g} L{_RIGHT:g} {_TARGET_Y:g}"
    )
    return _moving(path)


def _moving(path: str) -> str:
    motion = f'<animateMotion dur="7s" repeatCount="indefinite" path="{path}"/>'
    return f'<circle class="token" r="5">{motion}</circle>'


def _legend(source: ModelFacts, target: ModelFacts, adapter: AdapterFacts | None, crosses: str) -> str:
    parts = [
        f'<span><i class="mark mark-source"></i>{escape(source.name)}, {source.depth} blocks</span>',
        f'<span><i class="mark mark-target"></i>{escape(target.name)}, {target.depth} blocks</span>',
    ]
    if adapter:
        parts.append(
            f'<span><i class="mark mark-adapter"></i>{escape(adapter.name)}, '
            f"in {len(adapter.sites)} of {source.depth} blocks</span>"
        )
        parts.append(f"<span>{crosses}</span>")
    return "".join(parts)


def _crossing(by_words: bool, fitted: bool) -> str:
    if fitted:
        return "Fitted to the words of the adapted source; grey joins blocks of like depth."
    if by_words:
        return "Words cross at the end of the stacks; grey joins blocks of like depth."
    return "The change crosses along the green lines, through the heads."


def _in_words(source: ModelFacts, target: ModelFacts, adapter: AdapterFacts | None, crosses: str) -> str:
    words = f"{source.depth} blocks of {source.name} above, {target.depth} blocks of {target.name} below, "
    words += "joined by the layer map"
    if adapter:
        words += f"; {adapter.name} acts in {len(adapter.sites)} source blocks. {crosses}"
    return words.removesuffix(".") + "."
