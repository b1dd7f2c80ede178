"""ONNX runtime session of a file that qat has written."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qat.errors import CheckpointError
from qat.export.onnx.allowed import checked_model
from qat.spec.extras import require_onnx
from qat.spec.header import Header, header_from
from qat.storage.reading import parsing, read_regular

_KEY = "qat"
_CURE = "make one with scripts/export.py run=RUN_FOLDER format=onnx"


class OnnxNetwork:
    """Logits of normalised images by onnxruntime on the CPU.

    Args:
        model: bytes of the file.
        origin: names it in messages.
        threads: of onnxruntime; None for torch's number.

    Attributes:
        header: what the file says of itself.
        form: faithful, fast or general.

    Raises:
        CheckpointError: no ONNX file, or none that qat wrote.
        SpecError: onnxruntime is not installed.
    """

    def __init__(self, model: bytes, origin: str, *, threads: int | None = None) -> None:
        require_onnx()
        self._origin = origin
        self._sizes, self._checked = checked_model(model, origin, _CURE), {1}
        self._session = session(model, origin, threads=threads)
        texts = self._session.get_modelmeta().custom_metadata_map
        self.header, self.form = _header(texts.get(_KEY), origin)
        _check_shapes(self._session, self.header, origin)

    def __call__(self, image: Tensor) -> Tensor:
        """Logits float32 (N, K) of images float32 (N, C, H, W)."""
        if len(image) and len(image) not in self._checked:
            with parsing(self._origin, _CURE):
                self._sizes.check(len(image))
            self._checked.add(len(image))
        inputs = {"image": image.contiguous().numpy()}
        with parsing(self._origin, _CURE):
            return torch.from_numpy(self._session.run(["logits"], inputs)[0])


def onnx_metadata(header: Header, form: str) -> dict[str, str]:
    """What the metadata of an ONNX file hold: the header and, for other readers, plain texts."""
    texts = {_KEY: json.dumps({"form": form, "header": json.loads(header.to_json())})}
    if header.preprocessing is not None:
        p = header.preprocessing
        texts |= {
            "image": f"float32 (batch, {p.channels}, {p.size}, {p.size}), (pixel - mean) / std, "
            "pixels in 0..1",
            "color": p.color,
            "size": str(p.size),
            "crop": p.crop,
            "resize_shorter": str(p.resize_shorter),
            "interpolation": p.interpolation,
            "antialias": json.dumps(p.antialias),
            "mean": json.dumps(p.mean),
            "std": json.dumps(p.std),
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
    return OnnxNetwork(read_regular(path), str(path), threads=threads)


def optimised_operators(model: bytes, folder: Path) -> Counter[str]:
    """Operators that onnxruntime runs after its own optimisation; `folder` is for its graph."""
    import onnx

    place = folder / "optimised.onnx"
    session(model, "the model", optimised=place)
    graph = onnx.load(place).graph
    return Counter(node.op_type for node in graph.node)


def imported_onnxruntime() -> Any:
    """The package, which is kept from telling its maker of every session, as it does since 1.29.

    Raises:
        SpecError: it is not installed.
    """
    require_onnx()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    import onnxruntime

    return onnxruntime


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
    onnxruntime = imported_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 4  # errors come as exceptions
    # its threads would otherwise go on spinning and slow down whoever comes next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    with parsing(origin, _CURE):
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


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
