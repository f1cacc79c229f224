"""Which weights are decomposed."""

import pytest

from lit_merge import MergeError
from lit_merge.experts.matrices import select_matrices

SHAPES = {
    "conv1.weight": (8, 3, 4, 4),
    "class_embedding": (8,),
    "positional_embedding": (5, 8),
    "transformer.resblocks.0.ln_1.weight": (8,),
    "transformer.resblocks.0.attn.in_proj_weight": (24, 8),
    "transformer.resblocks.0.attn.in_proj_bias": (24,),
    "transformer.resblocks.0.attn.out_proj.weight": (8, 8),
    "transformer.resblocks.0.mlp.c_fc.weight": (32, 8),
    "transformer.resblocks.0.mlp.c_proj.weight": (8, 32),
    "proj": (8, 4),
    "text_projection": (8, 4),
    "token_embedding.weight": (1000, 8),
}
BLOCK = {name for name, shape in SHAPES.items() if "resblocks" in name and len(shape) == 2}


def test_block() -> None:
    assert select_matrices(SHAPES, "block") == BLOCK


def test_all() -> None:
    assert select_matrices(SHAPES, "all") == BLOCK | {"proj", "positional_embedding"}


def test_patterns() -> None:
    assert select_matrices(SHAPES, ["*.mlp.*", "token_*"]) == {
        "transformer.resblocks.0.mlp.c_fc.weight",
        "transformer.resblocks.0.mlp.c_proj.weight",
        "token_embedding.weight",
    }


@pytest.mark.parametrize(
    ("matrices", "said"), [(["*.nothing"], "'*.nothing'"), ("blocks", "expected block, all"), (["conv1.*"], "2-D")]
)
def test_mistakes(matrices: str | list[str], said: str) -> None:
    with pytest.raises(MergeError) as error:
        select_matrices(SHAPES, matrices)
    assert said in str(error.value)


def test_nothing_to_select_names_what_there_is() -> None:
    with pytest.raises(MergeError, match=r"layer\.weight"):
        select_matrices({"layer.weight": (4, 4)}, "block")
