"""Compares two sets of outputs. NumPy only, so that a device can check itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.types.report import Fidelity

Outputs = Sequence[Sequence[npt.NDArray[Any]]]  # a list of output arrays for each sample, batch of one

_NEIGHBOURS = 10
_DIGITS = 6  # of report figures; further digits vary with the summation order
_SLICE_ELEMENTS = 1 << 21  # logits per slice: 16 MB of float64


def compare_vectors(reference: Outputs, outputs: Outputs, *, neighbours: bool) -> Fidelity:
    """Compare vectors by cosine, sample by sample; with ``neighbours``, also by their 10 nearest samples.

    Non-finite vectors count as cosine 0 and agreement 0, so a broken model never passes.
    """
    cosines = [_cosine(_rows(r[0]), _rows(o[0])).mean() for r, o in zip(reference, outputs, strict=True)]
    agreement = None
    if neighbours and len(reference) > _NEIGHBOURS + 1:
        agreement = neighbour_agreement(
            np.concatenate([_rows(r[0]) for r in reference]), np.concatenate([_rows(o[0]) for o in outputs])
        )
    return Fidelity(
        samples=len(cosines),
        mean_cosine=round(float(np.mean(cosines)), _DIGITS),
        min_cosine=round(float(np.min(cosines)), _DIGITS),
        top10_agreement=None if agreement is None else round(agreement, _DIGITS),
        max_abs_difference=_largest_difference(reference, outputs),
    )


def compare_heads(reference: Outputs, outputs: Outputs) -> Fidelity:
    """Compare logits by KL divergence and top-1 agreement, sample by sample."""
    divergences, agreements = [], []
    for r, o in zip(reference, outputs, strict=True):
        for a, b in zip(r, o, strict=True):
            p, q = _rows(a).astype(np.float64), np.nan_to_num(_rows(b).astype(np.float64), nan=-1e9)
            if p.shape[1] == 1:  # a reranker's single score: its sigmoid is a two-class distribution
                p, q = np.concatenate([p, -p], 1) / 2, np.concatenate([q, -q], 1) / 2
            log_p, log_q = log_softmax(p), log_softmax(q)
            divergences.append(float((np.exp(log_p) * (log_p - log_q)).sum(1).mean()))
            agreements.append(float((p.argmax(1) == q.argmax(1)).mean()))
    return Fidelity(
        samples=len(reference),
        mean_kl=round(float(np.mean(divergences)), _DIGITS),
        top1_agreement=round(float(np.mean(agreements)), _DIGITS),
        max_abs_difference=_largest_difference(reference, outputs),
    )


def _largest_difference(reference: Outputs, outputs: Outputs) -> float:
    largest = max(
        float(np.abs(a.astype(np.float64) - b).max())
        for r, o in zip(reference, outputs, strict=True)
        for a, b in zip(r, o, strict=True)
    )
    return float(f"{largest:.2e}")


def _rows(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x.reshape(-1, x.shape[-1])


def _cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
    return np.asarray(np.nan_to_num((a * b).sum(-1) / lengths, nan=0.0))


def log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-probabilities of logits [rows, classes]."""
    shifted = x - x.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Yield row slices of logits [rows, columns] that are small enough to copy as float64."""
    step = max(_SLICE_ELEMENTS // columns, 1)
    for start in range(0, rows, step):
        yield slice(start, start + step)


def summed_divergence(log_p: npt.NDArray[np.float64], log_q: npt.NDArray[np.float64]) -> float:
    """KL divergence in nats, summed over rows of log-probabilities [rows, classes]. Overwrites both arguments."""
    log_q -= log_p
    np.exp(log_p, out=log_p)
    return -float(np.einsum("tv,tv->", log_p, log_q))


def divergences(reference: npt.NDArray[Any], logits: npt.NDArray[Any]) -> Iterator[float]:
    """Yield the summed KL divergence in nats of each slice of logits [rows, classes] from the reference's.

    A row with a non-finite logit counts as uniform.
    """
    for part in row_slices(*reference.shape):
        q = logits[part].astype(np.float64)
        q[~np.isfinite(q).all(axis=1)] = 0.0
        yield summed_divergence(log_softmax(reference[part].astype(np.float64)), log_softmax(q))


def neighbour_agreement(reference: npt.NDArray[Any], vectors: npt.NDArray[Any]) -> float:
    """Mean share of each row's 10 nearest neighbours (cosine) in ``reference`` [N, D] kept in ``vectors`` [N, D]."""

    def nearest(x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        similarity = np.nan_to_num(unit @ unit.T, nan=-1.0)
        np.fill_diagonal(similarity, -np.inf)
        return np.argsort(-similarity, axis=1, kind="stable")[:, :_NEIGHBOURS]

    pairs = zip(nearest(reference), nearest(vectors), strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / _NEIGHBOURS for a, b in pairs]))
