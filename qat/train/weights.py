"""Checkpoint weights, put into a network as latent or as hard weights."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qat.errors import CheckpointError
from qat.export.packed.convert import latent_state
from qat.export.packed.file import is_packed, read_packed, unpack
from qat.quantize.loading import load_weights, refuse_non_finite
from qat.quantize.plan import Plan, project_weights
from qat.quantize.preparation_version import check_preparation
from qat.spec.quant import QuantSpec
from qat.storage.checkpoint import last_good, load
from qat.storage.reading import parsing, read_regular

_PREFIX = "net."  # of the network inside LitClassifier
# where others' files keep the network's part
_STATES = ("state_dict", "model_state_dict", "model_state", "model", "net")


def network_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict of the network of a checkpoint, with latent weights where there are any.

    What the model's part of an earlier version's checkpoint holds for a projected weight depends
    on the moment of saving; the latent weights in the optimizer's part do not.

    Raises:
        CheckpointError: neither a checkpoint of a run nor a plain state dict.
    """
    parts = [checkpoint, *(checkpoint[key] for key in _STATES if key in checkpoint)]
    found = next((part for part in parts if _holds_tensors(part)), None)
    if found is None:
        raise CheckpointError("neither a checkpoint of a run nor a plain state dict of tensors")
    if not is_of_run(checkpoint) or not any(key.startswith(_PREFIX) for key in found):
        return dict(found)
    state = {
        key.removeprefix(_PREFIX): value for key, value in found.items() if key.startswith(_PREFIX)
    }
    for optimizer in checkpoint.get("optimizer_states", ()):
        state |= optimizer.get("qat", {}).get("latent", {})
    # what was judged, where a run has an average
    average: Mapping[str, Tensor] = checkpoint.get("qat", {}).get("ema", {}).get("values", {})
    return state | dict(average)


def is_of_run(checkpoint: Mapping[str, Any]) -> bool:
    """Whether it is a checkpoint of a run of ours, whole or of its weights alone."""
    return "optimizer_states" in checkpoint or "qat" in checkpoint


def _holds_tensors(part: Any) -> bool:
    """Whether this is a state dict: names and tensors, at least one."""
    return (
        isinstance(part, Mapping)
        and bool(part)
        and all(isinstance(key, str) for key in part)
        and any(isinstance(value, Tensor) for value in part.values())
    )


def restore(
    net: nn.Module,
    spec: QuantSpec | Plan,
    checkpoint: Mapping[str, Any],
    *,
    weights: Literal["hard", "latent"] = "hard",
    name: str = "the checkpoint",
) -> list[str]:
    """Load a checkpoint into a prepared network.

    Args:
        net: network prepared with `spec`.
        spec: its options, or its plan.
        checkpoint: of a run, or a plain state dict.
        weights: hard puts Q(latent) into the quantized weights, latent the float weights.
        name: of the checkpoint, for messages.

    Returns:
        Steps of activation quantizers that kept their start (the checkpoint is of a float network).

    Raises:
        CheckpointError: the checkpoint does not fit the network, or holds values that are no
            numbers.
    """
    absent = load_checkpoint(net, checkpoint, name)
    if not absent and is_of_run(checkpoint):
        try:
            check_preparation(net, checkpoint.get("qat", {}).get("preparation", 1))
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
    if weights == "hard":
        project_weights(net, spec)
    return absent


def load_checkpoint(net: nn.Module, checkpoint: Mapping[str, Any], name: str) -> list[str]:
    """Load a checkpoint's latent weights into a network, prepared or not; see `restore`.

    Raises:
        CheckpointError: as `restore`.
    """
    try:
        with parsing("its weights", "use another"):
            absent = load_weights(net, network_state(checkpoint))
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    refuse_non_finite(net, name)
    return absent


def read_weights(source: str | Path, net: nn.Module) -> dict[str, Any]:
    """A checkpoint from a run folder (its selected epoch, else its last), or from a file.

    Args:
        source: run folder, checkpoint, packed file, or file of tensors (.safetensors, .pt, .pth).
        net: whose weights they shall become; it tells the shapes that a packed file leaves out.

    Raises:
        CheckpointError: nothing there, or damaged.
    """
    path = Path(source)
    if path.is_dir():
        found = last_good(path / "checkpoints" / "best") or last_good(path / "checkpoints" / "last")
        if found is None:
            raise CheckpointError(
                f"{path} holds no checkpoint; give a run folder or a file (sweep.keep=none leaves "
                "a run without one)"
            )
        path = found
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a run folder or a checkpoint file")
    if is_packed(path):
        return _unpacked(path, net)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        return load(path)
    content = read_regular(path)  # weights from elsewhere: tensors only, nothing is executed
    with parsing(str(path), "give a file of tensors, as torch.save writes of a state_dict"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load as parsed

            return dict(parsed(content))
        return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def _unpacked(path: Path, net: nn.Module) -> dict[str, Any]:
    file = read_packed(path)
    try:
        return latent_state(net, unpack(file, net))
    except CheckpointError as error:
        named = file.header.architecture
        cure = f"; the file is of {named.family} {dict(named.options)}" if named else ""
        raise CheckpointError(f"init_from={path} does not fit the model: {error}{cure}") from None
