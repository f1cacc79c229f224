"""Augmentation of unlabelled inputs: what it does to them, which draws it depends on, and what it leaves alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision.transforms.v2 import functional

from lit_merge import ImageAugmentation, MergedModel, MergeError, Stage, TextFiles, WordDropout
from lit_merge.adaptation.trainer import Trainer
from lit_merge.data.texts.tokens import PADDING, SEGMENT

NOTHING: dict[str, Any] = {"degrees": 0.0, "scale": 0.0, "shift": 0.0, "brightness": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed(image: Tensor, seed: int = 0, **options: Any) -> Tensor:
    return ImageAugmentation(**NOTHING | options).change(image[None], [generator(seed)])[0]


@pytest.mark.parametrize("shape", [(16, 16), (3, 12, 20)])
def test_each_change_of_an_image_alone(shape: tuple[int, ...]) -> None:
    image = torch.randint(0, 200, shape, dtype=torch.uint8, generator=generator())
    assert torch.equal(changed(image), image)
    drawn = (2 * torch.rand(6, generator=generator(3)) - 1).tolist()
    light = changed(image, 3, brightness=0.5)
    wanted = image.double() * (1 + 0.5 * drawn[4])
    assert ((light.double() - wanted.clamp(0, 255)).abs() <= 0.501).all()
    height, width = shape[-2:]
    down, right = round(drawn[2] * 0.25 * height), round(drawn[3] * 0.25 * width)
    moved = changed(image, 3, shift=0.25)
    inside = moved[..., max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
    wanted = image[..., max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    assert down
    assert right
    assert torch.equal(inside, wanted)
    # Turned about the middle: the mean colour of the border fills the corners.
    plain = torch.full(shape, 90, dtype=torch.uint8)
    assert torch.equal(changed(plain, degrees=45.0, scale=0.5), plain)
    seed = next(seed for seed in range(9) if torch.rand(6, generator=generator(seed))[5] > 0.5)
    assert torch.equal(changed(image, seed, flip=True), image.flip(-1))


def test_images_are_placed_where_torchvision_places_them() -> None:
    """All together, each by its own numbers; away from the border, which torchvision fills otherwise."""
    smooth = avg_pool2d(torch.rand(4, 3, 41, 60, generator=generator()), 5, 1, 2)
    images = (255 * smooth).byte()
    augment = ImageAugmentation(degrees=30, scale=0.2, shift=0.1, brightness=0.3)
    found = augment.change(images, [generator(seed) for seed in range(4)])
    for seed, (image, one) in enumerate(zip(images, found, strict=True)):
        angle, scale, down, right, light, _ = (2 * torch.rand(6, generator=generator(seed)) - 1).tolist()
        wanted = functional.affine(
            image.double(),
            angle=30 * angle,
            translate=[round(6 * right), round(4.1 * down)],
            scale=1 + 0.2 * scale,
            shear=[0.0],
            interpolation=functional.InterpolationMode.BILINEAR,
        )
        apart = (one.double() - wanted * (1 + 0.3 * light)).abs()[:, 15:-15, 15:-15]
        assert apart.max() <= 0.51
    alone = [augment.change(images[i : i + 1], [generator(i)])[0] for i in range(4)]
    assert torch.equal(torch.stack(alone), found)
    # Images that are numbers from 0 to 1 are changed alike.
    parts = augment.change(images / 255, [generator(seed) for seed in range(4)])
    assert (255 * parts - found).abs().max() <= 0.51


def test_changes_depend_on_seed_task_and_draw_and_on_nothing_else(tiny: Any) -> None:
    data = tiny.data(augment=ImageAugmentation(spare=["beta"]))
    batches = list(data.train_dataloader())
    plain = list(tiny.data().train_dataloader())
    for one, other in zip(batches, plain, strict=True):
        assert torch.equal(one["beta"], other["beta"])
        assert not torch.equal(one["alpha"], other["alpha"])
        assert one["alpha"].dtype == other["alpha"].dtype
        assert one["alpha"].shape == other["alpha"].shape
    torch.manual_seed(99)
    again = list(tiny.data(augment=ImageAugmentation(spare=["beta"])).train_dataloader())
    assert all(torch.equal(one[task], other[task]) for one, other in zip(batches, again, strict=True) for task in one)
    pool = data.unlabelled()["alpha"]
    augment = ImageAugmentation()
    image = pool.read([0, 0])
    first, second = augment(0, image, "alpha", 4)
    assert not torch.equal(first, second)
    assert torch.equal(augment(0, image[1:], "alpha", 5)[0], second)
    assert not torch.equal(augment(1, image[1:], "alpha", 5)[0], second)
    assert not torch.equal(augment(0, image[1:], "gamma", 5)[0], second)
    # Other images to adapt on, as far as a fit that goes on is concerned; the same to test on.
    assert data.fingerprint != tiny.data().fingerprint
    assert data.identity("test") == tiny.data().identity("test")


def test_words_are_left_out_and_marks_stay() -> None:
    start, end = 101, 102
    one = torch.tensor(
        [start, *range(5, 45), end, *(SEGMENT + i for i in range(50, 90)), SEGMENT + end, PADDING, PADDING]
    )
    found = WordDropout(share=0.5).change(one[None], [generator()])[0]
    ids = (found % SEGMENT).tolist()
    assert (ids[0], ids[-1], ids.count(end)) == (start, end, 2)
    assert PADDING not in found
    assert 20 < len(found) < 63
    kept = [value for value in one.tolist() if value in set(found.tolist())]
    assert kept == found.tolist()  # in their order
    assert torch.equal(WordDropout(share=0.0).change(one[None], [generator()])[0], one[:-2])
    batch = torch.nn.utils.rnn.pad_sequence([one[:-2], torch.tensor([start, 7, end])], True, PADDING)
    joined = WordDropout(share=0.9)(0, batch, "a", 0)
    assert joined.shape[1] < 60
    assert (joined[1][joined[1] != PADDING][[0, -1]]).tolist() == [start, end]


def test_a_resumed_fit_sees_the_same_images(
    make_model: Callable[..., MergedModel], make_trainer: Callable[..., Trainer], tiny: Any, tmp_path: Path
) -> None:
    def fit(steps: int, **options: Any) -> tuple[Trainer, Tensor]:
        model = make_model(stages=[Stage("layer", 6, 0.01)])
        trainer = make_trainer(max_steps=steps)
        trainer.fit(model, datamodule=tiny.data(augment=ImageAugmentation()), **options)
        return trainer, model.coefficients().detach()

    whole = fit(6)[1]
    fit(4)[0].save_checkpoint(tmp_path / "four.ckpt")
    assert torch.equal(fit(6, ckpt_path=tmp_path / "four.ckpt", weights_only=True)[1], whole)
    plain = make_model(stages=[Stage("layer", 6, 0.01)])
    make_trainer(max_steps=6).fit(plain, datamodule=tiny.data())
    assert not torch.equal(plain.coefficients(), whole)


def test_texts(texts: Any) -> None:
    options = {"adapt": texts.tables("adapt"), "tokenizer": texts.folder("bert"), "batch_size": 3}
    plain = next(iter(TextFiles(**options).train_dataloader()))
    fewer = next(iter(TextFiles(**options, augment=WordDropout(share=0.4)).train_dataloader()))
    assert sum(int((x >= 0).sum()) for x in fewer.values()) < sum(int((x >= 0).sum()) for x in plain.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageAugmentation(degrees=181.0), "degrees=181"),
        (lambda: ImageAugmentation(scale=1.0), "scale=1.0: expected a share"),
        (lambda: ImageAugmentation(shift=-0.1), r"shift=-0\.1"),
        (lambda: ImageAugmentation(brightness=float("nan")), "brightness=nan"),
        (lambda: WordDropout(share=1.0), r"share=1\.0"),
    ],
)
def test_options_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        make()


def test_data_that_cannot_be_changed(tiny: Any) -> None:
    with pytest.raises(MergeError, match="spare names a task 'delta'"):
        tiny.data(augment=ImageAugmentation(spare=["delta"])).train_dataloader()
    with pytest.raises(MergeError, match="online stream"):
        tiny.data(augment=ImageAugmentation(), protocol="online").train_dataloader()
