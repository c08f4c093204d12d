"""ONNX Runtime's CUDA provider: what is missing is named, and what went to the CPU is noticed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgecompress.backends.onnxruntime_cuda import provider as module
from edgecompress.backends.onnxruntime_cuda.provider import CUDA_PROVIDER, RECORD_PLACES, cuda_provider, require_on_gpu
from edgecompress.errors import HostError
from edgecompress.runtime.accelerators import LibraryState


def found(**missing: str) -> dict[str, LibraryState]:
    keys = ("driver", "cudart", "cudnn", "nvinfer10")
    return {
        k: LibraryState(title=f"The {k}", version="" if k in missing else "1", remark=missing.get(k, "")) for k in keys
    }


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_libraries", lambda: found(cudnn="no libcudnn.so.9", nvinfer10="no libnvinfer"))
    with pytest.raises(HostError, match=r"needs The cudnn, but there is no libcudnn\.so\.9 on this machine") as caught:
        cuda_provider(0)
    assert caught.value.exit_code == 3
    monkeypatch.setattr(module, "find_libraries", lambda: found(nvinfer10="no libnvinfer"))
    assert cuda_provider(2) == (CUDA_PROVIDER, {"device_id": "2"})


def session(*placed: tuple[str, str]) -> Any:
    def part(provider: str, op_type: str) -> Any:
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=op_type)])

    return SimpleNamespace(get_provider_graph_assignment_info=lambda: [part(*each) for each in placed])


def test_shapes_may_be_worked_out_on_the_cpu_and_nothing_else() -> None:
    on_cpu = "CPUExecutionProvider"
    require_on_gpu(session((CUDA_PROVIDER, "MatMul"), (on_cpu, "Shape"), (on_cpu, "Concat")))
    with pytest.raises(HostError, match="runs MatMul, Softmax of this bundle on the CPU, not on the GPU") as caught:
        require_on_gpu(session((on_cpu, "Softmax"), (on_cpu, "Shape"), (on_cpu, "MatMul"), (CUDA_PROVIDER, "MatMul")))
    assert caught.value.exit_code == 3


def test_one_that_does_not_tell_is_refused() -> None:
    with pytest.raises(HostError, match="does not report whether it runs on the GPU"):
        require_on_gpu(SimpleNamespace())


def test_onnxruntime_tells_where_its_nodes_are() -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "a"], ["b"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.add_session_config_entry(*RECORD_PLACES)
    with pytest.raises(HostError, match="runs MatMul of this bundle on the CPU"):
        require_on_gpu(ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]))
