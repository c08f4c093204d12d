"""Students lowered to standard ops: their typed graphs match the captured ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.capture.tokenizer import save_tokenizer
from edgecompress.errors import RecipeError
from edgecompress.graph.sessions import open_session
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.encoder.samples import text_feeds
from edgecompress.kinds.one_pass_feeds import stack
from edgecompress.kinds.vision.samples import image_feeds
from edgecompress.lower import microsoft, standard
from edgecompress.lower.half_rounding import rounded_graph
from edgecompress.quantize.stage import Calibration, calibrate, quantize
from edgecompress.types.arrays import Feed
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import Recipe, StudentRecipe
from tests.captured import capture
from tests.limits import ENGINE
from tests.tiny import SENTENCES, tiny_checkpoint

pytestmark = pytest.mark.slow

# A window, rotary embeddings and a gate; attention that is no single op; images without a mask; norms in front.
KINDS = ("bert", "modernbert", "deberta-v2", "vit")
WIDER = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}


@pytest.fixture(scope="module", params=KINDS)
def captured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Graph, list[Feed], Path]:
    folder = tmp_path_factory.mktemp(request.param)
    student = load_student(StudentRecipe(source=str(tiny_checkpoint(folder / "student", request.param, **WIDER))))
    if student.kind == "vision":
        feeds = image_feeds(student, 4, 0)
    else:
        feeds = text_feeds(save_tokenizer(student, folder), student, SENTENCES, 64)
    return capture(student, folder, opset=standard.CAPTURED_OPSET), feeds, folder


def outputs(graph: Graph, batch: Feed) -> np.ndarray:
    """Outputs at real positions, float32 [N, hidden]."""
    hidden = np.asarray(open_session(graph.path, threads=1)(batch)[0])
    mask = batch.get("attention_mask")
    return hidden[mask.astype(bool)] if mask is not None else hidden.reshape(-1, hidden.shape[-1])


@pytest.mark.parametrize("precision", ["fp16", "int8-static"])
def test_a_typed_graph_matches_the_captured_one(captured: tuple[Graph, list[Feed], Path], precision: str) -> None:
    graph, feeds, folder = captured
    recipe = Recipe()
    calibrated = calibrate(graph, recipe, lambda: feeds, microsoft.lower_model, folder, limits=ENGINE)
    quantized = quantize(
        graph, precision, recipe, folder, calibration=Calibration(statistics=calibrated), limits=ENGINE
    )
    lowered = standard.lower(quantized, folder)
    model = ir.load(lowered.path)
    assert {node.domain for node in model.graph.all_nodes()} == {""}
    assert model.opset_imports == {"": standard.OPSET}
    batch = stack(feeds[:3], 0)
    expected = outputs(microsoft.lower(graph, folder), batch)
    found = outputs(rounded_graph(lowered, folder), batch)
    lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
    assert ((expected * found).sum(-1) / lengths).mean() >= (0.99999 if precision == "fp16" else 0.995)


def test_an_op_without_a_standard_form_is_refused() -> None:
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 21, "edgecompress" : 1]>
        g (float[b,4] x) => (float[b,4] y) { y = edgecompress.Experts <top_k = 2> (x, x) }
        """
    )
    with pytest.raises(RecipeError, match="cannot lower Experts of this student to standard ops"):
        standard.lower_model(model)
