"""The sampler draws every image once per pass, and a step's batch depends on its number only."""

from collections import Counter
from itertools import chain, islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_merge.data.samplers import Draws, OnePassSampler, TaskBatchSampler
from lit_merge.data.streams import (
    Answers,
    ArrangedImages,
    ImageTensor,
    LabelledImages,
    UnlabelledImages,
)


def steps(sampler: TaskBatchSampler, count: int) -> list[dict[str, list[int]]]:
    """The first batches of as many epochs as it takes."""

    return list(islice(chain.from_iterable(sampler for _ in range(count)), count))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_every_image_once_per_pass(sizes: list[int], batch_size: int, seed: int) -> None:
    named = {f"task{i}": size for i, size in enumerate(sizes)}
    batches = steps(TaskBatchSampler(named, batch_size, seed), 12)
    for task, size in named.items():
        assert {len(batch[task]) for batch in batches} == {batch_size}
        drawn = list(chain.from_iterable(batch[task] for batch in batches))
        for start in range(0, len(drawn) - size + 1, size):
            assert sorted(drawn[start : start + size]) == list(range(size))


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 4),
)
def test_processes_share_the_global_batch(sizes: list[int], batch_size: int, world_size: int) -> None:
    named = {f"task{i}": size for i, size in enumerate(sizes)}
    one = steps(TaskBatchSampler(named, batch_size * world_size), 6)
    shares = [steps(TaskBatchSampler(named, batch_size, 0, rank, world_size), 6) for rank in range(world_size)]
    for step, whole in enumerate(one):
        for task in named:
            assert list(chain.from_iterable(share[step][task] for share in shares)) == whole[task]


def test_processes_never_draw_the_same_image_within_a_pass() -> None:
    shares = [steps(TaskBatchSampler({"a": 24}, 3, 0, rank, 4), 2) for rank in range(4)]
    counts = Counter(i for share in shares for batch in share for i in batch["a"])
    assert counts == Counter(range(24))


def test_epoch_is_a_pass_over_the_largest_task() -> None:
    assert len(TaskBatchSampler({"a": 10, "b": 33}, 8)) == 5
    assert len(TaskBatchSampler({"a": 10, "b": 33}, 8, 0, 1, 3)) == 2
    assert len(list(TaskBatchSampler({"a": 10, "b": 33}, 8))) == 5


def test_batch_is_a_function_of_the_step_number() -> None:
    whole = steps(TaskBatchSampler({"a": 10, "b": 33}, 8, seed=3), 15)
    fresh = TaskBatchSampler({"a": 10, "b": 33}, 8, seed=3, position=lambda: 7)
    assert list(fresh) == whole[7:12]


def test_seed_and_task_choose_the_order() -> None:
    first = next(iter(TaskBatchSampler({"a": 50, "b": 50}, 50, seed=0)))
    other = next(iter(TaskBatchSampler({"a": 50, "b": 50}, 50, seed=1)))
    assert first["a"] != other["a"]
    assert first["a"] != first["b"]
    assert first["a"] != list(range(50))


def test_passes_have_orders_of_their_own() -> None:
    first, second = steps(TaskBatchSampler({"a": 50}, 50), 2)
    assert first["a"] != second["a"]


def test_sampler_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    steps(TaskBatchSampler({"a": 9}, 4), 5)
    assert torch.equal(torch.rand(1), expected)


def test_unlabelled_images_are_those_that_were_chosen() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None].expand(5, 2, 2)
    sources = {"a": ImageTensor(images), "b": ImageTensor(images + 10)}
    batch = UnlabelledImages(sources)[{"a": Draws([4, 0], 0), "b": Draws([1, 1], 0)}]
    assert {task: x[:, 0, 0].tolist() for task, x in batch.items()} == {"a": [4, 0], "b": [11, 11]}


@pytest.mark.parametrize("labelled", [True, False])
def test_labelled_batches_are_of_one_task_each_and_whole(labelled: bool) -> None:
    images = torch.arange(7, dtype=torch.uint8)[:, None, None].expand(7, 2, 2)
    labels = torch.arange(7, dtype=torch.uint8) % 3 if labelled else None
    dataset = LabelledImages({"a": (ImageTensor(images), labels), "b": (ImageTensor(images[:4]), labels)}, 3)
    batches = [dataset[i] for i in range(len(dataset))]
    assert [(batch["task"], len(batch["images"])) for batch in batches] == [
        ("a", 3),
        ("a", 3),
        ("a", 1),
        ("b", 3),
        ("b", 1),
    ]
    for batch in batches:
        assert torch.equal(batch["images"][:, 0, 0].long(), batch["indices"])
        assert ("labels" in batch) == labelled
        if labelled:
            assert batch["labels"].dtype == torch.int64
            assert torch.equal(batch["labels"], batch["indices"] % 3)


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), batch_size=st.integers(1, 40))
def test_one_pass_yields_every_image_once_in_order(sizes: list[int], batch_size: int) -> None:
    named = {f"task{i}": size for i, size in enumerate(sizes)}
    sampler = OnePassSampler(named, batch_size)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for task, size in named.items():
        parts = [batch[task] for batch in batches if task in batch]
        assert list(chain.from_iterable(parts)) == list(range(size))
        assert all(len(part) == batch_size for part in parts[:-1])
        assert all(task in batch for batch in batches[: len(parts)])
    assert list(OnePassSampler(named, batch_size, lambda: 1)) == batches[1:]


def test_images_in_another_order() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None].expand(5, 2, 2)
    source = ArrangedImages([ImageTensor(images)], [3, 0, 4])
    assert len(source) == 3
    assert source.read([2, 0])[:, 0, 0].tolist() == [4, 3]


def test_images_of_several_sources_one_after_the_other() -> None:
    images = torch.arange(9, dtype=torch.uint8)[:, None, None].expand(9, 2, 2)
    joined = ArrangedImages([ImageTensor(images[:4]), ImageTensor(images[4:4]), ImageTensor(images[4:])])
    assert len(joined) == 9
    assert joined.read([8, 0, 4, 3])[:, 0, 0].tolist() == [8, 0, 4, 3]
    parts = [Answers(["a"] * 2, torch.tensor([1, 0])), Answers(["b"], torch.tensor([3]))]
    known = Answers.joined(parts).ordered([2, 0])
    assert known.tasks == ["b", "a"]
    assert known.classes.tolist() == [3, 1]
