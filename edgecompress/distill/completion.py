"""Training data for a teacher behind an endpoint: responses in the file are kept, missing ones come from a store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecompress.distill.data import CUT, Pair, TeachingData, read_data
from edgecompress.distill.endpoint import Endpoint
from edgecompress.distill.prompts import Sampling, read_prompts
from edgecompress.distill.responses import answers_of
from edgecompress.errors import UsageError


def require_teacher(data: TeachingData, endpoint: Endpoint) -> None:
    """Raises UsageError if the file names another teacher for its responses."""
    named = sorted({pair.teacher for pair in data.pairs if pair.response is not None and pair.teacher is not None})
    others = [teacher for teacher in named if teacher != str(endpoint)]
    if not others:
        return
    if len(named) > 1:
        raise UsageError(
            f"{data.name} has responses of {len(named)} teachers: {' and '.join(named)}",
            hint="A student has one teacher: use one file per teacher.",
        )
    raise UsageError(
        f"{data.name} has responses of {others[0]}, not of {endpoint}",
        hint=f"Give --teacher {others[0]}, which is not asked for responses in the file; or label the prompts again.",
    )


def complete(
    data: TeachingData, path: Path, store: Path, endpoint: Endpoint, sampling: Sampling, output: Path
) -> TeachingData:
    """Fill in missing responses from ``store``, write the result to ``output``, and read it back.

    ``path``: the file of ``data``. A duplicate prompt without a response is written once.
    """
    prompts, _ = read_prompts(path, endpoint, sampling, without_response=True)
    keys = {prompt.place: prompt.key for prompt in prompts}
    answers = answers_of(store, set(keys.values()))
    part = output.with_name(f".{output.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for pair in data.pairs:
            if pair.response is None and pair.place not in keys:
                continue
            row = _kept(pair) if pair.response is not None else _answered(pair, answers[keys[pair.place]], endpoint)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    part.replace(output)
    found = read_data(output)
    return replace(found, stored=data.stored, empty=found.empty + data.empty)


def _kept(pair: Pair) -> dict[str, Any]:
    finish = {"finish": CUT} if pair.cut else {}
    teacher = {"teacher": pair.teacher} if pair.teacher is not None else {}
    return {"messages": pair.messages, "response": pair.response, **finish, **teacher}


def _answered(pair: Pair, answer: tuple[str, str], endpoint: Endpoint) -> dict[str, Any]:
    response, finish = answer
    return {"messages": pair.messages, "response": response, "finish": finish, "teacher": str(endpoint)}
