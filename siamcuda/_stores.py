"""Where a gallery's rows are: in memory, where they can grow, or in a file that is streamed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from siamcuda import _ops
from siamcuda._tensor_file import Matrix

__all__ = ["MANY_QUERIES", "FileStore", "MemoryStore", "Part", "screens_by_codes"]

#: Rows of a panel of codes: whole panels are kept when rows are added.
_PANEL = 32
#: Bytes of rows that a streamed gallery has in memory at a time; twice, as one part is read while
#: another is searched.
_PART_BYTES = 1 << 24
#: Queries from which coding the rows of a part pays for one pass over them.
MANY_QUERIES = 256
#: Rows that the point from which codes are counted is the mean of, at most.
_SAMPLE = 4096


class Part(NamedTuple):
    """Some consecutive rows, as the operators take them."""

    first: int
    rows: Tensor  # [n, D]
    screen: list[Tensor]


def screens_by_codes(device: torch.device) -> bool:
    """Whether this machine screens by 8-bit codes."""
    probe = torch.zeros(1, 1, device=device)
    return bool(_ops.namespace.gallery_screen(probe, probe[0]))


def _center(rows: Tensor) -> Tensor:
    """A point in the middle of the rows; any would do, this one makes codes finer."""
    sample = rows[:: max(1, len(rows) // _SAMPLE)].double()
    middle = sample.nan_to_num(0, 0, 0).mean(0) if len(sample) else sample.new_zeros(rows.shape[1])
    limit = torch.finfo(torch.float32).max
    return middle.clamp(-limit, limit).float()


def _codes(rows: Tensor, center: Tensor | None = None) -> list[Tensor]:
    center = _center(rows) if center is None else center
    screen: list[Tensor] = _ops.namespace.gallery_screen(rows, center)
    return [*screen, center] if screen else []


def count_nonfinite(rows: Tensor) -> int:
    """How many rows hold NaN or an infinity."""
    if not rows.dtype.is_floating_point or rows.numel() == 0:
        return 0
    count = 0
    for part in rows.split(max(1, (1 << 24) // (rows.shape[1] * rows.element_size()))):
        # A sum that is finite has finite terms, and is made at the speed of memory.
        total = part.sum(dtype=torch.float64 if part.dtype == torch.float64 else torch.float32)
        if not bool(total.isfinite()):
            count += int((~part.isfinite().all(1)).sum())
    return count


def _with_room(data: Tensor, before: int, after: int) -> Tensor:
    """``data``, or where it ends before ``after`` a copy of its first ``before`` with more room."""
    if after <= len(data):
        return data
    room = data.new_empty((max(after, before + before // 2), *data.shape[1:]))
    room[:before] = data[:before]
    return room


def _version(rows: Tensor) -> int:
    """How often a tensor was changed in place; those of inference mode do not count."""
    return 0 if rows.is_inference() else rows._version


class MemoryStore:
    """Rows in memory, borrowed until the first change.

    ``prepare`` makes rows as they are searched of those that are given; ``prepared`` says that the
    first ones are so already.
    """

    def __init__(
        self, rows: Tensor, prepare: Callable[[Tensor], Tensor], prepared: bool, codes: bool
    ) -> None:
        self._prepare = prepare
        self._coded = codes
        self._given: Tensor | None = rows
        self._version = _version(rows)
        self._rows = rows if prepared else prepare(rows)
        self._count = len(rows)
        self._screen = _codes(self._rows) if codes else []
        self._nonfinite: int | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def columns(self) -> int:
        """D, or bytes of packed bits."""
        return self._rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What the rows are stored as."""
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._rows.device

    @property
    def rows(self) -> Tensor:
        """[N, D] as they are searched."""
        self._check_unchanged()
        return self._rows[: self._count]

    @property
    def nonfinite(self) -> int:
        """How many rows hold NaN or an infinity; counted when it is asked for."""
        if self._nonfinite is None:
            self._nonfinite = count_nonfinite(self._rows[: self._count])
        return self._nonfinite

    def parts(self, queries: int) -> Iterator[Part]:
        """The whole, in one part."""
        if self._count:
            panels = -(-self._count // _PANEL)
            screen = [s[:panels] for s in self._screen[:-1]] + self._screen[-1:]
            yield Part(0, self.rows, screen)

    def ready(self, rows: Tensor) -> Tensor:
        """New rows as they would be stored."""
        return self._prepare(rows).to(self.dtype)

    def add(self, rows: Tensor) -> None:
        """Append rows that :meth:`ready` gave.

        Room for rows and codes grows by half, so that many small additions cost one copy of each.
        """
        before, after = self._count, self._count + len(rows)
        self._check_unchanged()
        room = _with_room(self._rows, before, after)  # borrowed rows have none
        room[before:after] = rows
        screen = self._screen
        if self._coded:
            # Codes of an empty gallery have no center yet that means anything.
            whole = before // _PANEL
            center = screen[-1] if before else None
            tail = _codes(room[whole * _PANEL : after], center)
            screen = [
                _with_room(s, whole, whole + len(t))
                for s, t in zip(screen[:-1], tail[:-1], strict=True)
            ]
            for codes, new in zip(screen, tail[:-1], strict=True):
                codes[whole : whole + len(new)] = new
            screen.append(tail[-1])
        if self._nonfinite is not None:
            self._nonfinite += count_nonfinite(rows)
        self._own(room, after, screen)

    def keep(self, positions: Tensor) -> None:
        """Drop all rows but those at ``positions``, which ascend."""
        rows = self.rows[positions]
        screen = _codes(rows, self._screen[-1]) if self._screen else []
        self._nonfinite = None
        self._own(rows, len(rows), screen)

    @property
    def _borrowed(self) -> bool:
        return self._given is not None and self._rows.data_ptr() == self._given.data_ptr()

    def _own(self, rows: Tensor, count: int, screen: list[Tensor]) -> None:
        self._rows, self._count, self._screen = rows, count, screen
        self._given = None

    def _check_unchanged(self) -> None:
        if self._given is not None and self._borrowed and _version(self._given) != self._version:
            raise RuntimeError(
                "gallery: its vectors were changed in place after the gallery was made; give it a "
                "clone, or make a new gallery"
            )


class FileStore:
    """Rows of a file, read a part at a time; nothing but the parts under way is in memory."""

    def __init__(
        self,
        matrix: Matrix,
        prepare: Callable[[Tensor], Tensor],
        prepared: bool,
        codes: bool,
        refuse: bool,
    ) -> None:
        self._matrix = matrix
        self._prepare = (lambda rows: rows) if prepared else prepare
        self._coded = codes
        self._refuse = refuse
        self.nonfinite: int | None = None  # not known before all rows were read
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return self._matrix.rows

    @property
    def columns(self) -> int:
        """D, or bytes of packed bits."""
        return self._matrix.columns

    @property
    def dtype(self) -> torch.dtype:
        """What the rows are stored as; 16-bit ones are searched in float32 where normalised."""
        return self._matrix.dtype

    @property
    def path(self) -> Any:
        """The file."""
        return self._matrix.path

    def parts(self, queries: int) -> Iterator[Part]:
        """All rows in order, the next part being read while one is searched."""
        matrix = self._matrix
        matrix.check_size()
        step = max(1, _PART_BYTES // max(matrix.row_bytes, 1))
        buffers = [
            torch.empty((min(step, matrix.rows), matrix.columns), dtype=matrix.dtype)
            for _ in range(2)
        ]
        center: Tensor | None = None
        nonfinite = 0
        starts = list(range(0, matrix.rows, step))
        reader = _Reader(matrix)
        try:
            if starts:
                reader.begin(starts[0], buffers[0][: matrix.rows])
            for turn, first in enumerate(starts):
                rows = reader.finish()
                if turn + 1 < len(starts):
                    following = starts[turn + 1]
                    reader.begin(following, buffers[(turn + 1) % 2][: matrix.rows - following])
                nonfinite += self._check(first, rows)
                rows = self._prepare(rows)
                screen: list[Tensor] = []
                if self._coded and queries >= MANY_QUERIES:
                    center = _center(rows) if center is None else center
                    screen = _codes(rows, center)
                yield Part(first, rows, screen)
        finally:
            reader.stop()
        self.nonfinite = nonfinite

    def _check(self, first: int, rows: Tensor) -> int:
        """How many rows are not finite; raises where that is not wanted."""
        count = count_nonfinite(rows)
        if count and self._refuse:
            row = first + int((~rows.isfinite().all(1)).nonzero()[0, 0])
            raise ValueError(
                f"{self._matrix.path}: row {row} holds NaN or an infinity; nonfinite='warn' "
                "searches such a file, those rows come last"
            )
        return count


class _Reader:
    """Reads one part at a time in a thread of its own."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._out: Tensor | None = None

    def begin(self, first: int, out: Tensor) -> None:
        def run() -> None:
            try:
                self._matrix.read(first, out)
            except BaseException as error:  # raised where the part is asked for
                self._error = error

        self._out = out
        self._thread = threading.Thread(target=run, name="siamcuda gallery reader", daemon=True)
        self._thread.start()

    def finish(self) -> Tensor:
        assert self._thread is not None
        assert self._out is not None
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._out

    def stop(self) -> None:
        if self._thread is not None:
            self._thread.join()
