"""Ways to teach that are not in the package, for study_adaptation.py: what papers do besides comparing predictions."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from lit_merge import ImageAugmentation, MergedModel, RegMean, TaskBank, build_bank
from lit_merge.experts.experts import Experts
from lit_merge.objectives import InformationMaximisation, divergence


class OfLayers(MergedModel):
    """Predictions, and next to them what every block answers: its squared error, relative to the expert's (as
    ProDistill compares layers, arXiv 2502.12706, but all blocks at once)."""

    predictions, layers = 1.0, 1.0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        if self.stage_index == 0:
            return super().training_step(batch, batch_idx)
        weights, losses = self.merged_weights(), []
        for task, inputs in batch.items():
            logits, ours = self._look(weights, task, inputs)
            with torch.no_grad():
                expected, theirs = self._look(self.expert_weights(task), task, inputs)
            apart = [((a - b) ** 2).sum() / (b**2).sum() for a, b in zip(ours, theirs, strict=True)]
            losses.append(self.predictions * divergence(logits, expected) + self.layers * torch.stack(apart).mean())
        return {"loss": torch.stack(losses).mean()}

    def _look(self, weights: Any, task: str, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and what every block answers."""
        found: list[Tensor] = []
        blocks = cast(Any, self.network.encoder).transformer.resblocks
        hooks = [block.register_forward_hook(lambda *call: found.append(call[-1])) for block in blocks]
        try:
            return self.network(weights, {task: inputs})[task], found
        finally:
            for hook in hooks:
                hook.remove()


class OfLayersAlone(OfLayers):
    """What blocks answer, and nothing else: no head takes part."""

    predictions = 0.0


class OfMixedInputs(MergedModel):
    """Every image is mixed with one of the next task, up to half of it, for the expert and the merge alike (mixup,
    arXiv 1710.09412)."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        if self.stage_index == 0:
            return super().training_step(batch, batch_idx)
        others = list(batch.values())
        mixed = {}
        for (task, inputs), other in zip(batch.items(), others[1:] + others[:1], strict=True):
            share = torch.rand(len(inputs), 1, 1) / 2
            mixed[task] = ((1 - share) * inputs + share * other).round().to(inputs.dtype)
        return super().training_step(mixed, batch_idx)


class Averaged(MergedModel):
    """Ends at the mean of the coefficients after each of the last hundred steps."""

    def on_train_batch_end(self, *args: Any) -> None:
        left = self.total_steps - self.global_step
        if left >= 100:
            return
        now = self.coefficients.offset.detach()
        self.mean: Tensor = now.clone() if left == 99 else self.mean + (now - self.mean) / (100 - left)
        if left == 0:
            now.copy_(self.mean)


class OfChangedImages(MergedModel):
    """Without teachers: information maximisation, and predictions of changed images that are those of unchanged ones
    (FixMatch's consistency, arXiv 2001.07685, without its threshold)."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        if self.stage_index == 0:
            return super().training_step(batch, batch_idx)
        change, weights = ImageAugmentation(), self.merged_weights()
        changed = {task: change(0, x, task, self.global_step * len(x)) for task, x in batch.items()}
        plain, other = self.network(weights, batch), self.network(weights, changed)
        losses = [InformationMaximisation()(z) + divergence(other[task], z.detach()) for task, z in plain.items()]
        return {"loss": torch.stack(losses).mean()}


def from_regmean(bank: TaskBank, experts: Experts, moments: Any, coefficient: float = 4.8) -> TaskBank:
    """The bank with another origin and this coefficient (where entropy leads CART on zoo:8), so that its merge is
    RegMean's."""
    bank = replace(bank, coefficients=torch.full_like(bank.coefficients, coefficient))
    wanted, merged, tensors = build_bank(experts, method=RegMean(moments=moments)).merge(), bank.merge(), bank.tensors()
    moved = {f"origin/{name}": tensors[f"origin/{name}"] + wanted[name] - merged[name] for name in merged}
    return bank.with_tensors(dict(tensors) | moved)
