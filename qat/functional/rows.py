"""Scale groups as rows, worked on in pieces: what a pass writes the next one finds in the cache.

A fit passes over its weights several times. Of a tensor larger than a core's cache every pass would
go to memory and back, and every buffer would be fresh pages; a piece of `PIECE` numbers and the
buffers beside it stay in the cache. On other devices a matrix is one piece: there a launch costs
more than memory does.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

# Half a MiB of float32; three such buffers fit in a core's second cache
PIECE = 1 << 17


def is_plain_cpu(rows: Tensor) -> bool:
    """Whether numbers of a tensor can be looked at for nothing: on CPU, and nobody traces."""
    return rows.device.type == "cpu" and is_plain(rows)


def is_plain(rows: Tensor) -> bool:
    """Whether numbers of a tensor can be looked at: it has some, and nobody traces."""
    return (
        not torch.compiler.is_compiling()
        and type(rows) in (Tensor, nn.Parameter)
        and rows.device.type != "meta"
        and not torch._C._get_tracing_state()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def pieces(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of matrices (G, N) and columns (G, 1) that belong together, in the order of memory.

    A piece is whole rows, or a part of one row that is longer than `PIECE`.

    Args:
        matrices: the first is (G, N) and says where to cut; others are (G, N), or (G, 1) and go
            with all parts of their row.
    """
    count, length = matrices[0].shape
    if matrices[0].numel() <= PIECE or not is_plain_cpu(matrices[0]):
        yield matrices
        return
    step = max(1, PIECE // length)
    for first in range(0, count, step):
        block = tuple(matrix[first : first + step] for matrix in matrices)
        for start in range(0, length, PIECE) if length > PIECE else (None,):
            part = slice(start, None if start is None else start + PIECE)
            yield tuple(b if b.shape[1] == 1 else b[:, part] for b in block)


def by_piece(rows: Tensor) -> bool:
    """Whether pieces of a matrix are whole rows, and several: each can then be fitted by itself."""
    return rows.shape[1] <= PIECE < rows.numel() and is_plain_cpu(rows)


def spare(rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A buffer for any of the pieces of `rows`; `fitted` cuts it to one."""
    size = min(rows.numel(), PIECE) if is_plain_cpu(rows) else rows.numel()
    return torch.empty(size, dtype=dtype, device=rows.device)


def fitted(buffer: Tensor, piece: Tensor) -> Tensor:
    """The beginning of a buffer in the shape of a piece."""
    return buffer[: piece.numel()].view(piece.shape)


def row_sums(parts: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Sums of whole rows, (G, 1), of those of their pieces, (g, 1) each and in order.

    Rows within `PIECE` have one part, and their sum stays as it is, bit for bit; the parts of a
    longer one are added up in float64.
    """
    if len(parts) == 1:
        return parts[0]
    joined = torch.cat(list(parts))
    if joined.shape[0] == rows.shape[0]:
        return joined
    joined = joined.view(rows.shape[0], -1)
    return joined.sum(dim=1, keepdim=True, dtype=torch.float64).to(joined.dtype)


def row_peaks(rows: Tensor) -> Tensor:
    """Largest magnitude of each row, (G, 1)."""
    parts = [
        torch.maximum(part.amax(dim=1, keepdim=True), -part.amin(dim=1, keepdim=True))
        for (part,) in pieces(rows)
    ]
    return _largest_of(parts, rows)


def means(rows: Tensor) -> Tensor:
    """Mean magnitude of each row, (G, 1)."""
    buffer, sums = spare(rows), []
    for (part,) in pieces(rows):
        sums.append(torch.abs(part, out=fitted(buffer, part)).sum(dim=1, keepdim=True))
    return row_sums(sums, rows).div_(rows.shape[1])


def means_and_peaks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and largest magnitude of each row, (G, 1) each."""
    buffer, sums, peaks = spare(rows), [], []
    for (part,) in pieces(rows):
        size = torch.abs(part, out=fitted(buffer, part))
        sums.append(size.sum(dim=1, keepdim=True))
        peaks.append(size.amax(dim=1, keepdim=True))
    return row_sums(sums, rows).div_(rows.shape[1]), _largest_of(peaks, rows)


def _largest_of(parts: Sequence[Tensor], rows: Tensor) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts)).view(rows.shape[0], -1).amax(dim=1, keepdim=True)
