"""open_clip's CLIPs, whose names are the canonical ones."""

from lit_merge.checkpoints.families.family import ClipFamily

OPEN_CLIP = ClipFamily(
    name="open_clip",
    title="open_clip",
    roles={
        "block": r"attn|mlp",
        "text_projection": r"text_projection$",
        "vocabulary": r"\btoken_embedding\b",
        "buffer": r"(^|\.)(attn_mask|input_resolution|context_length|vocab_size)$",
    },
    # And those of the task-arithmetic and TALL-masks releases, whose models are open_clip's.
    files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "finetuned.pt", "nonlinear_finetuned.pt"),
    image="visual.",
    text="text.",  # of CustomTextCLIP
    image_alone=True,
    signature=("class_embedding", "conv1.weight"),
    # Towers of other kinds (ResNet, timm) have no name in common.
    whole_signature="logit_scale",
    signs=(".resblocks.", ".in_proj_"),
)
