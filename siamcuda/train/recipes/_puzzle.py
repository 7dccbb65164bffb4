"""A picture cut into square tiles: what tells neighbours, and how the picture is put back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import siamcuda
from siamcuda.train.errors import InputError

__all__ = [
    "Costs",
    "Restored",
    "Tiles",
    "assemble",
    "colour_costs",
    "cut",
    "found_first",
    "gradient_costs",
    "restored",
    "right_seams",
]

#: Where a neighbour lies: rows down, columns to the right.
_STEPS = {"right": (0, 1), "below": (1, 0)}
_Place = tuple[int, int]


class Tiles(NamedTuple):
    """Tiles of a picture, row by row."""

    pixels: Tensor  # (rows * columns, C, s, s) uint8
    rows: int
    columns: int

    @property
    def relations(self) -> int:
        """Pairs of tiles that are neighbours."""
        return self.rows * (self.columns - 1) + self.columns * (self.rows - 1)


class Costs(NamedTuple):
    """How badly tile j fits to the right of tile i, and below it: (N, N) each."""

    right: Tensor
    below: Tensor


def cut(picture: Tensor, pitch: int, lost: int) -> Tiles:
    """Cut (C, H, W) into tiles ``pitch`` apart, each without ``lost`` pixels at every edge.

    What is left over is cut away evenly on both sides.

    Raises:
        InputError: there aren't two rows and two columns.
    """
    height, width = picture.shape[1:]
    rows, columns = height // pitch, width // pitch
    if min(rows, columns) < 2:
        raise InputError(f"data: {height} x {width} pixels are too few for tiles of {pitch}")
    top, left = (height - rows * pitch) // 2, (width - columns * pitch) // 2
    whole = picture[:, top : top + rows * pitch, left : left + columns * pitch]
    blocks = whole.unflatten(2, (columns, pitch)).unflatten(1, (rows, pitch))
    inner = blocks[:, :, lost : pitch - lost, :, lost : pitch - lost]
    return Tiles(inner.permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous(), rows, columns)


# --- what tells neighbours, unlearned -------------------------------------------------------------


def colour_costs(pixels: Tensor) -> Costs:
    """Sum of squared colour differences across the edge (Cho, Avidan, Freeman 2010), in RGB.

    (N, C, s, s) uint8 -> (N, N) each.
    """

    def across(tiles: Tensor) -> Tensor:
        costs: Tensor = siamcuda.squared_cdist(
            tiles[..., -1].flatten(1).contiguous(), tiles[..., 0].flatten(1).contiguous()
        )
        return costs

    tiles = pixels.float()
    return Costs(across(tiles), across(tiles.transpose(2, 3)))


def gradient_costs(pixels: Tensor) -> Costs:
    """Mahalanobis gradient compatibility (Gallagher 2012): (N, C, s, s) uint8 -> (N, N) each.

    The step from one tile into the next is expected to be like the steps along the tile's own edge,
    in units of their covariance; both tiles of a pair are asked.
    """
    tiles = pixels.double()
    flat = tiles.transpose(2, 3)
    return Costs(_gradients(tiles), _gradients(flat))


def _gradients(tiles: Tensor) -> Tensor:
    edge, other = tiles[..., -1].mT, tiles[..., 0].mT  # (N, s, C): right edges, left edges

    def one_way(inside: Tensor, edge: Tensor, other: Tensor) -> Tensor:
        steps = edge - inside  # (N, s, C), out of the tile
        mean = steps.mean(1, keepdim=True)
        channels = steps.shape[2]
        # Nine small steps keep the covariance of a flat edge from being singular.
        small = torch.cat([torch.zeros(1, channels), torch.eye(channels), -torch.eye(channels),
                           torch.ones(1, channels), -torch.ones(1, channels)])  # fmt: skip
        spread = (steps - mean).mT @ (steps - mean) + small.double().T @ small.double()
        inverse = torch.linalg.inv(spread / (steps.shape[1] + len(small) - 1))
        costs = []
        for one, expected, weights in zip(edge, mean, inverse, strict=True):
            off = other - one - expected  # (N, s, C)
            costs.append(((off @ weights) * off).sum((1, 2)))
        return torch.stack(costs)

    rightwards = one_way(tiles[..., -2].mT, edge, other)
    leftwards = one_way(tiles[..., 1].mT, other, edge)
    return rightwards + leftwards.T


# --- how well, and the picture --------------------------------------------------------------------


def found_first(costs: Costs, rows: int, columns: int) -> float:
    """Share of true neighbours that are the first choice of all tiles, both ways of each pair."""
    right, wrong = 0, 0
    place = torch.arange(rows * columns).reshape(rows, columns)
    pairs = ((costs.right, place[:, :-1], place[:, 1:]), (costs.below, place[:-1], place[1:]))
    for cost, first, second in pairs:
        cost = cost.clone().fill_diagonal_(torch.inf)
        one, other = first.flatten(), second.flatten()
        for chosen, true in ((cost.argmin(1)[one], other), (cost.argmin(0)[other], one)):
            right += int((chosen == true).sum())
            wrong += int((chosen != true).sum())
    return right / (right + wrong)


def assemble(costs: Costs, rows: int, columns: int) -> NDArray[np.int64]:
    """Put tiles back into a frame: (rows, columns), which tile lies where.

    Gallagher's constrained tree: pairs are joined in the order of how much better they fit than the
    second best, unless two tiles would come to lie on one place, or the part would not fit the
    frame. The largest part stays; free places beside it are then filled one by one, where the most
    neighbours are known, with the tile that fits them best.
    """
    count = rows * columns
    ratios = {name: _ratios(cost) for name, cost in zip(_STEPS, costs, strict=True)}
    part = list(range(count))  # of each tile
    place = [(0, 0)] * count  # of each tile, in its part
    members: list[dict[_Place, int]] = [{(0, 0): tile} for tile in range(count)]
    for _, name, i, j in _candidates(ratios):
        (y, x), (step_y, step_x), (other_y, other_x) = place[i], _STEPS[name], place[j]
        down, along = y + step_y - other_y, x + step_x - other_x
        large, small = part[i], part[j]
        if large == small:
            continue
        if len(members[large]) < len(members[small]):  # the smaller one moves
            large, small, down, along = small, large, -down, -along
        moved = {(y + down, x + along): tile for (y, x), tile in members[small].items()}
        if not moved.keys().isdisjoint(members[large]):
            continue
        if not _fits([*members[large], *moved], rows, columns):
            continue
        members[large] |= moved
        members[small] = {}
        for where, tile in moved.items():
            part[tile], place[tile] = large, where
    return _filled(max(members, key=len), ratios, rows, columns)


def _ratios(cost: Tensor) -> NDArray[np.float64]:
    """Costs as shares of the second best of the same edge, of whichever side has the lower one."""
    values = cost.double().clone().fill_diagonal_(torch.inf)
    if len(values) < 3:
        return values.numpy()
    second = torch.minimum(
        values.topk(2, 1, largest=False).values[:, 1:],
        values.topk(2, 0, largest=False).values[1:],
    )
    return (values / second.clamp(min=1e-9)).numpy()


def _candidates(
    ratios: dict[str, NDArray[np.float64]], each: int = 10
) -> list[tuple[float, str, int, int]]:
    """The best few partners of every edge, best first: (ratio, step, tile, tile)."""
    found = []
    for name, ratio in ratios.items():
        most = min(each, len(ratio) - 1)
        nearest = np.argsort(ratio, axis=1, kind="stable")[:, :most]
        found += [(float(ratio[i, j]), name, i, int(j)) for i, row in enumerate(nearest)
                  for j in row]  # fmt: skip
    return sorted(found)


def _fits(places: Iterable[_Place], rows: int, columns: int) -> bool:
    ys, xs = zip(*places, strict=True)
    return bool(max(ys) - min(ys) < rows and max(xs) - min(xs) < columns)


def _filled(
    at: dict[_Place, int], ratios: dict[str, NDArray[np.float64]], rows: int, columns: int
) -> NDArray[np.int64]:
    at = dict(at)
    left = np.setdiff1d(np.arange(rows * columns), list(at.values()))
    around = [(sign * dy, sign * dx, ratio if sign == 1 else ratio.T)
              for (dy, dx), ratio in zip(_STEPS.values(), ratios.values(), strict=True)
              for sign in (1, -1)]  # fmt: skip
    while len(left):
        ys, xs = zip(*at, strict=True)
        high = range(max(ys) - rows + 1, min(ys) + rows)
        wide = range(max(xs) - columns + 1, min(xs) + columns)
        known = Counter((y + dy, x + dx) for y, x in at for dy, dx, _ in around)
        free = {place: known[place] for place in known.keys() - at.keys()
                if place[0] in high and place[1] in wide}  # fmt: skip
        most = max(free.values())
        best = (np.inf, (0, 0), 0)
        for y, x in sorted(place for place, neighbours in free.items() if neighbours == most):
            total = np.zeros(len(left))
            for dy, dx, ratio in around:
                neighbour = at.get((y + dy, x + dx))
                if neighbour is not None:
                    total += ratio[left, neighbour]
            index = int(total.argmin())
            best = min(best, (float(total[index]), (y, x), index))
        at[best[1]] = int(left[best[2]])
        left = np.delete(left, best[2])
    top, first = (min(place[k] for place in at) for k in (0, 1))
    grid = np.zeros((rows, columns), np.int64)
    for (y, x), tile in at.items():
        grid[y - top, x - first] = tile
    return grid


class Restored(NamedTuple):
    """How well a picture was put back."""

    neighbours: float  # share of true neighbours that are neighbours again, the same way round
    places: float  # share of tiles that lie where they were


def restored(grid: NDArray[np.int64]) -> Restored:
    """Compare what assemble gives with the true order, 0, 1, 2, ... row by row."""
    across, down = right_seams(grid)
    true = np.arange(grid.size).reshape(grid.shape)
    share = (across.sum() + down.sum()) / (across.size + down.size)
    return Restored(float(share), float((grid == true).mean()))


def right_seams(grid: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether tiles side by side, (R, C - 1), and one above the other, (R - 1, C), were so."""
    columns = grid.shape[1]
    across = (grid[:, 1:] == grid[:, :-1] + 1) & (grid[:, 1:] % columns != 0)
    return across, grid[1:] == grid[:-1] + columns
