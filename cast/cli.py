"""The command line: what can be asked, how answers are printed, and how errors leave.

This module only parses; the work of each command is a function of the same name in `cast.commands`, which is
imported when a command runs, so that `--help` answers at once.

Exit codes: 0, 2 for a wrong request (a sentence on stderr, no traceback), 130 when interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cast.errors import Cancelled, CastError
from cast.layer_measures import MEASURES
from cast.progress import OnProgress, Progress, ignore

EXIT_REQUEST = 2
EXIT_INTERRUPTED = 130

MODES = ("compiled", "hosted", "instant", "kernel")
Adder = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True)
class Command:
    """One command: the name it has, what it says of itself, and how it takes its arguments."""

    name: str
    summary: str
    add_arguments: Adder

    @property
    def function(self) -> str:
        """Name of the function in `cast.commands`."""
        return self.name.replace("-", "_").replace(" ", "_")


class _Bar:
    """A progress bar on stderr; one line a stage."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._make: Callable[..., Any] = tqdm
        self._bar: Any = None
        self._stage = ""

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage or self._bar is None:
            self.close()
            self._stage = progress.stage
            self._bar = self._make(total=progress.total or None, desc=progress.stage, file=sys.stderr)
        self._bar.n = progress.done
        if progress.metrics:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in progress.metrics.items()}, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _pair(parser: argparse.ArgumentParser, *, many_targets: bool = False) -> None:
    parser.add_argument(
        "--source", required=True, metavar="S", help="the model that the adapter was trained on"
    )
    parser.add_argument(
        "--target",
        required=True,
        metavar="T",
        action="append" if many_targets else "store",
        help="the model that shall have the skill" + ("; may be repeated" if many_targets else ""),
    )


def _text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus",
        metavar="C",
        help="general text: 'pocket', a .txt or .jsonl file, a folder of them, or a Hub dataset id",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default 0)")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; the best one when left out")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the models; measured when left out"
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _fit(parser: argparse.ArgumentParser) -> None:
    _pair(parser)
    _text(parser)
    _device(parser)
    parser.add_argument("--tokens", type=int, metavar="N", help="aligned tokens to fit on")
    parser.add_argument("--head", choices=("linear", "mlp"), default="mlp", help="kind of head (default mlp)")
    parser.add_argument("--kl-weight", type=float, help="of the KL at the last depth; 0 fits states alone")
    parser.add_argument(
        "--layers",
        choices=("depth", "r2", "cka", "knn"),
        help="source layer of each target layer: by relative depth (default), or the most alike by a measure",
    )
    parser.add_argument(
        "--encode-reads", type=int, metavar="N", help="target depths that an encode head reads (default 1)"
    )
    parser.add_argument("--depths", type=_numbers, metavar="N,N", help="target depths (default all)")
    parser.add_argument("--batch-size", type=int, help="texts run through the models at once")
    parser.add_argument("--learning-rate", type=float, help="peak of the gradient steps (default by width)")
    parser.add_argument("--passes", type=int, help="passes over the text for gradient steps")
    parser.add_argument("--repeats", type=int, help="uses of each chunk of activations")
    parser.add_argument("--mlp-width", type=int, help="hidden units of an MLP head")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the heads")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside DIR")


def _translation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--heads",
        metavar="H",
        help="heads to use, a folder or a Hub id; else shipped or cached ones; else they are fitted, where "
        "the mode needs some",
    )
    parser.add_argument(
        "--strength", type=float, help="multiplies the carried change; 0 is the base (default 1)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="compiled mode: steps of the fit, or of a round of it (default by size and prompts)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help="compiled mode, by words and with prompts: rounds of steps at most; another follows while "
        "held-out answers that end are not yet said",
    )
    parser.add_argument("--rank", type=int, help="compiled mode: rank of the adapter that is fitted")


def _translate(parser: argparse.ArgumentParser) -> None:
    _pair(parser, many_targets=True)
    parser.add_argument("--adapter", required=True, metavar="A", help="LoRA of the source")
    parser.add_argument("--mode", choices=MODES, default="compiled", help="default: compiled")
    parser.add_argument(
        "--segment",
        metavar="N",
        help="hosted mode: target blocks between one encode and one decode, or 'all' (whole source stack)",
    )
    parser.add_argument(
        "--readout",
        choices=("words", "states"),
        help="hosted (whole stack) and compiled: take over the source's change of words (default), or of its "
        "states, through the heads",
    )
    _translation(parser)
    parser.add_argument(
        "--prompts",
        metavar="F.txt",
        help=r"unlabelled prompts, one a line (\n breaks it), or those of a task file (.jsonl)",
    )
    parser.add_argument(
        "--as-they-stand", action="store_true", help="read the prompts as they are, and make none of them"
    )
    _text(parser)
    _device(parser)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the result; one inside it a target if several"
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="M")
    parser.add_argument("--data", required=True, metavar="F.jsonl", help="task file, or pocket:mood")
    parser.add_argument("--adapter", action="append", default=[], metavar="DIR", help="may be repeated")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--limit", type=int, default=500, help="examples at most (default 500)")
    _device(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    _pair(parser)
    parser.add_argument("--adapter", required=True, metavar="A")
    parser.add_argument("--data", required=True, metavar="F.jsonl", help="task file, or pocket:mood")
    parser.add_argument(
        "--methods",
        default=",".join(MODES),
        help="comma-separated: modes, hosted-2, hosted-states, or baselines such as proxy-tuning, theseus, "
        f"cross-lora; a wrong name lists them all (default {','.join(MODES)})",
    )
    parser.add_argument(
        "--retrained", metavar="DIR", help="LoRA retrained on the target; pocket tasks know theirs"
    )
    parser.add_argument("--train", metavar="F.jsonl", help="train the retrained reference on this file")
    _translation(parser)
    parser.add_argument("--prompts", metavar="F.txt", help="unlabelled prompts, one a line, for compiled")
    parser.add_argument("--limit", type=int, default=500, help="examples at most (default 500)")
    parser.add_argument("--results", metavar="DIR", help="also write one JSON file a method into DIR")
    _text(parser)
    _device(parser)


def _generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="M")
    parser.add_argument("--adapter", metavar="DIR")
    parser.add_argument(
        "--prompt", required=True, metavar="P", help="text to go on from; '-' reads standard input"
    )
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)"
    )
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--stop", metavar="TEXT", help="stop before this text")
    parser.add_argument("--seed", type=int, default=0)
    _device(parser)


def _train_lora(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="M")
    parser.add_argument("--data", required=True, metavar="F.jsonl", help="task file, or pocket:mood")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    _device(parser)


def _manifold(parser: argparse.ArgumentParser) -> None:
    _pair(parser)
    parser.add_argument(
        "--layer", type=int, metavar="L", help="target depth, 0 is the embedding; not for --view along"
    )
    parser.add_argument(
        "--source-layer", type=int, metavar="L", help="default: the one that goes with --layer"
    )
    parser.add_argument("--adapter", metavar="A", help="also show where this source adapter moves the tokens")
    parser.add_argument(
        "--translated", metavar="DIR", help="also show where a translated folder moves them in the target"
    )
    parser.add_argument("--heads", metavar="H", help="heads to use, a folder or a Hub id")
    parser.add_argument(
        "--view", choices=("joint", "own", "along"), default="joint",
        help="one joint map (default), a map of each model's own, or a joint map along all layers",
    )  # fmt: skip
    parser.add_argument("--method", choices=("umap", "pca"), default="umap")
    parser.add_argument("--dimensions", type=int, choices=(2, 3), default=2)
    parser.add_argument(
        "--colour", choices=("model", "kind", "position", "sentence", "shift"), default="model",
        help="what the tokens are coloured by; shift is the adapter's effect",
    )  # fmt: skip
    parser.add_argument("--points", type=int, default=2000, help="tokens on the map (default 2000)")
    _text(parser)
    _device(parser)
    parser.add_argument("--out", required=True, metavar="F.html", help="a page, or F.csv for the tokens")


def _layers(parser: argparse.ArgumentParser) -> None:
    _pair(parser)
    parser.add_argument("--points", type=int, default=600, help="tokens to compare on (default 600)")
    parser.add_argument("--measure", choices=MEASURES, default=MEASURES[0])
    _text(parser)
    _device(parser)
    parser.add_argument("--out", metavar="F.html", help="also draw the grid of one measure as a page")


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="X", help="a model, an adapter, heads or a translated adapter")


def _search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hub id of the model whose LoRAs are wanted")
    parser.add_argument("--limit", type=int, default=20)


def _push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument(
        "repo", metavar="REPO", help="owner/name; the token is read from HF_TOKEN or the Hub's login"
    )
    parser.add_argument("--private", action="store_true")


def _pocket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "build", "verify"))
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a part of it, such as llama or llama/mood"
    )


def _app(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT or 7860")
    parser.add_argument("--host", help="default: GRADIO_SERVER_NAME or 127.0.0.1")


COMMANDS = (
    Command("fit", "train the heads of a pair of models on general text", _fit),
    Command("translate", "translate an adapter of the source for the target", _translate),
    Command("evaluate", "score a model, and adapters on it, on a task file", _evaluate),
    Command("compare", "measure recovered lift of the modes on a task", _compare),
    Command("generate", "generate text, streaming", _generate),
    Command("train-lora", "train an ordinary LoRA on a task file (the retrained reference)", _train_lora),
    Command("manifold", "draw source and target activations in one map", _manifold),
    Command("layers", "compare every layer of a source with every layer of a target", _layers),
    Command("inspect", "say what a model, an adapter or a heads folder is", _inspect),
    Command("search", "find LoRAs of a model on the Hub", _search),
    Command("push", "publish a folder to the Hub", _push),
    Command("pocket", "list, rebuild or verify the models that ship with CAST", _pocket),
    Command("app", "open the page", _app),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="cast",
        description="Carry a LoRA from the model it was trained on to another model.",
        epilog="A model is a Hub id, a local folder, a .gguf file or pocket:NAME; "
        "an adapter is a Hub id, a local folder or pocket:NAME/TASK; 'X + Y' is two of them at once.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.summary, description=command.summary)
        command.add_arguments(sub)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object on stdout and nothing else"
        )
        sub.set_defaults(function=command.function)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = build_parser().parse_args(argv)
    bar = _Bar() if sys.stderr.isatty() else None
    on_progress: OnProgress = bar or ignore
    say: Callable[[str], None] = (lambda text: None) if arguments.json else _print
    try:
        from cast import commands

        answer: Mapping[str, Any] = getattr(commands, arguments.function)(arguments, say, on_progress)
        if arguments.json:
            json.dump(answer, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
            sys.stdout.write("\n")
        sys.stdout.flush()
    except (KeyboardInterrupt, Cancelled):
        return _fail("Interrupted.", EXIT_INTERRUPTED, bar)
    except CastError as error:
        return _fail(str(error), EXIT_REQUEST, bar)
    except BrokenPipeError:
        # The reader of a pipe has gone; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if bar:
        bar.close()
    return 0


def _print(text: str) -> None:
    print(text, flush=True)


def _fail(message: str, code: int, bar: _Bar | None) -> int:
    if bar:
        bar.close()
    print(f"cast: {message}", file=sys.stderr)
    return code
