"""``edgecompress label``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import OutputError
from edgecompress.terminal import add_json_flag, emit_json, note, progress

if TYPE_CHECKING:
    from edgecompress.distill.labelling import LabellingResult
    from edgecompress.distill.prompts import Sampling

_INCOMPLETE = 3  # exit code if prompts are left without a response


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="openai:https://HOST/v1#MODEL",
        help="the endpoint and its model; without an API key",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PROMPTS", help="JSON lines with prompt or messages"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="a .sqlite file, or a .jsonl file with a .sqlite file next to it; stored responses are kept",
    )
    add_asking(parser.add_argument_group("requests"))
    parser.add_argument(
        "--fleet", metavar="tcp://SCHEDULER:8786", help="distribute the prompts to the workers of a Dask scheduler"
    )
    add_json_flag(parser)


def add_asking(group: argparse._ArgumentGroup) -> None:
    """The flags that `label` and `distill` share."""
    group.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="concurrent requests, per worker with --fleet (8)"
    )
    group.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="maximum length of a response (1024)")
    group.add_argument("--temperature", type=float, help="default: the endpoint's")
    group.add_argument("--top-p", type=float, help="default: the endpoint's")
    group.add_argument(
        "--sampling-seed", type=int, metavar="N", help="seed sent with each request; some endpoints ignore it"
    )
    group.add_argument("--budget-tokens", type=int, metavar="N", help="limit for prompts and responses, over all runs")
    group.add_argument("--budget-money", type=float, metavar="X", help="limit in the currency of the prices")
    group.add_argument("--price-in", type=float, metavar="X", help="price of a million prompt tokens")
    group.add_argument("--price-out", type=float, metavar="X", help="price of a million response tokens")
    group.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="seconds without data before a request fails (120)"
    )
    group.add_argument("--tries", type=int, default=8, metavar="N", help="tries per prompt (8)")
    group.add_argument(
        "--api-key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable with the API key (OPENAI_API_KEY)",
    )
    group.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with the API key, instead; with --fleet, on each worker"
    )


def run(options: argparse.Namespace) -> int:
    store, lines = paths(options.output)
    with progress() as show:
        found = ask(options, options.data, store, show)
    if lines is not None:
        from edgecompress.distill.responses import write_jsonl

        note(f"wrote {write_jsonl(store, lines)} responses to {lines}")
    if options.json:
        emit_json(found)
    else:
        print(describe(found))
    return 0 if found.complete else _INCOMPLETE


def sampling(options: argparse.Namespace) -> Sampling:
    from edgecompress.distill.prompts import Sampling

    return Sampling(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.sampling_seed,
    )


def ask(
    options: argparse.Namespace, data: Path, store: Path, show: object, *, without_response: bool = False
) -> LabellingResult:
    """Run the labelling with the flags of :func:`add_asking`; `distill` calls it too."""
    from edgecompress.distill.budget import Limits
    from edgecompress.distill.endpoint import KeySource
    from edgecompress.distill.labelling import RetryPolicy, label

    assert callable(show)
    wishes = {
        "concurrency": options.concurrency,
        "sampling": sampling(options),
        "limits": Limits(
            tokens=options.budget_tokens,
            money=options.budget_money,
            price_in=options.price_in,
            price_out=options.price_out,
        ),
        "patience": RetryPolicy(tries=options.tries, timeout_s=options.timeout),
        "key": KeySource(
            variable=options.api_key_env, file=None if options.api_key_file is None else str(options.api_key_file)
        ),
        "show": show,
    }
    if (fleet := getattr(options, "fleet", None)) is not None:
        from edgecompress.distill.fleet_labelling import label_on_fleet

        return label_on_fleet(data, options.teacher, store, fleet, **wishes)
    return label(data, options.teacher, store, without_response=without_response, **wishes)


def paths(output: Path) -> tuple[Path, Path | None]:
    """The store, and the JSON lines file to write from it at the end."""
    if output.suffix == ".jsonl":
        return output.with_suffix(".sqlite"), output
    if output.suffix in (".sqlite", ".sqlite3", ".db"):
        return output, None
    raise OutputError(
        f"{output} is neither a .sqlite nor a .jsonl file", hint="Give -o responses.sqlite or -o responses.jsonl."
    )


def describe(found: LabellingResult) -> str:
    """A summary for the terminal."""
    counts = [f"{found.found + found.answered} of {found.prompts} prompts have a response"]
    counts += [f"{found.found} of them from earlier runs"] * bool(found.found)
    counts += [f"{found.cut} cut off at --max-tokens"] * bool(found.cut)
    lines = [f"{found.store}: {'; '.join(counts)}"]
    if found.repeated:
        lines.append(f"{found.repeated} duplicate prompts were asked once")
    money = "" if found.money is None else f", {found.money:.4f} spent"
    lines.append(f"{found.prompt_tokens} prompt tokens and {found.completion_tokens} response tokens{money}")
    if found.lost:
        lines.append(f"{found.lost} requests were sent and got no response: they may have been billed, so they count")
    if found.left:
        lines.append(f"{found.left} prompts were not asked: the budget does not cover them")
    if found.failed:
        lines.append(f"{found.failed} prompts failed; the same command retries them")
        lines += [f"  {reason}" for reason in found.reasons]
    return "\n".join(lines)
