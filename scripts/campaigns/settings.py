"""Configurations: a changed YAML file against what PyYAML reads of it, written as JSON."""

import json

import yaml

from campaigns import forks, inputs, mutators
from campaigns.trees import difference, tree
from campaigns.trial import CLEAN, RIGHT, Campaign, Result, failed


class Settings(Campaign):
    """A changed configuration is refused in one line, or does what the plain values that it stands for do."""

    name = "settings"
    share = 1.0

    def trial(self, number: int) -> Result:
        work, draw = self.place.emptied(), self.draw(number)
        model = {"experts": inputs.experts(self.place.inputs), "base": str(self.place.inputs / "base.safetensors")}
        config = {"seed_everything": 3, "model": model | {"method": inputs.CART, "svd": "exact"}, "dtype": "float32"}
        path = work / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        about = mutators.mutate_lines(draw, path)
        text = path.read_bytes()
        arguments = ["merge", "--config", "config.yaml", "--output", "out.safetensors"]
        ended = forks.run(arguments, work)
        if ended.refused:
            wrong = difference(tree(work, ["out.safetensors", ".out.safetensors.unfinished"]), {})
            return failed(about, wrong) if wrong else Result(CLEAN, about)
        if ended.code:
            return failed(about, str(ended))
        found = tree(work, ["out.safetensors"])
        try:
            plain = json.dumps(yaml.safe_load(text))
        except (yaml.YAMLError, ValueError, TypeError) as error:
            return failed(about, f"PyYAML does not read it: {type(error).__name__}: {' '.join(str(error).split())}")
        (self.place.emptied() / "config.yaml").write_text(plain)
        judged = forks.run(arguments, work)
        if judged.code:
            return failed(about, f"done, but what PyYAML reads is not: {judged}")
        wrong = difference(found, tree(work, ["out.safetensors"]))
        return failed(about, wrong) if wrong else Result(RIGHT, about)
