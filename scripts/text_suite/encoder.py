"""The sentence encoder: token ids in, one unit vector per text out. What is not trained is no weight of it."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

PADDING = 0
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


class FrozenEmbedding(nn.Module):
    """A table that no expert changes: a buffer that is not among the weights, so that experts stay small."""

    table: Tensor

    def __init__(self, table: Float[Tensor, "V d"]) -> None:
        super().__init__()
        self.register_buffer("table", table.float(), persistent=False)

    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... d"]:
        return F.embedding(ids, self.table)


class SentenceEncoder(nn.Module):
    """BERT without its embedding tables, the mean of its last hidden states over the real tokens, of norm 1.

    Args:
        config: of BertModel.
        tables: name → (V, d), the frozen embedding tables.
    """

    def __init__(self, config: dict[str, object], tables: dict[str, Tensor]) -> None:
        super().__init__()
        self.bert = BertModel(BertConfig(**config), add_pooling_layer=False)
        for name in TABLES:
            setattr(self.bert.embeddings, name, FrozenEmbedding(tables[name]))

    def forward(self, ids: Int[Tensor, "B S"]) -> Float[Tensor, "B d"]:
        ids = trimmed(ids).long()
        mask = ids != PADDING
        hidden = self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        counted = mask[..., None].float()
        return F.normalize((hidden * counted).sum(1) / counted.sum(1), dim=1)


def trimmed(ids: Int[Tensor, "B S"]) -> Int[Tensor, "B s"]:
    """Without the columns at the end that hold padding only."""
    return ids[:, : int((ids != PADDING).any(0).sum())]


def real_tokens(ids: Int[Tensor, "B S"]) -> Bool[Tensor, "B s"]:
    """Which tokens of `trimmed(ids)` are no padding."""
    return trimmed(ids) != PADDING


def read_encoder(folder: Path) -> SentenceEncoder:
    """The pretrained encoder of a folder with network.json, embeddings.safetensors and base.safetensors."""
    encoder = SentenceEncoder(
        json.loads((folder / "network.json").read_text("utf-8")), load_file(folder / "embeddings.safetensors")
    )
    encoder.load_state_dict({name: weight.float() for name, weight in load_file(folder / "base.safetensors").items()})
    return encoder.eval()


def write_base(package: Path, folder: Path) -> None:
    """Takes a checkpoint of BertModel apart: network.json, embeddings.safetensors and base.safetensors, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((package / "config.json").read_text("utf-8"))
    kept = {name: value for name, value in config.items() if not name.startswith("_") and "version" not in name}
    (folder / "network.json").write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    weights = {name: w.half() for name, w in load_file(package / "model.safetensors").items() if w.is_floating_point()}
    tables = {name: weights[f"embeddings.{name}.weight"] for name in TABLES}
    save_file(tables, folder / "embeddings.safetensors")
    names = SentenceEncoder(kept, tables).state_dict()
    save_file({name: weights[name.removeprefix("bert.")] for name in names}, folder / "base.safetensors")


def fast_products(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it, twice as fast; elsewhere it would be many times as slow."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    known = device.type != "cpu" or any(getattr(torch.cpu, name, bool)() for name in checks)
    return torch.autocast(device.type, torch.bfloat16, enabled=known)


@torch.no_grad()
def features(encoder: SentenceEncoder, ids: Int[Tensor, "N S"], size: int = 100) -> Float[Tensor, "N d"]:
    """Of many texts, those of similar length together. See `fast_products`."""
    device = next(encoder.parameters()).device
    order = (ids != PADDING).sum(1).argsort()
    with fast_products(device):
        found = torch.cat([encoder(ids[some].to(device)).cpu() for some in order.split(size)])
    return found[order.argsort()]
