"""The ranks of a process group: agreeing on what comes next, and moving rows between them.

A rank that fails must not leave the others waiting in a collective that it never enters. So ranks
exchange a header of fixed size before they move anything, and another after work in which one may
fail alone: what is wrong on one raises on all, naming it. A rank that is gone, or does something
else, shows as an error of the collective, at the latest after the group's timeout.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Header", "Peers", "Rule"]

#: What a rank is about to do, as JSON: ``call`` and whatever the caller adds; or why it can't.
Header = dict[str, Any]
#: A field of headers that must be the same on all ranks, what it is called, the error if it isn't.
Rule = tuple[str, str, type[Exception]]

#: Bytes of a rank's header, JSON behind which spaces follow, and the characters of an error in it.
_HEADER_BYTES = 4096
_ERROR_CHARACTERS = 500

_ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "TypeError": TypeError}

_Result = TypeVar("_Result")


class Peers:
    """The ranks of a group as one of them sees them, for one call of ``name``.

    Args:
        name: the function that is called, for messages.
        alone: the function of ``siamcuda`` that needs no process group.
        group: by default the whole world.

    Raises:
        RuntimeError: no process group, or this process is not in it.
    """

    def __init__(self, name: str, alone: str, group: dist.ProcessGroup | None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                f"{name}: no process group; call torch.distributed.init_process_group, "
                f"or use siamcuda.{alone}"
            )
        self.name, self.group = name, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RuntimeError(f"{name}: this process is not in the group")
        #: Ranks of the world, by rank in the group.
        self.world = dist.get_process_group_ranks(group)
        #: Where tensors live that the group can send, whatever its backend.
        on_gpu = dist.get_backend(group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu"

    def name_of(self, rank: int) -> str:
        """How messages call a rank of the group: by its rank in the world."""
        return f"rank {self.world[rank]}"

    # --- agreeing -------------------------------------------------------------------------------

    def agree(self, make: Callable[[], Header], rules: Sequence[Rule] = ()) -> list[Header]:
        """Every rank's header; raises the same error on all ranks if one fails or they differ.

        Args:
            make: this rank's header; whatever it raises is raised on all ranks.
            rules: what must be the same.
        """
        cause: BaseException | None = None
        try:
            data = _encoded(make())
        except BaseException as error:  # whatever it is, the others must hear of it
            cause = error
            data = _encoded(_failure(error))
        headers = [_decoded(h) for h in self.gather(data.to(self.device)).cpu()]
        if cause is not None and not isinstance(cause, Exception):
            raise cause  # an interruption stays one
        for rank, header in enumerate(headers):
            if header.get("kind"):
                raise _ERRORS.get(header["kind"], RuntimeError)(
                    f"{self.name_of(rank)}: {header['error']}"
                ) from cause
        for rule in rules:
            self.same(headers, *rule)
        return headers

    def same(
        self, headers: list[Header], field: str, what: str, error_type: type[Exception]
    ) -> None:
        """Raise if a field differs between ranks; None fits to everything."""
        known = [(rank, h.get(field)) for rank, h in enumerate(headers) if h.get(field) is not None]
        for rank, other in known[1:]:
            first_rank, first = known[0]
            if other != first:
                raise error_type(
                    f"{self.name}: the ranks differ in {what}: {first} on "
                    f"{self.name_of(first_rank)}, {other} on {self.name_of(rank)}"
                )

    def attempt(self, compute: Callable[[], _Result]) -> _Result:
        """What ``compute`` returns, once all ranks have theirs; if one fails, all raise."""
        results: list[_Result] = []

        def run() -> Header:
            results.append(compute())
            return {}

        self.agree(run)
        return results[0]

    # --- moving ---------------------------------------------------------------------------------
    # As bytes, which no backend refuses.

    @contextlib.contextmanager
    def reachable(self) -> Iterator[None]:
        """Around a collective: say what its failure means."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.name}: another rank is gone, or did not call it within the process "
                f"group's timeout: {error}"
            ) from error

    def gather(self, mine: Tensor) -> Tensor:
        """``[W, ...]`` of tensors of one shape."""
        mine = mine.contiguous()
        found = torch.empty((self.size, *mine.shape), dtype=mine.dtype, device=mine.device)
        if mine.numel():
            flat = found.view(self.size, -1).view(torch.uint8)
            with self.reachable():
                dist.all_gather(list(flat.unbind()), _bytes(mine), group=self.group)
        return found

    def join(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """``[sum(counts), ...]``, the rows of all ranks in rank order; rank r has ``counts[r]``.

        Where counts differ each rank's rows are sent by themselves: backends gather tensors of one
        size alone, and padding them would cost W times the longest.
        """
        if len(set(counts)) == 1:
            return self.gather(rows).flatten(0, 1)
        found = rows.new_empty((sum(counts), *rows.shape[1:]))
        for rank, part in enumerate(found.split(list(counts))):
            if rank == self.rank:
                part.copy_(rows)
            if part.numel():
                with self.reachable():
                    dist.broadcast(_bytes(part), src=self.world[rank], group=self.group)
        return found

    def exchange(self, parts: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Send ``parts[r]`` to rank r; what the ranks sent here, flat, ``counts[r]`` from rank r.

        All parts, of all ranks, have one dtype.
        """
        dtype, size = parts[0].dtype, parts[0].element_size()
        sent = torch.cat([part.reshape(-1) for part in parts]).to(self.device)
        found = torch.empty(sum(counts), dtype=dtype, device=self.device)
        with self.reachable():
            dist.all_to_all_single(
                _bytes(found),
                _bytes(sent),
                [count * size for count in counts],
                [part.numel() * size for part in parts],
                group=self.group,
            )
        return list(found.split(list(counts)))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _failure(error: BaseException) -> Header:
    """The header of a rank that can't go on."""
    kind = next((k for k, t in _ERRORS.items() if isinstance(error, t)), "RuntimeError")
    plain = isinstance(error, (*_ERRORS.values(), RuntimeError))
    text = str(error) if plain else f"{type(error).__name__}: {error}"
    return {"error": text[:_ERROR_CHARACTERS], "kind": kind}


def _encoded(header: Header) -> Tensor:
    # A path may hold bytes that are no UTF-8: those become question marks.
    text = json.dumps(header, ensure_ascii=False).encode(errors="replace")
    if len(text) > _HEADER_BYTES:
        raise ValueError(f"arguments too long to tell the other ranks: {text[:200].decode()}...")
    return torch.frombuffer(bytearray(text.ljust(_HEADER_BYTES)), dtype=torch.uint8)


def _decoded(data: Tensor) -> Header:
    header: Header = json.loads(bytes(data.tolist()))
    return header
