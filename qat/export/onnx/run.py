"""ONNX runtime session of a file that qat has written."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qat.errors import CheckpointError
from qat.spec.extras import require_onnx
from qat.spec.header import Header, header_from

_KEY = "qat"


class OnnxNetwork:
    """Logits of normalised images by onnxruntime on the CPU.

    Args:
        model: bytes of the file.
        origin: names it in messages.
        threads: of onnxruntime; None for torch's number.

    Attributes:
        header: what the file says of itself.
        form: faithful or fast.

    Raises:
        CheckpointError: no ONNX file, or none that qat wrote.
        SpecError: onnxruntime is not installed.
    """

    def __init__(self, model: bytes, origin: str, *, threads: int | None = None) -> None:
        require_onnx()
        _check_closed(model, origin)
        self._session = session(model, origin, threads=threads)
        texts = self._session.get_modelmeta().custom_metadata_map
        self.header, self.form = _header(texts.get(_KEY), origin)
        _check_shapes(self._session, self.header, origin)

    def __call__(self, image: Tensor) -> Tensor:
        """Logits float32 (N, K) of images float32 (N, C, H, W)."""
        inputs = {"image": image.contiguous().numpy()}
        return torch.from_numpy(self._session.run(["logits"], inputs)[0])


def onnx_metadata(header: Header, form: str) -> dict[str, str]:
    """What the metadata of an ONNX file hold: the header and, for other readers, plain texts."""
    texts = {_KEY: json.dumps({"form": form, "header": json.loads(header.to_json())})}
    if header.preprocessing is not None:
        p = header.preprocessing
        texts |= {
            "image": f"float32 (batch, {p.channels}, {p.size}, {p.size}), (pixel - mean) / std, "
            "pixels in 0..1",
            "mean": json.dumps(p.mean),
            "std": json.dumps(p.std),
            "crop": p.crop,
            "classes": json.dumps(p.classes),
            **({"orientation": "EXIF"} if p.upright else {}),
        }
    return texts


def read_onnx(path: str | Path, *, threads: int | None = None) -> OnnxNetwork:
    """Open an ONNX file.

    Raises:
        CheckpointError: it cannot be read, is no ONNX file, or none that qat wrote.
        SpecError: onnxruntime is not installed.
    """
    try:
        return OnnxNetwork(Path(path).read_bytes(), str(path), threads=threads)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def optimised_operators(model: bytes, folder: Path) -> Counter[str]:
    """Operators that onnxruntime runs after its own optimisation; `folder` is for its graph."""
    import onnx

    place = folder / "optimised.onnx"
    session(model, "the model", optimised=place)
    graph = onnx.load(place).graph
    return Counter(node.op_type for node in graph.node)


def session(
    model: bytes, origin: str, *, threads: int | None = None, optimised: Path | None = None
) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        model: bytes of an ONNX file.
        origin: names it in messages.
        threads: None for torch's number.
        optimised: where the runtime leaves the graph that it really runs.

    Raises:
        CheckpointError: the runtime refuses the model.
        SpecError: onnxruntime is not installed.
    """
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4  # errors come as exceptions
    # its threads would otherwise go on spinning and slow down whoever comes next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions have no common base
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{origin} is no ONNX model that can be run ({reason}); "
            "make one with scripts/export.py run=RUN_FOLDER format=onnx"
        ) from None


def _header(text: str | None, origin: str) -> tuple[Header, str]:
    try:
        content = json.loads(text or "")
        return header_from(content["header"]), str(content["form"])
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(
            f"{origin} has no preprocessing in its metadata, so it was not written by qat; "
            "make one with scripts/export.py run=RUN_FOLDER format=onnx"
        ) from None


def _check_closed(data: bytes, origin: str) -> None:
    """Refuse a model that reads other files or calls operators of other libraries."""
    import onnx
    from onnx import external_data_helper

    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # of the protobuf library, under changing names
        return  # the session says what is wrong
    tensors = external_data_helper._get_all_tensors(model)
    if any(external_data_helper.uses_external_data(tensor) for tensor in tensors):
        raise CheckpointError(f"{origin} reads weights from other files, which ours never do")
    others = {opset.domain for opset in model.opset_import} - {"", "ai.onnx"}
    if others:
        raise CheckpointError(
            f"{origin} has operators of {min(others)!r:.50}, which onnxruntime does not run; "
            "format=qonnx is for other tools"
        )


def _check_shapes(running: Any, header: Header, origin: str) -> None:
    """Refuse a model whose images and answers are not those that its header tells of."""
    inputs = {value.name: value.shape[1:] for value in running.get_inputs()}
    outputs = {value.name: value.shape[1:] for value in running.get_outputs()}
    p = header.preprocessing
    told = (
        ({}, {})
        if p is None
        else ({"image": [p.channels, p.size, p.size]}, {"logits": [len(p.classes)]})
    )
    if p is not None and (inputs, outputs) != told:
        raise CheckpointError(
            f"{origin} takes {inputs} and answers {outputs}, its header tells of {told[0]} and "
            f"{told[1]}; export it again"
        )
