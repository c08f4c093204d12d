"""``edgecompress distill``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.cli.label import add_asking
from edgecompress.errors import EndpointError, UsageError
from edgecompress.terminal import add_json_flag, emit_json, note, progress
from edgecompress.types.distill import Distillation, DistillRecipe, TeacherRecord

if TYPE_CHECKING:
    from edgecompress.distill.data import TeachingData
    from edgecompress.distill.endpoint import Endpoint
    from edgecompress.distill.plan import Plan

_ENDPOINT = "openai:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="CHECKPOINT",
        help="a directory, a hub id, or an endpoint: openai:https://HOST/v1#MODEL",
    )
    parser.add_argument(
        "--student",
        type=Path,
        required=True,
        metavar="RECIPE",
        help="a TOML file; `[student]` and `layers = 3` is enough",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="JSON lines with text, or with prompt and response; or one text per line",
    )
    parser.add_argument("-o", "--output", type=Path, help="the folder to create for the student")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted training")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, metavar="N", help="training time on this machine")
    length.add_argument("--steps", type=int, metavar="N", help="number of steps, instead of minutes; repeatable (1000)")
    parser.add_argument("--seed", type=int, metavar="N", help="overrides the recipe's seed")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for torch")
    parser.add_argument("--dry-run", action="store_true", help="check the inputs, print the resolved recipe, and stop")
    add_asking(parser.add_argument_group("requests to an endpoint"))
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    if options.output is None and not options.dry_run:
        raise UsageError("no output given", hint="Give -o PATH, the folder to create.")
    if options.threads is not None and options.threads < 1:
        raise UsageError(
            f"threads must be at least 1, not {options.threads}", hint="Omit --threads for torch's default."
        )
    recipe = recipe_from(options)
    if options.output is not None and not options.dry_run:
        from edgecompress.distill.output import check_free

        check_free(options.output)
    with progress() as show:
        show("reading the checkpoint")
        plan = _plan(options, recipe, show)
        if options.dry_run:
            made = None
        else:
            from edgecompress.distill.run import distill

            made = distill(plan, options.output, resume=options.resume, threads=options.threads, show=show)
    if made is not None and find_spec("matplotlib") is None:
        note("loss.svg is missing: it needs matplotlib (pip install 'edgecompress[report]')")
    if made is None:
        _print_plan(plan, options.json)
    elif options.json:
        emit_json({"output": str(options.output), "distillation": made})
    else:
        print(describe(made, options.output))
    return 0


def recipe_from(options: argparse.Namespace) -> DistillRecipe:
    """The recipe file, with the flags applied."""
    from edgecompress.formats.distill_recipe import read_distill_recipe, validate_distill_recipe

    recipe = read_distill_recipe(options.student)
    training = recipe.training
    if options.steps is not None or options.minutes is not None:
        training = replace(training, steps=options.steps, minutes=options.minutes)
    if options.seed is not None:
        training = replace(training, seed=options.seed)
    recipe = replace(recipe, training=training)
    validate_distill_recipe(recipe)
    return recipe


def _plan(options: argparse.Namespace, recipe: DistillRecipe, show: object) -> Plan:
    from edgecompress.distill.plan import make_plan

    if not options.teacher.startswith(_ENDPOINT):
        return make_plan(options.teacher, recipe, options.data)
    from edgecompress.distill.completion import require_teacher
    from edgecompress.distill.data import read_data
    from edgecompress.distill.endpoint import parse_endpoint

    endpoint = parse_endpoint(options.teacher)
    record = TeacherRecord(kind="endpoint", name=endpoint.model, endpoint=endpoint.url)
    data = read_data(options.data)
    require_teacher(data, endpoint)
    plan = make_plan(None, recipe, data, record, asked=False)  # fails before any response is paid for
    if options.dry_run:
        return plan
    if data.stored is not None:
        note(f"{data.stored.responses} responses are in {data.name}: the teacher is not asked for these")
    if data.lacking:
        data = _completed(options, data, endpoint, show)
    if data.empty:
        note(f"{data.empty} empty responses are left out")
    return make_plan(None, recipe, data, record)


def _completed(options: argparse.Namespace, data: TeachingData, endpoint: Endpoint, show: object) -> TeachingData:
    """The data with the missing responses requested. They are stored next to the output and kept."""
    from edgecompress.cli.label import ask, sampling
    from edgecompress.distill.completion import complete

    output: Path = options.output.absolute()
    store = output.with_name(f"{output.name}.responses.sqlite")
    found = ask(options, options.data, store, show, without_response=True)
    if not found.complete:
        raise EndpointError(
            f"{found.prompts - found.found - found.answered} of {found.prompts} prompts have no response: "
            f"{'; '.join(found.reasons) or 'the budget does not cover them'}",
            hint=f"Run the same command again: it asks for those only. The others are in {store}.",
        )
    lines: Path = store.with_suffix(".jsonl")
    whole = complete(data, options.data, store, endpoint, sampling(options), lines)
    note(f"wrote {len(whole)} prompts with their responses to {lines}")
    return whole


def _print_plan(plan: Plan, as_json: bool) -> None:
    from edgecompress.formats.recipe import recipe_toml

    figures = {
        "examples": len(plan.examples),
        "tokens": sum(len(example.ids) for example in plan.examples),
        "responses": plan.data.stored,
        "estimated_ram_bytes": plan.estimated_ram_bytes,
    }
    if as_json:
        emit_json({"recipe": plan.recipe, "teacher": plan.record, **figures})
        return
    print(recipe_toml(plan.recipe))
    print(f"teacher: {plan.record.name}, {plan.origin.task}; licence: {plan.record.licence or 'unknown'}")
    print(f"data: {plan.data.name}, {figures['examples']} examples, {figures['tokens']} tokens")
    if plan.data.pairs:
        print(
            f"responses: {len(plan.data.pairs) - plan.data.lacking} of {len(plan.data.pairs)} are in {plan.data.name}"
        )
    print(f"estimate: {plan.estimated_ram_bytes / 1e9:.1f} GB of memory")


def describe(made: Distillation, output: Path) -> str:
    """A summary for the terminal."""
    lines = [
        f"{output}: distilled from {made.teacher.name}, {made.method}",
        f"  {made.steps} steps in {made.seconds:.0f} s, {made.data.tokens} tokens, seed {made.seed}",
        f"  licence of the teacher: {made.teacher.licence or 'unknown'}",
        f"  next: edgecompress export {output} -o {output.name}.bundle",
    ]
    return "\n".join(lines)
