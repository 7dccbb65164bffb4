"""Encoders: every one of the registry by one set of tests, then what is special in each."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import siamcuda
from siamcuda.train.encoders import (
    ENCODERS,
    FACES,
    ChopraNet,
    CodeEncoder,
    DifferenceClassifier,
    EncoderConfig,
    EncoderSpec,
    InputSpec,
    TextEncoder,
    Tokenizer,
    TwoChannelNet,
    build_encoder,
)
from siamcuda.train.errors import InputError

DIGITS = InputSpec(1, 28, 28)
WORDS = Tokenizer(buckets=300)


def spec(name: str, inputs: Any, embedding: int = 12, **config: Any) -> EncoderSpec:
    return EncoderSpec(EncoderConfig(name, embedding, **config), inputs)


#: At least one for each name of the registry.
CASES = {
    "chopra2005": spec("chopra2005", DIGITS),
    "chopra2005-colour": spec("chopra2005", InputSpec(3, 33, 40), options={"maps": "6,12,20"}),
    "small": spec("small", DIGITS),
    "small-plain": spec("small", InputSpec(3, 17, 40), normalize=False, options={"width": 4}),
    "fast": spec("fast", DIGITS, options={"width": 8}),
    "fast-group": spec("fast", InputSpec(3, 31, 22), options={"width": 6, "norm": "group"}),
    "residual": spec("residual", DIGITS, options={"widths": "8,12"}),
    "residual-group": spec(
        "residual",
        InputSpec(2, 37, 30),
        normalize=False,
        options={"widths": "8,12,16", "blocks": 2, "norm": "group", "pool": True},
    ),
    "two-channel": spec("two-channel", InputSpec(2, 27, 45), options={"width": 6, "stride": 1}),
    "patch": spec("patch", InputSpec(2, 27, 45), options={"width": 6, "stride": 1}),
    "text": spec("text", WORDS, options={"width": 16, "hidden": 20}),
    "codes": spec("fast", DIGITS, bits=20, options={"width": 8}),
    "imported": spec(f"{__name__}:Pooled", DIGITS, normalize=True, options={"power": "2"}),
}

#: No loss depends on them, for a batch norm follows; they stay for the sake of the demo's bits.
IDLE = {"small": {"head.bias"}, "small-plain": {"head.bias"}}


class Pooled(nn.Module):
    """Somebody else's module: grey levels in blocks, and a linear layer."""

    def __init__(self, embedding: int, inputs: InputSpec, power: int = 1) -> None:
        super().__init__()
        self.power = power
        self.linear = nn.Linear(inputs.channels * 16, embedding)

    def forward(self, images: Tensor) -> Tensor:
        blocks = torch.nn.functional.adaptive_avg_pool2d(images**self.power, 4)
        return self.linear(blocks.flatten(1))


class Wrong(nn.Module):
    def __init__(self, how: str = "") -> None:
        super().__init__()
        if how == "make":
            raise RuntimeError("no such weather")
        self.how = how

    def forward(self, images: Tensor) -> Any:
        if self.how == "fail":
            raise RuntimeError("out of order")
        return {"": images, "sum": images.sum((1, 2, 3)), "tuple": (images,)}[self.how]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, EncoderSpec]:
    return request.param, CASES[request.param]


def test_every_encoder_of_the_registry_has_a_case() -> None:
    assert set(ENCODERS) <= {case.encoder.name for case in CASES.values()}


def test_shapes_and_lengths(case: tuple[str, EncoderSpec]) -> None:
    _, it = case
    encoder = it.build(seed=1)
    assert encoder.training
    encoder.eval()
    width = it.encoder.bits or 12
    expected = (3,) if it.encoder.name == "two-channel" else (3, width)
    out = encoder(it.example(3))
    assert out.shape == expected
    assert out.dtype == torch.float32
    assert encoder(it.example(3)[:0]).shape == (0, *expected[1:])
    unit = it.encoder.normalize is not False and it.encoder.name not in ("two-channel",)
    if unit and not it.encoder.bits and it.encoder.name != "chopra2005":
        torch.testing.assert_close(out.norm(dim=1), torch.ones(3))


def test_gradients_reach_every_parameter(case: tuple[str, EncoderSpec]) -> None:
    name, it = case
    encoder = it.build(seed=1)
    out = encoder(it.example(6))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    idle = set()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        if float(parameter.grad.abs().max()) < 1e-5:
            idle.add(key)
    assert idle == IDLE.get(name, set())


def test_weights_depend_on_the_seed_alone(case: tuple[str, EncoderSpec]) -> None:
    _, it = case
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = it.build(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    same, other = it.build(seed=1).state_dict(), it.build(seed=2).state_dict()
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_spec_comes_back_from_json(case: tuple[str, EncoderSpec]) -> None:
    _, it = case
    again = EncoderSpec.from_json(json.loads(json.dumps(it.as_json())))
    assert again == it
    weights = it.build(seed=4).state_dict()
    again.build(seed=9).load_state_dict(weights)


def test_a_row_does_not_depend_on_the_others(case: tuple[str, EncoderSpec]) -> None:
    _, it = case
    encoder = it.build(seed=1)
    encoder(it.example(8, seed=1))  # so that batch norms have seen something
    encoder.eval()
    rows = it.example(5)
    out = encoder(rows)
    assert torch.equal(encoder(rows), out)
    for row in range(5):
        torch.testing.assert_close(encoder(rows[row : row + 1])[0], out[row], atol=1e-5, rtol=1e-4)


def test_copies_half_precision_and_compile(case: tuple[str, EncoderSpec]) -> None:
    name, it = case
    encoder = it.build(seed=1).eval()
    rows = it.example(4)
    out = encoder(rows)
    assert torch.equal(copy.deepcopy(encoder)(rows), out)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(rows)
    assert bool(half.isfinite().all())
    if name != "codes":  # the sign of an output near 0 may turn
        torch.testing.assert_close(half.float(), out, atol=0.05, rtol=0.05)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(rows), out)


@pytest.mark.parametrize("name", ["fast-group", "residual-group"])
def test_group_norm_lets_a_batch_be_cut(name: str) -> None:
    it, labels = CASES[name], torch.arange(12) % 3
    whole, cut = it.build(seed=1), it.build(seed=1)
    rows = it.example(12)
    siamcuda.batch_triplet_loss(whole(rows), labels).backward()
    siamcuda.cached_step(cut, rows.split(5), lambda z: siamcuda.batch_triplet_loss(z, labels))
    for (key, one), other in zip(whole.named_parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3, msg=key)


# options


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "residul"}, "encoder: 'residul' is none of .*did you mean 'residual'"),
        ({"name": "zzz"}, r"encoder: 'zzz' is none of [^?]*$"),
        ({"name": ""}, "encoder: a name is expected"),
        ({"options": {"widht": 3}}, "options.widht: small has no such option.*mean 'width'"),
        ({"options": {"width": "wide"}}, "options.width: an integer is expected, got 'wide'"),
        ({"options": {"width": 2.5}}, "options.width: an integer is expected, got 2.5"),
        ({"options": {"width": True}}, "options.width: an integer is expected, got True"),
        ({"options": {"width": 0}}, "width: must be at least 1, got 0"),
        ({"options": {"width": [3]}}, "options.width: a number or a text is expected"),
        ({"options": {"width": float("nan")}}, "options.width: a number or a text"),
        ({"options": {"embedding": 3}}, "options.embedding: this is a setting of the encoder"),
        ({"options": "width"}, "options: names with values are expected"),
        ({"name": "residual", "options": {"widths": "8,x"}}, "options.widths: integers such as"),
        ({"name": "residual", "options": {"widths": "8,0"}}, "widths: must be at least 1, got 0"),
        ({"name": "residual", "options": {"norm": "layer"}}, "norm: 'layer' is none of batch"),
        ({"name": "residual", "options": {"pool": "maybe"}}, "options.pool: true or false"),
        ({"name": "chopra2005", "options": {"maps": "4,5"}}, "maps: those of C1, C3 and C5"),
        ({"name": "chopra2005", "options": {"connections": 16}}, "connections: C1 has 15 maps"),
        ({"embedding": 0}, "embedding: an integer of at least 1"),
        ({"embedding": 1.5}, "embedding: an integer of at least 1"),
        ({"bits": 0}, "bits: an integer of at least 1"),
        ({"normalize": 1}, "normalize: true, false or nothing"),
        ({"name": "two-channel", "normalize": True}, "normalize: two-channel gives a score"),
        ({"name": "two-channel", "bits": 8}, "bits: two-channel gives a score"),
        ({"name": "text"}, "inputs: text takes texts"),
    ],
)
def test_what_cannot_be_built_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_encoder(EncoderConfig(**config), FACES, seed=0)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("chopra2005", (24, 22)),
        ("small", (16, 16)),
        ("fast", (8, 8)),
        ("residual", (8, 8)),
        ("two-channel", (64, 64)),
        ("patch", (64, 64)),
    ],
)
def test_images_that_are_too_small(name: str, least: tuple[int, int]) -> None:
    config = EncoderConfig(name, 4)
    it = EncoderSpec(config, InputSpec(1, *least))
    assert len(it.build(seed=0).eval()(it.example(2))) == 2
    for height, width in ((least[0] - 1, least[1]), (least[0], least[1] - 1)):
        with pytest.raises(InputError, match=f"inputs: {name} needs images of at least"):
            build_encoder(config, InputSpec(1, height, width), seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "spec: an object is expected"),
        ({}, "inputs: one of images, text is expected"),
        ({"inputs": {"sound": {}}}, "inputs: one of images, text is expected"),
        ({"inputs": {"images": {"depth": 3}}}, "inputs: unknown setting 'depth'"),
        ({"inputs": {"images": {"height": "9"}}}, "inputs.height: an integer"),
        ({"inputs": {"images": {"height": 0}}}, "inputs.height: an integer of at least 1"),
        ({"inputs": {"images": 3}}, "inputs: an object is expected"),
        ({"inputs": {"text": {"buckets": 0}}}, "tokenizer.buckets: an integer"),
        ({"inputs": {"text": {"vocabulary": "abc"}}}, "tokenizer.vocabulary: a list"),
        ({"inputs": {"text": {"vocabulary": ["a", "a"]}}}, "tokenizer.vocabulary: a word stands"),
        ({"inputs": {"text": {"seed": -1}}}, "tokenizer.seed"),
        ({"inputs": {"text": {"_cache": {}}}}, "tokenizer: unknown setting '_cache'"),
        ({"inputs": {"images": {}}, "encoder": []}, "encoder: an object is expected"),
        ({"inputs": {"images": {}}, "encoder": {"nam": ""}}, "encoder: unknown setting 'nam'"),
    ],
)
def test_broken_json_is_named(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EncoderSpec.from_json(content)


# modules of other people


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no.such.module:Net", {}, "cannot import 'no.such.module:Net'"),
        (f"{__name__}:Nothing", {}, "cannot import .*Nothing"),
        (f"{__name__}:DIGITS", {}, "is no class or function"),
        ("builtins:dict", {}, "encoder: 'builtins:dict'"),
        ("fractions:Fraction", {}, "gives Fraction, not a torch.nn.Module"),
        (f"{__name__}:Wrong", {"how": "make"}, "cannot be made: no such weather"),
        (f"{__name__}:Wrong", {"how": "fail"}, r"fails on inputs \(2, 1, 28, 28\): out of order"),
        (f"{__name__}:Wrong", {"how": "sum"}, r"gives \(2,\) .*\(2, 12\) is expected"),
        (f"{__name__}:Wrong", {"how": "tuple"}, "gives tuple for inputs"),
        (f"{__name__}:Wrong", {}, r"gives \(2, 1, 28, 28\)"),
        (f"{__name__}:Wrong", {"hwo": ""}, "options.hwo: .*did you mean 'how'"),
    ],
)
def test_modules_that_do_not_fit_are_named(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_encoder(EncoderConfig(name, 12, options=options), DIGITS, seed=0)


def test_a_module_of_torch_is_an_encoder() -> None:
    config = EncoderConfig("torch.nn:Flatten", 16)
    encoder = build_encoder(config, InputSpec(1, 4, 4), seed=0)
    assert isinstance(encoder, nn.Flatten)
    assert encoder.training


# single encoders


def test_connections_of_one_map() -> None:
    net = ChopraNet(4, DIGITS, maps=(1, 2, 3), connections=1)
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 4)


def test_pairs_come_with_and_without_channels() -> None:
    net = TwoChannelNet(InputSpec(1, 40, 40), width=6, stride=1).eval()
    pairs = torch.rand(3, 2, 1, 40, 40)
    torch.testing.assert_close(net(pairs.squeeze(2)), net(pairs))
    dimmed = pairs * torch.tensor([1.0, 0.5])[:, None, None, None] + 0.1
    torch.testing.assert_close(net(dimmed), net(pairs), atol=1e-4, rtol=1e-3)
    for wrong in (torch.rand(3, 1, 40, 40), torch.rand(3, 2, 40, 41), torch.rand(3, 40)):
        with pytest.raises(InputError, match=r"pairs: shape \(B, 2, 1, 40, 40\) is expected"):
            net(wrong)


def test_two_channel_has_the_sizes_of_the_paper() -> None:
    net = TwoChannelNet()
    kernels = {name: tuple(p.shape) for name, p in net.named_parameters() if "weight" in name}
    assert kernels == {
        "c1.weight": (96, 2, 7, 7),
        "c2.weight": (192, 96, 5, 5),
        "c3.weight": (256, 192, 3, 3),
        "f4.weight": (256, 256),
        "f5.weight": (1, 256),
    }


def test_codes_are_the_signs() -> None:
    it = CASES["codes"]
    encoder = it.build(seed=0).eval()
    assert isinstance(encoder, CodeEncoder)
    rows = it.example(9)
    signs, codes, soft = encoder(rows), encoder.codes(rows), encoder.relaxed(rows)
    assert signs.unique().tolist() == [-1.0, 1.0]
    assert codes.shape == (9, 3)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes, siamcuda.pack_bits(signs))
    assert torch.equal(signs > 0, soft > 0)
    apart = siamcuda.squared_cdist(signs, signs)
    differ = siamcuda.hamming(codes[:, None], codes[None])
    torch.testing.assert_close(apart, 4 * differ.float())


def test_codes_learn_by_the_gradient_of_tanh() -> None:
    codes = CodeEncoder(nn.Identity(), 6, 8)
    x = torch.randn(5, 6)
    upstream = torch.randn(5, 8)
    straight = torch.autograd.grad((codes(x) * upstream).sum(), codes.head.weight)
    smooth = torch.autograd.grad((codes.relaxed(x) * upstream).sum(), codes.head.weight)
    torch.testing.assert_close(straight, smooth)


@pytest.mark.parametrize("hidden", [0, 7])
def test_the_difference_classifier_is_symmetric(hidden: int) -> None:
    head = DifferenceClassifier(5, hidden)
    x1, x2 = torch.randn(2, 4, 5, requires_grad=True).unbind()
    logits = head(x1, x2)
    assert logits.shape == (4, 2)
    assert torch.equal(head(x2, x1), logits)
    with pytest.raises(InputError, match=r"x1, x2: two tensors \(..., 5\)"):
        head(x1, x2[:1])
    count = sum(p.numel() for p in head.parameters())
    assert count == ((5 + 3) * hidden + 2 if hidden else 2 * 5 + 2)


def test_the_verification_head_is_the_formula() -> None:
    head = siamcuda.nn.VerificationHead(6).double()
    x1, x2 = torch.randn(2, 3, 4, 6, dtype=torch.float64).unbind()
    weight, bias = head.linear.weight[0], head.linear.bias
    expected = torch.sigmoid(((x1 - x2).abs() * weight).sum(-1) + bias)
    torch.testing.assert_close(head(x1, x2), expected)
    torch.testing.assert_close(head.logits(x1, x2).sigmoid(), expected)
    same = x1.clone().requires_grad_()
    head(same, same.detach()).sum().backward()
    assert torch.equal(same.grad, torch.zeros_like(same))
    for wrong in (x2[:1], x2[..., :5], x2[0]):
        with pytest.raises(ValueError, match=r"x1, x2: two tensors \(\.\.\., 6\)"):
            head(x1, wrong)
    with pytest.raises(ValueError, match="features must be at least 1"):
        siamcuda.nn.VerificationHead(0)


# texts


def test_ids_stay_as_they_are() -> None:
    """Saved weights mean these very ids."""
    tokenizer = Tokenizer(buckets=1000, length=9)
    ids = tokenizer.encode(["Blue fish", "a", "", "ﬁsh FISH blue"])
    assert ids.shape == (4, 9)
    assert ids[2].tolist() == [0] * 9
    one, other = tokenizer.encode(["fish"])[0], tokenizer.encode(["FISH"])[0]
    assert torch.equal(one, other)
    assert torch.equal(ids[3, : len(one)], one)
    assert tokenizer.encode(["fish"]).tolist() == [[623, 569, 126, 273, 903, 124, 515, 954, 936]]


def test_words_share_the_runs_of_their_letters() -> None:
    tokenizer = Tokenizer(buckets=1 << 40)
    words = ("fish", "fishes", "rug")
    fish, fishes, other = (set(tokenizer.encode([word])[0].tolist()) for word in words)
    assert len(fish) == 10  # the word, four runs of 3, three of 4, two of 5
    assert len(fish & fishes) == 6  # <fi fis ish <fis fish <fish
    assert not fish & other


def test_seeds_vocabularies_and_cases() -> None:
    plain = Tokenizer(buckets=10**6, longest=0)
    text = ["The cat sat; the CAT ran"]
    assert plain.encode(text)[0, 1] == plain.encode(text)[0, 4]
    assert not torch.equal(
        Tokenizer(buckets=10**6, longest=0, seed=1).encode(text), plain.encode(text)
    )
    cased = Tokenizer(buckets=10**6, longest=0, lowercase=False).encode(text)[0]
    assert cased[1] != cased[4]
    known = plain.with_vocabulary(text, words=5)
    assert known.vocabulary == ("cat", "the")
    ids = known.encode(text)[0].tolist()
    assert [ids[i] for i in (0, 1, 3, 4)] == [2, 1, 2, 1]
    assert min(ids[2], ids[5]) > 2
    assert known.size == 1 + 2 + 10**6
    with pytest.raises(InputError, match="texts: a list of texts"):
        plain.encode("cat")
    assert plain.encode([]).shape == (0, 1)


def test_ids_lie_below_the_size_and_fill_the_buckets() -> None:
    tokenizer = Tokenizer(buckets=50, longest=0)
    ids = tokenizer.encode([f"w{number}" for number in range(2000)])
    counts = torch.bincount(ids.flatten(), minlength=tokenizer.size)
    assert len(counts) == tokenizer.size
    assert counts[0] == 0
    assert int(counts[1:].min()) > 15
    assert int(counts.max()) < 80


def test_padding_does_not_count_and_rare_words_count_more() -> None:
    encoder = TextEncoder(8, WORDS, width=16, hidden=20).eval()
    ids = WORDS.encode(["red fish", "blue fish", "old fish", ""])
    wider = torch.nn.functional.pad(ids, (0, 5))
    torch.testing.assert_close(encoder(wider), encoder(ids))
    assert bool(encoder(ids).isfinite().all())
    torch.testing.assert_close(encoder.weights(ids).sum(1), torch.tensor([1.0, 1, 1, 0]))
    encoder.weigh_by_rarity(ids)
    fish = int(Tokenizer(buckets=300, longest=0).encode(["fish"]))
    red = int(Tokenizer(buckets=300, longest=0).encode(["red"]))
    weights = encoder.weights(ids)[0]
    ratio = weights[ids[0] == fish][0] / weights[ids[0] == red][0]
    expected = (1 + torch.tensor(5 / 4).log()) / (1 + torch.tensor(5 / 2).log())
    torch.testing.assert_close(ratio, expected)
    with pytest.raises(InputError, match=r"ids: \(B, L\) int64 is expected"):
        encoder(ids.float())


# what docs/encoders.md says


def test_the_table_of_the_docs_is_true() -> None:
    page = (Path(__file__).parent.parent / "docs" / "encoders.md").read_text()
    rows = re.findall(
        r"^\| `([\w-]+)` \|[^|]*\| (?:(\d+) x (\d+) x (\d+)|text) \| (\d+) "
        r"\| ([\d,]+) \| ([\d.]+) \|",
        page,
        re.MULTILINE,
    )
    assert {row[0] for row in rows} == set(ENCODERS)
    for name, channels, height, width, embedding, parameters, mflop in rows:
        size = InputSpec(int(channels), int(height), int(width)) if height else Tokenizer()
        it = EncoderSpec(EncoderConfig(name, int(embedding)), size)
        encoder = it.build(seed=0).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(it.example(2))
        count = f"{sum(p.numel() for p in encoder.parameters()):,}"
        found = count, f"{counter.get_total_flops() / 2e6:.1f}"
        assert found == (parameters, mflop), name
        factory = ENCODERS[name].factory
        assert count in (factory.__doc__ or "") or (height, width) == ("64", "64"), name
