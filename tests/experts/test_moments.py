"""Second moments of every weight's inputs: against forwards written out here; files; what is refused."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lit_merge import Experts, MergeError, collect_moments, load_moments, save_moments
from lit_merge.choose import activations
from lit_merge.choose.activations import InputMoments, input_moments
from lit_merge.data.streams import ImageSource, ImageTensor
from lit_merge.experts.moments import fingerprint, second_moment
from lit_merge.networks import CosineHeads, Network

BLOCKS = [f"transformer.resblocks.{i}." for i in range(2)]
SEEN = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def moment(x: Tensor) -> Tensor:
    rows = x.double().reshape(-1, x.shape[-1])
    return sum(torch.outer(row, row) for row in rows) / len(rows)


def close(found: Tensor, wanted: Tensor) -> None:
    # The forward runs in float32, in batches of another size.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def literal_inputs(weights: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """The tower of conftest.NETWORK, written out: width 32, 2 heads of 16, patches of 8."""
    pixels = ((images.float() / 255 - 0.5) / 0.3)[:, None].expand(-1, 3, -1, -1)
    patches = F.conv2d(pixels, weights["conv1.weight"], stride=8).flatten(2).mT
    tokens = torch.cat([weights["class_embedding"].expand(len(images), 1, -1), patches], 1)
    norm = lambda x, name: F.layer_norm(x, (32,), weights[f"{name}.weight"], weights[f"{name}.bias"])  # noqa: E731
    x = norm(tokens + weights["positional_embedding"], "ln_pre")
    inputs = {}
    for block in BLOCKS:
        own = {name.removeprefix(block): value for name, value in weights.items() if name.startswith(block)}
        inputs[block + SEEN[0]] = h = norm(x, f"{block}ln_1")
        q, k, v = (part.unflatten(-1, (2, 16)) for part in (h @ own[SEEN[0]].T + own["attn.in_proj_bias"]).chunk(3, -1))
        attention = (torch.einsum("bshd,bthd->bhst", q, k) / 4).softmax(-1)
        inputs[block + SEEN[1]] = h = torch.einsum("bhst,bthd->bshd", attention, v).flatten(2)
        x = x + h @ own[SEEN[1]].T + own["attn.out_proj.bias"]
        inputs[block + SEEN[2]] = h = norm(x, f"{block}ln_2")
        inputs[block + SEEN[3]] = h = F.gelu(h @ own[SEEN[2]].T + own["mlp.c_fc.bias"])
        x = x + h @ own[SEEN[3]].T + own["mlp.c_proj.bias"]
    return inputs


def sources(tiny: Any) -> dict[str, ImageSource]:
    return dict(tiny.data().unlabelled())


def experts(tiny: Any) -> Experts:
    return Experts(tiny.experts, tiny.base)


def test_every_weight_of_a_tower_against_the_forward_written_out(tiny: Any) -> None:
    found = collect_moments(experts(tiny), tiny.encoder(), sources(tiny), samples=13, batch_size=5)
    assert tuple(found) == tiny.tasks
    images = sources(tiny)["gamma"].read(range(13))  # all that gamma has: their order does not matter
    wanted = literal_inputs(load_file(tiny.experts["gamma"]), images)
    # proj is used as x·W, the positional embedding is no product, conv1 is no matrix.
    assert set(found["gamma"]) == set(wanted) == {block + name for block in BLOCKS for name in SEEN}
    for name, x in wanted.items():
        assert found["gamma"][name].dtype == torch.float64
        close(found["gamma"][name], moment(x))


def test_weights_are_the_experts_and_batches_change_nothing(tiny: Any) -> None:
    network = tiny.encoder()
    one = collect_moments(experts(tiny), network, sources(tiny), samples=10, batch_size=3)
    other = collect_moments(experts(tiny), network, sources(tiny), samples=10, batch_size=10)
    for task in tiny.tasks:
        for name in one[task]:
            close(one[task][name], other[task][name])
    name = BLOCKS[1] + SEEN[3]
    swapped = Experts({"alpha": tiny.experts["beta"], "beta": tiny.experts["alpha"], "gamma": tiny.experts["gamma"]})
    third = collect_moments(swapped, network, sources(tiny), samples=10)
    assert (third["alpha"][name] - one["alpha"][name]).norm() > 0.05 * one["alpha"][name].norm()
    close(third["gamma"][name], one["gamma"][name])


def test_the_seed_draws_the_images_without_repetition(tiny: Any) -> None:
    class Watched(ImageTensor):
        def read(self, indices: Sequence[int]) -> Tensor:
            drawn.extend(indices)
            return super().read(indices)

    drawn: list[int] = []
    images = sources(tiny)["beta"].read(range(34))
    one = Experts({"beta": tiny.experts["beta"]})
    orders = []
    for seed in (0, 0, 1):
        drawn.clear()
        collect_moments(one, tiny.encoder(), {"beta": Watched(images)}, samples=20, batch_size=8, seed=seed)
        assert len(set(drawn)) == len(drawn) == 20
        orders.append(tuple(drawn))
    assert orders[0] == orders[1] != orders[2]


def test_nothing_is_left_switched(tiny: Any) -> None:
    network = tiny.encoder()
    for enabled in (True, False):
        torch.backends.mha.set_fastpath_enabled(enabled)
        try:
            collect_moments(experts(tiny), network, sources(tiny), samples=2)
            assert torch.backends.mha.get_fastpath_enabled() is enabled
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


def test_the_native_path_of_attention_hides_nothing() -> None:
    """An encoder layer whose forward is one operation unless it is switched off."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    network = Plain(layer)
    weights = dict(layer.state_dict())
    x = torch.randn(4, 5, 8)
    found = input_moments(network, weights, iter([x]))
    assert set(found) == {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    close(found["self_attn.in_proj_weight"], moment(x))
    with torch.no_grad():
        after = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
    close(found["linear1.weight"], moment(after))
    close(found["linear2.weight"], moment(layer.linear1(after).relu().detach()))


class Plain(Network):
    """Any encoder of float inputs; `masked` tokens, counted from the end, are padding."""

    def __init__(self, encoder: nn.Module, masks: Tensor | None = None) -> None:
        super().__init__()
        # A copy: a network keeps no weights, and the tests go on with the encoder's.
        self.encoder, self.masks, self.heads = deepcopy(encoder), masks, CosineHeads({"any": torch.eye(2)})
        self.freeze()

    def prepare(self, inputs: Tensor) -> Tensor:
        return inputs

    def token_mask(self, inputs: Tensor) -> Tensor | None:
        return self.masks


class Linears(nn.Module):
    """Separate q, k, v as in transformers; a pooled token; a weight used as x·W; one used by its rows; one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6, bias=bias) for bias in (True, False, True))
        self.pooler = nn.Linear(6, 6)
        self.turned, self.fused, self.unused = (nn.Parameter(torch.randn(6, 6)) for _ in range(3))
        self.row = nn.Linear(6, 1)
        self.column = nn.Linear(1, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)
        first, second = self.fused.chunk(2)
        h = torch.cat([F.linear(h, first), F.linear(h, second)], -1)
        return self.column(self.row(torch.tanh(self.pooler(h[:, 0])))) @ self.turned


def test_linear_layers_in_every_form() -> None:
    torch.manual_seed(0)
    model = Linears()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 4, 6)
    found = input_moments(Plain(model), weights, iter([x[:2], x[2:]]))
    names = {"q.weight", "k.weight", "v.weight", "fused", "pooler.weight", "row.weight", "column.weight"}
    assert set(found) == names
    for name in ("q.weight", "k.weight", "v.weight"):
        close(found[name], moment(x))
    with torch.no_grad():
        h = (model.q(x) @ model.k(x).mT).softmax(-1) @ model.v(x)
        close(found["fused"], moment(h))
        h = h @ model.fused.T
        close(found["pooler.weight"], moment(h[:, 0]))
        pooled = torch.tanh(model.pooler(h[:, 0]))
        close(found["row.weight"], moment(pooled))
        close(found["column.weight"], moment(model.row(pooled)))


def test_padding_is_left_out_and_pooled_tokens_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.MultiheadAttention(5, 1), nn.Linear(5, 2))

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, _, self.attention, self.last = model

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).transpose(0, 1)  # attention takes the tokens first: its rows have another order
            return self.last(self.attention(h, h, h)[0][0])

    encoder = Pooling().eval()
    weights = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
    x = torch.randn(4, 4, 6)  # as many sequences as tokens: their sizes do not tell them apart
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    found = input_moments(Plain(encoder, mask), weights, iter([x]))
    with torch.no_grad():
        h = encoder.first(x)
        close(found["first.weight"], moment(x[mask]))
        close(found["attention.in_proj_weight"], moment(h[mask]))
        pooled = encoder.attention(*3 * [h.transpose(0, 1)])[0][0]
        close(found["last.weight"], moment(pooled))


def test_memory_does_not_depend_on_the_number_of_samples() -> None:
    layer = nn.Linear(3, 2)
    watch = InputMoments(dict(layer.named_parameters()))
    with torch.no_grad(), watch:
        for _ in range(50):
            functional_call(layer, dict(layer.named_parameters()), (torch.randn(7, 3),))
    assert watch.rows == {"weight": 350}
    assert watch.sums["weight"].shape == (3, 3)


def test_sums_of_many_rows_lose_no_digits() -> None:
    """In float32 the sum of 2²⁴ ones and more ones stays where it is."""
    layer = nn.Linear(1, 1, bias=False)
    watch = InputMoments({"weight": layer.weight})
    watch.sums, watch.rows = {"weight": torch.full((1, 1), 2.0**24, dtype=torch.float64)}, {"weight": 2**24}
    with torch.no_grad(), watch:
        for _ in range(8):
            layer(torch.ones(1, 1))
    assert watch.sums["weight"].item() == 2**24 + 8


def test_one_task_at_a_time(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's images and weights are read when its turn comes."""

    class Watched(ImageTensor):
        def read(self, indices: Sequence[int]) -> Tensor:
            reads.append(len(indices))
            return super().read(indices)

    reads: list[int] = []
    watched = {task: Watched(source.read(range(5))) for task, source in sources(tiny).items()}

    def save(_: Any, stream: Any, *__: Any) -> None:
        for number, task in enumerate(tiny.tasks, 1):
            assert next(stream)[0] == task
            assert reads == number * [2, 2, 1]

    monkeypatch.setattr(activations, "save_moments", save)
    monkeypatch.setattr(activations, "load_moments", lambda *_: {})
    collect_moments(experts(tiny), tiny.encoder(), watched, samples=5, batch_size=2, folder="unused")
    assert reads == len(tiny.tasks) * [2, 2, 1]


# Files


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    collect_moments(experts(tiny), tiny.encoder(), sources(tiny), samples=4, folder=tmp_path / "moments")
    return tmp_path / "moments"


def test_a_folder_gives_what_was_collected(tiny: Any, folder: Path, tmp_path: Path) -> None:
    kept = collect_moments(experts(tiny), tiny.encoder(), sources(tiny), samples=4)
    loaded = load_moments(str(folder), experts(tiny))
    save_moments(tmp_path / "again", kept, experts(tiny))
    again = load_moments(tmp_path / "again", experts(tiny))
    assert tuple(loaded) == tuple(again) == tiny.tasks
    for task, own in kept.items():
        assert set(loaded[task]) == set(own)
        for name, value in own.items():
            assert torch.equal(loaded[task][name], value)
            assert torch.equal(again[task][name], value)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["again", "moments"]


def test_some_of_the_tasks_can_be_merged(tiny: Any, folder: Path) -> None:
    some = Experts({task: tiny.experts[task] for task in ("gamma", "alpha")})
    assert tuple(load_moments(folder, some)) == ("gamma", "alpha")


def test_task_names_are_no_paths(tiny: Any, tmp_path: Path) -> None:
    one = Experts({"a/../b": tiny.experts["alpha"]})
    save_moments(tmp_path / "moments", {"a/../b": {"proj": torch.eye(16)}}, one)
    assert torch.equal(load_moments(tmp_path / "moments", one)["a/../b"]["proj"], torch.eye(16))
    assert len(list((tmp_path / "moments").iterdir())) == 1


def refused(folder: Path, opened: Experts) -> str:
    with pytest.raises(MergeError) as error:
        load_moments(folder, opened)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_moments_of_another_expert_are_refused(tiny: Any, folder: Path) -> None:
    swapped = Experts(tiny.experts | {"beta": tiny.experts["alpha"]})
    assert "another expert" in refused(folder, swapped)
    changed = load_file(tiny.experts["beta"])
    changed["ln_post.bias"] = changed["ln_post.bias"] + 1e-3
    assert "beta" in refused(folder, Experts(tiny.experts | {"beta": changed}))


def test_the_fingerprint_is_the_experts_wherever_it_lies(tiny: Any, folder: Path) -> None:
    state = dict(reversed(load_file(tiny.experts["beta"]).items()))
    one, other = Experts(tiny.experts), Experts({"beta": state})
    assert fingerprint(one.checkpoints["beta"]) == fingerprint(other.checkpoints["beta"])
    assert fingerprint(one.checkpoints["beta"]) != fingerprint(one.checkpoints["alpha"])
    load_moments(folder, other)


def test_moments_of_another_model_are_refused(folder: Path) -> None:
    assert "no 2-D weight transformer" in refused(folder, Experts({"alpha": {"layer": torch.ones(3, 3)}}))


def test_another_shape_is_refused(tiny: Any, tmp_path: Path) -> None:
    name = BLOCKS[0] + SEEN[2]
    with pytest.raises(MergeError, match=r"c_fc.* has shape \[64, 64\], expected \[32, 32\]") as error:
        save_moments(tmp_path / "moments", {task: {name: torch.eye(64)} for task in tiny.tasks}, experts(tiny))
    assert (error.value.task, error.value.weight) == ("alpha", name)
    assert not (tmp_path / "moments").exists()


def test_a_missing_task_is_refused(tiny: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "beta.safetensors").unlink()
    assert "no moments of task beta" in refused(folder, experts(tiny))
    with pytest.raises(MergeError, match="none of task beta"):
        save_moments(tmp_path / "fewer", {"alpha": {}, "gamma": {}}, experts(tiny))
    with pytest.raises(MergeError, match="delta: no such expert"):
        save_moments(tmp_path / "more", {"delta": {}}, experts(tiny))


def test_a_file_of_another_task_is_refused(tiny: Any, folder: Path) -> None:
    (folder / "alpha.safetensors").replace(folder / "beta.safetensors")
    assert "expected beta" in refused(folder, Experts({"beta": tiny.experts["alpha"]}))


def test_damaged_and_foreign_files_are_refused(tiny: Any, folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere", experts(tiny))
    file = folder / "alpha.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert "cut short" in refused(folder, experts(tiny))
    file.write_bytes(whole.replace(b'"samples":', b'"sampled":'))
    assert "is not as it was saved" in refused(folder, experts(tiny))
    save_file(load_file(file), file, {"format": "lit_merge moments", "format_version": "9"})
    assert "format version 9" in refused(folder, experts(tiny))
    file.write_bytes(Path(tiny.experts["alpha"]).read_bytes())
    assert "no moments of lit_merge" in refused(folder, experts(tiny))


def test_a_folder_that_exists_stays_unless_told_otherwise(tiny: Any, folder: Path) -> None:
    with pytest.raises(MergeError, match="exists"):
        collect_moments(experts(tiny), tiny.encoder(), sources(tiny), samples=2, folder=folder)
    collect_moments(experts(tiny), tiny.encoder(), sources(tiny), samples=2, folder=folder, overwrite=True)
    load_moments(folder, experts(tiny))


# Mistakes


def test_more_samples_than_images(tiny: Any) -> None:
    with pytest.raises(MergeError, match="gamma has 13 unlabelled images, 14 are asked for"):
        collect_moments(experts(tiny), tiny.encoder(), sources(tiny), samples=14)
    with pytest.raises(MergeError, match="samples=0"):
        collect_moments(experts(tiny), tiny.encoder(), sources(tiny), samples=0)


def test_tasks_that_do_not_fit(tiny: Any) -> None:
    fewer = {task: source for task, source in sources(tiny).items() if task != "beta"}
    with pytest.raises(MergeError, match="beta has 0 unlabelled images"):
        collect_moments(experts(tiny), tiny.encoder(), fewer, samples=2)
    with pytest.raises(MergeError, match="beta that is not merged"):
        collect_moments(Experts({"alpha": tiny.experts["alpha"]}), tiny.encoder(), sources(tiny), samples=2)


def test_activations_that_are_not_finite(tiny: Any) -> None:
    weights = load_file(tiny.experts["beta"])
    weights[BLOCKS[0] + SEEN[2]] = torch.full_like(weights[BLOCKS[0] + SEEN[2]], 3e38)
    with pytest.raises(MergeError, match="NaN or infinity") as error:
        collect_moments(Experts(tiny.experts | {"beta": weights}), tiny.encoder(), sources(tiny), samples=2)
    assert (error.value.task, error.value.weight) == ("beta", BLOCKS[0] + SEEN[3])


def test_a_moment_that_is_not_finite_is_refused_when_it_is_used() -> None:
    with pytest.raises(MergeError, match="NaN or infinity"):
        second_moment({"a": {"w": torch.full((2, 2), torch.nan)}}, "a", "w")
    assert second_moment({"a": {}}, "a", "w") is None


def test_a_network_of_another_shape(tiny: Any) -> None:
    with pytest.raises(MergeError, match="the network has"):
        collect_moments(Experts({"alpha": {"layer": torch.ones(3, 3)}}), tiny.encoder(), {})


def test_experts_in_half_precision_run_in_float32(tiny: Any) -> None:
    half = {name: value.half() for name, value in load_file(tiny.experts["gamma"]).items()}
    found = collect_moments(Experts({"gamma": half}), tiny.encoder(), {"gamma": sources(tiny)["gamma"]}, samples=13)
    images = sources(tiny)["gamma"].read(range(13))
    for name, x in literal_inputs({name: value.float() for name, value in half.items()}, images).items():
        close(found["gamma"][name], moment(x))


def test_what_no_inputs_have_as_second_moment_is_refused() -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    whole = x.T @ x
    assert second_moment({"a": {"w": whole.bfloat16()}}, "a", "w") is not None
    for place, value in (((0, 1), whole[0, 1] + whole.max()), ((2, 2), -whole[2, 2]), ((3, 3), whole[3, 3] * 2**-40)):
        damaged = whole.clone()
        damaged[place] = value
        with pytest.raises(MergeError, match="moments of a: w is no second moment"):
            second_moment({"a": {"w": damaged}}, "a", "w")
