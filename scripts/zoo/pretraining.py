"""Pretrains the base: every class of every script, mild effects, one class table trained along with the encoder."""

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from zoo.alphabets import CLASSES
from zoo.domains import images, mild
from zoo.examples import Batch, Batches, all_classes
from zoo.masters import Masters
from zoo.network import NETWORK, accuracy, encoder, logits, pixels
from zoo.problem import Problem
from zoo.stopping import StopPoint
from zoo.training import Deadline, clip, trainer, warmed_cosine

# An epoch is a stretch of steps with a checkpoint at its end, so that a kill costs a minute at most.
_EPOCHS, _STEPS = 13, 200
_BATCH = 256
_MUON_RATE, _ADAM_RATE, _WARMUP = 4e-3, 2e-3, 100
_WATCHED = 1500


class Pretraining(L.LightningModule):
    """The encoder and the class table (628, 128), under Muon (the blocks' matrices) and AdamW (everything else)."""

    def __init__(self, masters: Masters, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = encoder()
        self.table = nn.Parameter(torch.randn(CLASSES, NETWORK["embed_dim"]))
        self._draw = all_classes(masters, "training", _BATCH)
        self._seed = seed
        glyphs, labels, weights = masters.everything("validation")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.multinomial(weights, _WATCHED, replacement=True, generator=generator)
        self._watched = images(glyphs[chosen], mild(_WATCHED, generator), generator), labels[chosen]

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of one epoch: seed and epoch say which, so that a resumed run sees what an unbroken one does."""
        return DataLoader(Batches(self._draw, _STEPS, 1000 * self._seed + self.current_epoch), batch_size=None)

    def configure_optimizers(self) -> list[Optimizer]:
        """Muon and AdamW; `training_step` sets the rates."""
        weights = dict(self.network.named_parameters())
        matrices = {name for name, weight in weights.items() if "resblocks" in name and weight.ndim == 2}
        muon = torch.optim.Muon(
            [weights[name] for name in weights if name in matrices],
            lr=_MUON_RATE,
            weight_decay=0.05,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        rest = [weights[name] for name in weights if name not in matrices]
        adam = torch.optim.AdamW([*rest, self.table], lr=_ADAM_RATE, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
        return [muon, adam]

    def training_step(self, batch: Batch, index: int) -> None:
        """One step of both optimisers on images (B, 32, 32) and table rows (B,)."""
        pictures, labels = batch
        share = warmed_cosine(self.current_epoch * _STEPS + index, _EPOCHS * _STEPS, _WARMUP)
        loss = F.cross_entropy(logits(self.network(pixels(pictures)), F.normalize(self.table, dim=1)), labels)
        optimizers = self.optimizers()
        for optimizer, peak in zip(optimizers, (_MUON_RATE, _ADAM_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.zero_grad()
        self.manual_backward(loss)
        clip(self.network)
        for optimizer in optimizers:
            optimizer.step()
        self.log("loss", loss, prog_bar=True)

    def class_table(self) -> Tensor:
        """The unit rows (628, 128) of the table."""
        return F.normalize(self.table.detach(), dim=1)

    def on_train_epoch_end(self) -> None:
        """Says how the base does on fonts that it is not trained on."""
        share = accuracy(self.network, self.class_table(), *self._watched)
        print(f"base: step {(self.current_epoch + 1) * _STEPS}, accuracy on validation fonts {share:.3f}", flush=True)


def pretrain(masters: Masters, folder: Path, seed: int, stop: StopPoint) -> None:
    """Trains the base, or goes on with it, and writes `base.safetensors` (float16) and `table.safetensors`."""
    if not hasattr(torch.optim, "Muon"):
        raise Problem(f"torch.optim.Muon is missing from torch {torch.__version__}: install torch>=2.9")
    L.seed_everything(seed, verbose=False)
    module = Pretraining(masters, seed)
    keeper = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    run = trainer(
        max_epochs=_EPOCHS,
        limit_train_batches=_STEPS,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[keeper, Deadline(stop)],
    )
    checkpoint = folder / "last.ckpt"
    run.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=False)
    if run.current_epoch < _EPOCHS:
        stop.now()
    write_weights(folder, module.network.state_dict(), module.class_table())


def write_weights(folder: Path, base: dict[str, Tensor], table: Tensor) -> None:
    """The base as it is shipped; the table goes first, so that a base is there only with its table."""
    for name, tensors in (
        ("table", {"table": table.contiguous()}),
        ("base", {name: weight.half().contiguous() for name, weight in base.items()}),
    ):
        save_file(tensors, folder / f".{name}.part")
        (folder / f".{name}.part").replace(folder / f"{name}.safetensors")


def read_base(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """The base's weights, float16 as shipped, and the class table (628, 128)."""
    return load_file(folder / "base.safetensors"), load_file(folder / "table.safetensors")["table"]
