"""Peers by name, and whether their packages are there."""

from importlib.metadata import PackageNotFoundError, version

from qat.errors import SpecError
from qat.peers.peer import Peer

METHODS = (
    "float",
    "parq_binary_relax_w1a32",
    "parq_w1a32",
    "brevitas_w1a4",
    "brevitas_w4a4",
    "torch_ao_w4a4",
)


def peer_of(method: str) -> Peer:
    """A new peer.

    Args:
        method: one of METHODS; float is the control, which quantizes nothing.

    Raises:
        SpecError: the name is unknown, or the package is not installed.
    """
    if method not in METHODS:
        raise SpecError(f"method={method} is unknown; method is one of {', '.join(METHODS)}")
    try:
        return _made(method)
    except ModuleNotFoundError as error:
        raise SpecError(
            f"method={method} needs {error.name}; install the extra: pip install 'qat[peers]', in "
            "a checkout pip install -c constraints.txt -e '.[peers]'"
        ) from error


def _made(method: str) -> Peer:
    if method.startswith("parq"):
        from qat.peers.parq import Parq

        return Parq("parq" if method == "parq_w1a32" else "binary_relax")
    if method.startswith("brevitas"):
        from qat.peers.brevitas import Brevitas

        return Brevitas(1 if method == "brevitas_w1a4" else 4)
    if method == "torch_ao_w4a4":
        from qat.peers.torch_ao import TorchAo

        return TorchAo()
    return Peer()


def package_version(peer: Peer) -> dict[str, str]:
    """Package -> version of what the peer is made of; empty for the control."""
    try:
        return {peer.package: version(peer.package)} if peer.package else {}
    except PackageNotFoundError:  # a checkout on the path
        return {peer.package: "unknown"}
