"""The tasks: whose characters, in which visual domain, and how long each expert is fine-tuned."""

from dataclasses import dataclass, field

from zoo.alphabets import ALPHABETS, rows


@dataclass(frozen=True)
class Task:
    """One task of the suite.

    `effects` are strengths at severity 1 of the effects in `domains.py`; the severity is set so that the base has
    `base_accuracy` on validation images. Real digits have no effects and are taken as they are.
    """

    script: str
    domain: str
    steps: int
    effects: dict[str, float] = field(default_factory=dict)
    background: str = "dark"
    base_accuracy: float = 0.45

    @property
    def real(self) -> bool:
        """Whether the images are real digits."""
        return not self.effects

    @property
    def classes(self) -> str:
        """The task's characters, in the order of its labels."""
        return ALPHABETS[self.script]

    @property
    def rows(self) -> slice:
        """Where the task's classes stand in the class table."""
        return rows(self.script)


_EIGHT = {
    "mnist": Task("digits", "real handwriting (MNIST)", 150),
    "signs": Task(
        "digits",
        "printed digits between neighbours, swirled, in uneven light",
        250,
        {"clutter": 1.0, "small": 0.15, "swirl": -1.2, "light": 0.5},
        "any",
    ),
    "latin": Task("latin", "rotated, on texture", 200, {"rotate": 60.0, "texture": 0.25}),
    "greek": Task(
        "greek", "squashed, on texture, partly outlined", 400, {"squash": -0.9, "texture": 0.4, "outline": 0.2}
    ),
    "hiragana": Task("hiragana", "swirled and faded, dark on light", 300, {"swirl": 2.0, "fade": 0.4}, "light"),
    "hangul": Task("hangul", "sheared and wavy, either polarity", 500, {"shear": 1.0, "wave": 0.1}, "any"),
    "thai": Task("thai", "wavy and stretched, dark on light", 300, {"wave": 0.2, "squash": 0.5}, "light"),
    "georgian": Task("georgian", "rotated the other way, with a ghost", 250, {"rotate": -60.0, "ghost": 0.5}, "light"),
}
_TO_FOURTEEN = {
    "optdigits": Task("digits", "real handwriting (UCI optical digits)", 120),
    "hebrew": Task(
        "hebrew", "in perspective, outlined, wavy", 250, {"persp": 0.7, "outline": 0.9, "wave": -0.1}, "dark"
    ),
    "arabic": Task("arabic", "cut by bars and rotated", 250, {"cut": 1.0, "rotate": 40.0}, "light"),
    "cyrillic": Task("cyrillic", "wavy and faded, either polarity", 300, {"wave": 0.2, "fade": 0.6}, "any"),
    "katakana": Task("katakana", "rotated, with a strong ghost", 300, {"ghost": 0.9, "rotate": 45.0}),
    "devanagari": Task("devanagari", "swirled the other way", 300, {"swirl": -1.8}),
}
_TO_TWENTY = {
    "kanji": Task("kanji", "stretched, in uneven light", 300, {"squash": 0.8, "light": 0.8}, "any"),
    "ethiopic": Task("ethiopic", "sheared the other way, faded", 300, {"shear": -0.9, "fade": 0.5}),
    "khmer": Task("khmer", "outlined, on texture", 300, {"outline": 1.0, "texture": 0.2}),
    "telugu": Task("telugu", "wavy, in uneven light", 300, {"wave": -0.2, "light": 0.8}),
    "malayalam": Task("malayalam", "in perspective and rotated", 300, {"persp": -0.7, "rotate": 35.0}, "light"),
    "armenian": Task("armenian", "rotated and noisy", 250, {"rotate": 50.0, "noise": 0.1}, "any"),
}
TASKS = {**_EIGHT, **_TO_FOURTEEN, **_TO_TWENTY}
SUITES = {count: tuple(TASKS)[:count] for count in (8, 14, 20)}
