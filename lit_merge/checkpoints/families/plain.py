"""All other models, by the names that transformers gives to the weights of language models."""

from lit_merge.checkpoints.families.family import Family

PLAIN_FAMILY = Family(
    name="plain",
    title="transformers",
    roles={
        # BERT, RoBERTa, DistilBERT, Llama, GPT-2 and their kin.
        "block": r"attn|attention|mlp|ffn|moe|expert|intermediate|output|fc\d|c_fc|c_proj",
        # BERT, GPT-2, Llama, T5, XLNet, Mamba and their kin.
        "vocabulary": (
            r"\b((token|word|tok)_embeddings?|embed_tokens(_per_layer)?|tokens_embed|wte|embed_out|embed_in|lm_loss"
            r"|(generator_)?lm_head(?!\.(dense|layer_?norm|transform))|vocab_projector|final_logits_bias|pred_layer\.proj"
            r"|predictions\.(decoder|bias)|backbone\.embeddings?(?=\.weight$))\b|(^|\bmodel\.)shared\.weight$"
        ),
        "token_columns": r"final_logits_bias$",  # BART
        "output_layer": r"(lm_head|embed_out)\b",
        "segments": r"token_type_embeddings",  # BERT
        # Tables of something else, and what has one entry for every feature.
        "no_tokens": r"position|wpe|token_type|segment|norm|ln_",
        "buffer": r"position_ids$",
    },
    # In the order of transformers.
    files=(
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
    # What layer normalisation was called in the first BERT, whose files still are.
    old_names={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
