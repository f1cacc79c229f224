"""Families: models that name their weights alike. A family is one object in one file, and one line in this list.

What a family's names mean is asked here and nowhere else; docs/add_a_network.md adds one.
"""

import re

from lit_merge.checkpoints.families.family import ClipFamily, Family, Role
from lit_merge.checkpoints.families.hugging_face import HUGGING_FACE
from lit_merge.checkpoints.families.open_clip import OPEN_CLIP
from lit_merge.checkpoints.families.openai import OPENAI
from lit_merge.checkpoints.families.plain import PLAIN_FAMILY

FAMILIES: list[Family] = [
    PLAIN_FAMILY,
    OPEN_CLIP,
    OPENAI,
    HUGGING_FACE,
]


def clip_families() -> list[ClipFamily]:
    """Families that name the weights of a CLIP, each in a way of its own."""
    return [family for family in FAMILIES if isinstance(family, ClipFamily)]


def has_role(role: Role, name: str) -> bool:
    """Whether weights of this name have a role in any family: most names do not tell which family they are of."""
    patterns = (family.roles.get(role) for family in FAMILIES)
    return any(pattern and re.search(pattern, name, re.IGNORECASE) for pattern in patterns)
