"""The look: the Gradio theme, the style sheets, the script of talk mode, and the logo."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes


def assets_folder() -> Path:
    """The `assets` folder: inside an installed package, else at the top of a checkout."""
    top = Path(__file__).resolve().parent.parent
    # First the package's own: beside an installed one, a folder of this name may be anybody's.
    installed = top / "cast" / "assets"
    return installed if installed.is_dir() else top / "assets"


def launch_options() -> dict[str, Any]:
    """The look, as `Blocks.launch` takes it."""
    assets = assets_folder()
    script, sheet = (
        (assets / folder / name).read_text(encoding="utf-8")
        for folder, name in (("js", "stage.js"), ("css", "stage.css"))
    )
    return {
        "theme": make_theme(),
        "css_paths": assets / "css" / "page.css",
        # Not among the paths: Gradio would confine these rules to inside of its container.
        "head": f"<style>{sheet}</style><script>{script}</script>",
        "favicon_path": assets / "logo" / "cast.svg",
        "footer_links": [],
        "ssr_mode": False,
    }


def script(name: str) -> str:
    """A script of the page by its name, to be run where a widget is put in place."""
    return (assets_folder() / "js" / f"{name}.js").read_text(encoding="utf-8")


def logo() -> str:
    """The logo as inline SVG."""
    return (assets_folder() / "logo" / "cast.svg").read_text(encoding="utf-8")


def make_theme() -> gr.themes.Base:
    """A quiet theme: ink on paper, colour kept for source, target and adapter."""
    return gr.themes.Base(
        primary_hue=colors.slate,
        secondary_hue=colors.slate,
        neutral_hue=colors.slate,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_md,
        text_size=sizes.text_md,
        font=(
            fonts.LocalFont("IBM Plex Sans", weights=(400, 700)),
            "ui-sans-serif",
            "system-ui",
            "sans-serif",
        ),
        font_mono=(
            fonts.LocalFont("IBM Plex Mono", weights=(400, 700)),
            "ui-monospace",
            "Consolas",
            "monospace",
        ),
    ).set(
        body_background_fill="#f7f8fa",
        body_background_fill_dark="#0d1117",
        body_text_color="#16202c",
        body_text_color_dark="#e6ebf1",
        body_text_color_subdued="#566272",
        body_text_color_subdued_dark="#9aa7b6",
        block_background_fill="#ffffff",
        block_background_fill_dark="#151b23",
        block_border_width="0px",
        block_border_color="#dde2e8",
        block_border_color_dark="#2a333f",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*body_text_color_subdued",
        block_title_text_color="*body_text_color_subdued",
        block_title_text_weight="600",
        border_color_primary="#dde2e8",
        border_color_primary_dark="#2a333f",
        input_background_fill="#ffffff",
        input_background_fill_dark="#0d1117",
        input_border_width="1px",
        input_border_color="#c3cbd5",
        input_border_color_dark="#3a4553",
        input_border_color_focus="#16202c",
        input_border_color_focus_dark="#e6ebf1",
        button_primary_background_fill="#16202c",
        button_primary_background_fill_hover="#2c3a4b",
        button_primary_background_fill_dark="#e6ebf1",
        button_primary_background_fill_hover_dark="#ffffff",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#0d1117",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#eef1f4",
        button_secondary_background_fill_dark="#1d2530",
        button_secondary_background_fill_hover_dark="#2a333f",
        button_secondary_text_color="*body_text_color",
        button_border_width="1px",
        button_secondary_border_color="#c3cbd5",
        button_secondary_border_color_dark="#3a4553",
        slider_color="#566272",
        slider_color_dark="#9aa7b6",
        layout_gap="16px",
        block_padding="12px 16px",
    )
