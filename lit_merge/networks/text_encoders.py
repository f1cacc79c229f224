"""Text encoders of transformers as networks: BERT, RoBERTa, and any model of which it builds a classifier."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, cat, long, nn, ones
from torch.nn import functional as F

from lit_merge.checkpoints import Checkpoint, modernised, open_checkpoint
from lit_merge.errors import MergeError, check_choice
from lit_merge.networks.heads.classifiers import ClassifierHeads, Encoded, take_apart
from lit_merge.networks.heads.linear import load_heads
from lit_merge.networks.network import Network
from lit_merge.networks.transformers_models import build_classifier, checkpoint_blocks, read_configuration

PADDING = -1
"""Stands where a text has ended already."""
SEGMENT = 1 << 24
"""What is added to the id of every token in the second text of a pair."""
POSITIONS = ("position_embeddings", "embed_positions", "wpe")
"""What transformers' encoders call their table of positions."""
Pooling = Literal["cls", "mean", "pooler"]


class HuggingFaceTextEncoder(Network):
    """A text encoder with a frozen head for every task. Inputs are tokens (B, S): ids, -1 where a text has ended, and
    2²⁴ more in the second text of a pair, where the model tells it from the first.

    Any architecture will do of which transformers builds a sequence classifier. Weights go by the names in the experts'
    files, with or without what transformers puts before them (`bert.`).

    Args:
        config: folder with the config.json of the pretrained model or of any expert.
        heads: other heads than the classifiers of the experts that are merged: path of a safetensors file {task.weight,
            task.bias}, or {task} for cosines; or task → expert, whose classifier is taken.
        pooling: for heads of a file: the first token's last hidden state (`cls`), the mean of all tokens' (`mean`), or
            what the model's own pooler makes of the first (`pooler`). Classifiers pool by themselves.

    Raises:
        MergeError: no such configuration; heads that cannot be read or are of another width; pooling where classifiers
            do it, or none where nothing else does; a pooler that the model does not have.
    """

    def __init__(self, config: str, heads: str | dict[str, str] | None = None, pooling: Pooling | None = None) -> None:
        super().__init__()
        check_choice("pooling", pooling, Pooling)
        self.folder, self.pooling = config, pooling
        about = read_configuration(config)
        if about.model_type == "xlnet":
            raise MergeError(f"{config}: XLNet tells texts apart in a way of its own, which no network here has")
        model, encoder, self.prefix = take_apart(build_classifier(about, 2, config))
        self.encoder = encoder
        self.padding_id = getattr(about, "pad_token_id", None) or 0
        try:
            self.vocabulary = int(encoder.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        except (NotImplementedError, AttributeError) as error:
            raise MergeError(f"{config}: {type(encoder).__name__} reads no tokens of a vocabulary") from error
        self.positions = _positions(encoder)
        # Models without kinds of texts take them, too: GPT-2 adds the embedding of a token of that number.
        takes = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self.segments = takes and getattr(about, "type_vocab_size", 1) > 1
        if isinstance(heads, str):
            self.heads = load_heads(heads)
            self._pool_with(pooling)
        else:
            if pooling is not None:
                raise MergeError(f"pooling={pooling}: the experts' classifiers pool by themselves: leave it out")
            other, *_ = take_apart(build_classifier(about, 3, config))
            self.heads = ClassifierHeads(model, other, self.prefix)
            if heads is not None:
                self.heads.take({task: open_checkpoint(path) for task, path in heads.items()})
        self._buffers_only = {name for name, _ in encoder.named_buffers()} - encoder.state_dict().keys()
        self.freeze()

    def take_heads(self, experts: Mapping[str, Checkpoint]) -> None:
        if isinstance(self.heads, ClassifierHeads) and not self.heads.tasks:
            self.heads.take(experts)

    def strangers(self, names: Iterable[str]) -> list[str]:
        """Names of a file's weights that are not the encoder's: classifiers, heads of pretraining, and counters of old
        versions. A weight inside the encoder is never one, at any depth."""
        parts = {name for name, _ in (*self.encoder.named_children(), *self.encoder.named_parameters(recurse=False))}
        own = {name: self._own(name) for name in names}
        return [name for name, one in own.items() if one.partition(".")[0] not in parts or one in self._buffers_only]

    def of_encoder(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().of_encoder({self._own(name): value for name, value in weights.items()})

    def learns(self, weight: str) -> bool:
        return super().learns(self._own(weight))

    def check(self, weights: Mapping[str, tuple[int, ...]]) -> None:
        super().check({self._own(name): shape for name, shape in weights.items()})

    def join(self, parts: Sequence[Int[Tensor, "_ _"]]) -> Int[Tensor, "B S"]:
        longest = max(part.shape[1] for part in parts)
        return cat([F.pad(part, (0, longest - part.shape[1]), value=PADDING) for part in parts])

    def prepare(self, inputs: Int[Tensor, "B S"]) -> Int[Tensor, "B s"]:
        """Without the columns at the end that hold padding only.

        Raises:
            MergeError: more tokens than the model has positions, or a token that is not in its vocabulary.
        """
        found = trimmed(inputs)
        if self.positions is not None and found.shape[1] > self.positions:
            raise MergeError(
                f"a text has {found.shape[1]} tokens, the model takes {self.positions}: set the data's max_length"
            )
        highest = int((found.clamp_min(0) % SEGMENT).max())
        if highest >= self.vocabulary:
            raise MergeError(
                f"token {highest} is not in the encoder's vocabulary of {self.vocabulary} ({self.folder}): the data's "
                "tokenizer, which has more tokens than these, is another model's"
            )
        return found

    def token_mask(self, inputs: Int[Tensor, "B S"]) -> Bool[Tensor, "B s"]:
        return trimmed(inputs) != PADDING

    def encode(self, inputs: Int[Tensor, "B S"]) -> Any:
        tokens = self.prepare(inputs)
        mask = tokens != PADDING
        ids = (tokens % SEGMENT).long().masked_fill(~mask, self.padding_id)
        extra = {"token_type_ids": (mask & (tokens >= SEGMENT)).long()} if self.segments else {}
        return self._encoded(ids, mask, extra)

    def example_inputs(self) -> dict[str, Tensor]:
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if self.segments else [])]
        return {name: ones(2, 6, dtype=long) for name in names}

    def features_of(self, inputs: Mapping[str, Tensor]) -> Any:
        extra = {name: inputs[name] for name in ("token_type_ids",) if name in inputs}
        return self._encoded(inputs["input_ids"], inputs["attention_mask"] != 0, extra)

    def _encoded(self, ids: Int[Tensor, "B s"], mask: Bool[Tensor, "B s"], extra: Mapping[str, Tensor]) -> Any:
        shifted = getattr(self.encoder, "_shift_right", None)
        if shifted is not None:
            # T5 leaves this to its classifier.
            extra = {**extra, "decoder_input_ids": shifted(ids)}
        outputs = self.encoder(input_ids=ids, attention_mask=mask.long(), **extra)
        return Encoded(outputs, ids, mask) if self.pooling is None else self._pooled(outputs, mask)

    def checkpoint_gradients(self) -> None:
        if not checkpoint_blocks(self.encoder):
            super().checkpoint_gradients()

    def _own(self, name: str) -> str:
        """The encoder's own name of a weight of the files."""
        return modernised(name).removeprefix(f"{self.prefix}.")

    def _pool_with(self, pooling: Pooling | None) -> None:
        if pooling is None:
            raise MergeError(
                "heads from a file need features: set pooling to cls, mean or pooler, as they were trained"
            )
        pooler = getattr(self.encoder, "pooler", None)
        if pooling == "pooler" and pooler is None:
            raise MergeError(f"pooling=pooler: the model of {self.folder} has no pooler: take cls or mean")
        if pooling != "pooler" and isinstance(pooler, nn.Module):
            # It would ask for weights that nothing uses.
            self.encoder.pooler = None  # type: ignore[assignment]

    def _pooled(self, outputs: Any, mask: Bool[Tensor, "B s"]) -> Float[Tensor, "B d"]:
        if self.pooling == "pooler":
            return outputs.pooler_output
        hidden = outputs.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        counted = mask[..., None].to(hidden.dtype)
        return (hidden * counted).sum(1) / counted.sum(1)


def trimmed(tokens: Int[Tensor, "B S"]) -> Int[Tensor, "B s"]:
    """Without the columns at the end that hold padding only."""
    return tokens[:, : max(1, int((tokens != PADDING).sum(1).max()))]


def _positions(encoder: nn.Module) -> int | None:
    """Number of tokens for which there is a position; None where positions are no table."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            # RoBERTa counts from behind its padding token, BART and OPT from 2.
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - int(getattr(module, "offset", before))
    return None
