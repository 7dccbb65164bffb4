"""Torn pictures: which edges of tiles belong together, and the picture put back.

A photograph is cut into square tiles, and at every edge of each some pixels are torn away, so that
no line runs on across a seam: with the defaults tiles lie 32 pixels apart, 28 are left of each and
4 are missing between two. A Siamese encoder takes the strip along an edge, the right one of a tile
as it is and the left one mirrored, so that both look outwards; strips of tiles that were neighbours
come to lie close together, by triplets across the two sides of a batch. Half of an embedding
changes its sign where a left edge meets a right one: seen outwards, a line that goes on rises on
one side and falls on the other. Edges above and below are those of the transposed tile. Tiles are
known to be upright, as in T. S. Cho, S. Avidan and W. T. Freeman (2010), "A Probabilistic Image
Jigsaw Puzzle Solver".

It learns from the insides of the very tiles that are to be put back: two strips of one tile with as
many pixels between them as are missing at a tear. No pair of tiles is ever shown, nor anything that
was torn away, and nothing else is learned from, since an encoder of other photographs knows little
of the sharpness and the noise of this one.

The figure is that of Cho and others: of all true neighbours of every tile, the share that is the
first choice among all tiles of the picture, by the distance of two embeddings alone. Beside it
stand, on the same tiles, their sum of squared colour differences across the edge (here in RGB), and
the Mahalanobis gradient compatibility of A. C. Gallagher (2012), "Jigsaw Puzzles with Pieces of
Unknown Orientation", which takes its statistics from the tiles as well. Both were made for tiles
that touch, so the gap hurts them most, and their published figures, of tiles that touch, are of
another problem.

Then the picture is put back by a tree after Gallagher's: pairs of tiles are joined from the surest
on, unless two would overlap or leave the frame, and free places are filled one by one. The number
of rows and columns is known. Photographs are two of scikit-image's and the left one of its stereo
pair. Settings are to be chosen with ``--validate``: other photographs are torn instead.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import siamcuda
from siamcuda._files import write_atomically
from siamcuda.report import grids
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray, load_photographs, load_stereo
from siamcuda.train.encoders import Branches, EncoderConfig, EncoderSpec, InputSpec
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import CrossTriplets
from siamcuda.train.recipes import Recipe, _puzzle
from siamcuda.train.recipes._photographs import TESTED, VALIDATED
from siamcuda.train.recipes._puzzle import Costs, Tiles
from siamcuda.train.runs import RunFolder, RunOptions
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.system import System

__all__ = ["RECIPE", "Fragments", "InnerSeams", "edges", "insides", "learned_costs", "run", "table"]

#: Colour of a seam between tiles that weren't neighbours.
WRONG = (214, 39, 40)
#: What is compared, as the figures call them.
COSTS = {"siamese": "Siamese", "gradients": "MGC", "colours": "colours"}


@dataclass(frozen=True)
class Fragments(RunOptions):
    """Edges of torn tiles that belong together, and the picture put back."""

    out: Path = Path("runs/fragments")  # run folder; a run that was interrupted there goes on
    validate: bool = False  # never look at the test pictures: keep some of the others for that
    pitch: int = 32  # pixels from one tile to the next
    lost: int = 2  # pixels torn away at every edge of a tile; twice as many between two
    maps: int = 12  # features of each row of a strip: so many times a tile's height are embedded
    strip: int = 8  # pixels of a tile, from the edge inwards, that the encoder sees
    batch: int = 96  # tiles, all of one picture
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig("siamcuda.train.encoders.edge:EdgeNet")
    )
    objective: CrossTriplets = field(
        default_factory=lambda: CrossTriplets(margin=0.3, squared=False)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=40, learning_rate=1e-3, weight_decay=0.0, device="cpu"
        )
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, lost=0, maps=1, strip=1, batch=2)
        if 2 * self.strip + self.gap > self.tile:
            raise InputError(
                f"strip: two of {self.strip} pixels and a gap of {self.gap} do not fit a tile of "
                f"{self.tile} (pitch {self.pitch}, {self.lost} lost at every edge)"
            )
        self.spec.build(seed=0)  # an error comes before any folder
        super().check()

    @property
    def tile(self) -> int:
        """Height and width of what is left of a tile."""
        return self.pitch - 2 * self.lost

    @property
    def gap(self) -> int:
        """Pixels that are missing between two tiles."""
        return 2 * self.lost

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is and takes."""
        encoder = replace(self.encoder, embedding=self.maps * self.tile)
        return EncoderSpec(encoder, InputSpec(3, self.tile, self.strip))


# --- seams to learn from --------------------------------------------------------------------------


def insides(tiles: Mapping[str, Tiles]) -> ImageArray:
    """Tiles of all pictures, upright and on their side, which are classes of their own."""
    images, names = [], []
    for name, one in tiles.items():
        images += [one.pixels, one.pixels.mT]
        names += [name, f"{name}, on its side"]
    counts = torch.tensor([len(part) for part in images])
    return ImageArray(torch.cat(images), torch.arange(len(names)).repeat_interleave(counts),
                      tuple(names))  # fmt: skip


@dataclass(frozen=True)
class InnerSeams:
    """Two strips of each tile with a gap between, the second mirrored: both look into the gap.

    With a generator the gap lies anywhere, and the whole batch, which is of one picture, is turned
    over, mirrored, and given another light and other colours at random; then mean 0 and contrast
    0.3 as a whole, so that a margin means the same in every picture.

    Args:
        strip: width of a strip.
        gap: pixels between the two.

    (B, 3, s, s) uint8 -> (B, 2, 3, s, strip) floats.
    """

    strip: int
    gap: int

    def __call__(self, tiles: Tensor, generator: torch.Generator | None) -> Tensor:
        """See the class."""
        pixels = tiles.float() / 255
        most = tiles.shape[-1] - 2 * self.strip - self.gap
        start = torch.zeros(len(tiles), dtype=torch.int64)
        if generator is not None:
            start = torch.randint(most + 1, (len(tiles),), generator=generator)
        columns = start[:, None] + torch.arange(2 * self.strip + self.gap)
        index = columns[:, None, None].expand(-1, *pixels.shape[1:3], -1)
        seen = pixels.gather(3, index)
        both = torch.stack([seen[..., : self.strip], seen[..., -self.strip :].flip(-1)], 1)
        if generator is None:
            return both

        def chance() -> bool:
            return bool(torch.rand((), generator=generator) < 0.5)

        if chance():
            both = both.flip(-2)
        if chance():  # both look outwards, so a mirrored tile has them exchanged
            both = both.flip(1)
        both = both[:, :, torch.randperm(3, generator=generator)]
        gamma = torch.exp(0.4 * (2 * torch.rand((), generator=generator) - 1))
        shade = 1 - 0.3 * torch.rand(3, 1, 1, generator=generator)
        lit = both.clamp(min=1e-4) ** gamma * shade
        return 0.3 * (lit - lit.mean()) / lit.std().clamp(min=1e-3)


# --- tiles ----------------------------------------------------------------------------------------


def edges(pixels: Tensor, strip: int) -> dict[str, Tensor]:
    """Strips along each edge of tiles, seen outwards: (N, 3, s, s) -> (N, 3, s, strip) each."""
    flat = pixels.transpose(2, 3)
    return {
        "right": pixels[..., -strip:],
        "left": pixels[..., :strip].flip(-1),
        "bottom": flat[..., -strip:],
        "top": flat[..., :strip].flip(-1),
    }


@torch.inference_mode()
def learned_costs(encoder: nn.Module, pixels: Tensor, strip: int) -> Costs:
    """Squared distances of embeddings across every possible seam: (N, 3, s, s) uint8 tiles."""
    found = {
        side: torch.cat([encoder(part.float() / 255) for part in strips.split(512)])
        for side, strips in edges(pixels, strip).items()
    }
    return Costs(
        siamcuda.squared_cdist(found["right"], facing(found["left"])),
        siamcuda.squared_cdist(found["bottom"], facing(found["top"])),
    )


def facing(embeddings: Tensor) -> Tensor:
    """Embeddings of left or upper edges as those of right or lower ones expect them: (..., D).

    The second half changes its sign. What both sides see alike, the colour at the seam, stays;
    what is opposite seen outwards, a line that rises here and falls there, can be equal as well.
    """
    even, odd = embeddings.tensor_split(2, -1)
    return torch.cat([even, -odd], -1)


class Seams(Branches):
    """Both sides of seams by one encoder, the second as the first expects it."""

    def forward(self, pairs: Tensor) -> Tensor:
        """(B, 2, 3, h, w) -> (B, 2, D)."""
        first, second = super().forward(pairs).unbind(1)
        return torch.stack([first, facing(second)], 1)


def run(options: Fragments) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    torn = load_photographs(VALIDATED if options.validate else TESTED)
    if not options.validate:
        torn = {"motorcycle": load_stereo().left, **torn}
    tiles = {name: _puzzle.cut(one, options.pitch, options.lost) for name, one in torn.items()}
    own = {
        "recipe": "fragments",
        "encoder": options.spec.as_json(),
        "objective": asdict(options.objective),
        "batch": options.batch,
    }
    config = options.config(
        **own,
        lost=options.lost,
        frames={name: [one.rows, one.columns] for name, one in tiles.items()},
        tiles=insides(tiles).digest(),
    )
    folder = RunFolder(options.out, ("restored.png",))
    return folder.complete(
        options, config,
        lambda: _made(options, folder, own, tiles),
    )  # fmt: skip


def _made(
    options: Fragments, folder: RunFolder, own: dict[str, Any], tiles: Mapping[str, Tiles],
) -> dict[str, Any]:  # fmt: skip
    seed = options.train.seed
    encoder, learned = options.spec.build(seed), insides(tiles)
    # No tile twice in a batch: it would be its own negative.
    batch = min(options.batch, *(len(one.pixels) for one in tiles.values()))
    system = System(
        model=Seams(encoder),
        objective=options.objective,
        examples=learned,
        sampler=PKSampler(learned.labels, 1, batch, seed),
        transform=InnerSeams(options.strip, options.gap),
    )
    title = f"Triplets of seams inside {len(learned) // 2:,} tiles"
    trained_for = folder.fit(system, options.train, own, title)
    started = time.perf_counter()
    figures: dict[str, Any] = {}
    solved = {}
    for name, one in tiles.items():
        costs = {
            "siamese": learned_costs(encoder, one.pixels, options.strip),
            "gradients": _puzzle.gradient_costs(one.pixels),
            "colours": _puzzle.colour_costs(one.pixels),
        }
        figures[name] = {}
        for kind, found in costs.items():
            grid = _puzzle.assemble(found, one.rows, one.columns)
            figures[name][kind] = {
                "neighbours": _puzzle.found_first(found, one.rows, one.columns),
                "assembled": _puzzle.restored(grid)._asdict(),
            }
            if kind == "siamese":
                solved[name] = grid
    write_atomically(folder.path / "restored.png", _draw(tiles, solved, figures))
    Siamese(
        options.spec, encoder, distance="sqeuclidean", stored=(options.tile, options.strip)
    ).save(folder.path)
    return {
        "pictures": figures,
        "tiles": {name: len(one.pixels) for name, one in tiles.items()},
        "tile": options.tile,
        "gap": options.gap,
        "neighbours": {kind: _mean(figures, tiles, kind) for kind in COSTS},
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def _draw(
    tiles: Mapping[str, Tiles], solved: Mapping[str, NDArray[np.int64]], figures: Mapping[str, Any]
) -> bytes:
    rows = {}
    for name, one in tiles.items():
        order = torch.randperm(len(one.pixels), generator=torch.Generator().manual_seed(0))
        found = figures[name]["siamese"]
        share = 100 * found["assembled"]["neighbours"]
        rows[name] = {
            "torn": mosaic(one, np.arange(len(order)).reshape(one.rows, one.columns)),
            f"{len(order)} tiles": mosaic(one, order.numpy().reshape(one.rows, -1), marked=False),
            f"put back: {share:.1f} % of the seams": mosaic(one, solved[name]),
        }
    return grids.picture_rows(rows, "Torn photographs, put back; red: a wrong seam")


def mosaic(tiles: Tiles, grid: NDArray[np.int64], marked: bool = True) -> NDArray[np.uint8]:
    """Lay tiles (rows, columns) out, white between them, or red at a wrong seam: (H, W, 3)."""
    side, seam = tiles.pixels.shape[-1], 4
    step = side + seam
    canvas = np.full((grid.shape[0] * step, grid.shape[1] * step, 3), 255, np.uint8)
    pixels = tiles.pixels.permute(0, 2, 3, 1).numpy()
    across, down = _puzzle.right_seams(grid)
    for y, x in np.ndindex(*grid.shape):
        top, left = y * step, x * step
        canvas[top : top + side, left : left + side] = pixels[grid[y, x]]
        if marked and x + 1 < grid.shape[1] and not across[y, x]:
            canvas[top : top + side, left + side : left + step] = WRONG
        if marked and y + 1 < grid.shape[0] and not down[y, x]:
            canvas[top + side : top + step, left : left + side] = WRONG
    return canvas[:-seam, :-seam]


def _mean(figures: Mapping[str, Any], tiles: Mapping[str, Tiles], kind: str) -> float:
    """Share over the neighbours of all pictures."""
    found = sum(figures[name][kind]["neighbours"] * one.relations for name, one in tiles.items())
    return float(found / sum(one.relations for one in tiles.values()))


def table(metrics: dict[str, Any]) -> str:
    """The figures in a few lines."""
    what = f"tiles of {metrics['tile']}, {metrics['gap']} lost between"
    lines = [f"{what:<32}{'neighbours found':>18}{'after assembly':>18}{'in place':>12}"]
    for name, kinds in metrics["pictures"].items():
        for kind, found in kinds.items():
            shares = (found["neighbours"], *found["assembled"].values())
            cells = [f"{100 * share:.1f} %" for share in shares]
            what = f"{name}, {metrics['tiles'][name]}" if kind == "siamese" else ""
            lines.append(f"{what:<20}{COSTS[kind]:<12}{cells[0]:>18}{cells[1]:>18}{cells[2]:>12}")
    lines.append(
        f"(learned from the insides of the tiles; {metrics['epochs']} epochs, "
        f"{metrics['seconds_training']:.0f} s of training on {metrics['threads']} threads)"
    )
    return "\n".join(lines)


def headline(metrics: dict[str, Any]) -> str:
    """The figure that counts, over all pictures."""
    shares = {kind: f"{100 * share:.1f} %" for kind, share in metrics["neighbours"].items()}
    return (
        f"{shares['siamese']} of the neighbours found first "
        f"(MGC {shares['gradients']}, colours {shares['colours']})"
    )


RECIPE = Recipe(
    options=Fragments,
    run=run,
    table=table,
    headline=headline,
    data="three of scikit-image's photographs, torn to 28-pixel tiles",
    pictures={
        "restored.png": "Photographs torn, shuffled, and put back; a wrong seam is red",
    },
    quick=Fragments(pitch=64, train=TrainConfig(epochs=1, device="cpu")),
)
