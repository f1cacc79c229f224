"""OpenAI's release of CLIP: open_clip's names, with `visual.` before an image tower that stands alone too."""

from dataclasses import replace

from lit_merge.checkpoints.families.open_clip import OPEN_CLIP

OPENAI = replace(OPEN_CLIP, name="openai", title="OpenAI", image_alone=False, found_as="open_clip")
