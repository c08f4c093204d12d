"""A bundle checks itself where it is: the PyTorch outputs that it carries against what this machine gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgecompress.errors import BundleError
from edgecompress.formats.recipe import read_recipe
from edgecompress.kinds import kind_of_task
from edgecompress.kinds.base import REFERENCE
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Fidelity


def verify_outputs(encoder: Encoder, folder: Path) -> tuple[Fidelity, QualityRecipe]:
    """Fidelity on the samples that travel with the bundle, and the budget it was exported with."""
    if not (folder / REFERENCE).exists():
        raise BundleError(f"the bundle has no {REFERENCE}, so it cannot be checked against PyTorch here")
    with np.load(folder / REFERENCE, allow_pickle=False) as arrays:
        samples = sorted({int(name.partition("/")[0]) for name in arrays.files})
        reference, outputs = [], []
        for sample in samples:
            names = [name for name in arrays.files if name.startswith(f"{sample}/in/")]
            feed = {name.rpartition("/")[2]: arrays[name] for name in names}
            count = sum(name.startswith(f"{sample}/out/") for name in arrays.files)
            reference.append([arrays[f"{sample}/out/{i}"] for i in range(count)])
            outputs.append(encoder.run(feed))
    quality = read_recipe(folder / "recipe.toml").quality
    task = encoder.manifest.task
    fidelity: Fidelity = kind_of_task(task).plug_in.part("metric").measure(task, reference, outputs)
    return fidelity, quality
