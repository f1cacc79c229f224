"""transformers' CLIPs."""

from lit_merge.checkpoints.families.family import Place, TranslatedClip

# Of a block: each has a weight and a bias.
LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCKS = {
    "transformer.resblocks.#": "vision_model.encoder.layers.#",
    "text.transformer.resblocks.#": "text_model.encoder.layers.#",
}
NORMS = {
    "ln_pre": "vision_model.pre_layrnorm",  # their spelling
    "ln_post": "vision_model.post_layernorm",
    "text.ln_final": "text_model.final_layer_norm",
}
SINGLE = {
    "class_embedding": Place(("vision_model.embeddings.class_embedding",)),
    "positional_embedding": Place(("vision_model.embeddings.position_embedding.weight",)),
    "conv1.weight": Place(("vision_model.embeddings.patch_embedding.weight",)),
    "proj": Place(("visual_projection.weight",), transposed=True),
    "text.token_embedding.weight": Place(("text_model.embeddings.token_embedding.weight",)),
    "text.positional_embedding": Place(("text_model.embeddings.position_embedding.weight",)),
    "text.text_projection": Place(("text_projection.weight",), transposed=True),
    "logit_scale": Place(("logit_scale",)),
}


def _places() -> dict[str, Place]:
    found = dict(SINGLE)
    for kind in ("weight", "bias"):
        found |= {f"{ours}.{kind}": Place((f"{theirs}.{kind}",)) for ours, theirs in NORMS.items()}
        for block, theirs in BLOCKS.items():
            found |= {f"{block}.{own}.{kind}": Place((f"{theirs}.{other}.{kind}",)) for own, other in LAYERS.items()}
            # open_clip's attention has one matrix where theirs has three.
            parts = tuple(f"{theirs}.self_attn.{one}_proj.{kind}" for one in "qkv")
            found[f"{block}.attn.in_proj_{kind}"] = Place(parts)
    return found


HUGGING_FACE = TranslatedClip(
    name="hugging_face",
    title="Hugging Face",
    roles={"buffer": r"position_ids$"},
    image="vision_model.",
    signature=("embeddings.class_embedding", "embeddings.patch_embedding.weight", "pre_layrnorm.weight"),
    signs=(".self_attn.", "encoder.layers."),
    may_lack=("proj",),  # CLIPVisionModel ends before it
    places=_places(),
)
