"""One definition of the options of adaptation: what is added there is found in Python, YAML, plans and checkpoints."""

import inspect
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml

import lit_merge
from lit_merge import Experts, MergedModel, Stage, TaskBank, adapt, build_bank
from lit_merge.adaptation import teachers
from lit_merge.adaptation.options import Adaptation
from lit_merge.adaptation.stages import TWO_STAGES
from lit_merge.adaptation.teachers import suiting
from lit_merge.objectives import Entropy, ExpertAgreement


def test_signatures_list_every_option(tiny: Any) -> None:
    options = list(inspect.signature(Adaptation).parameters)
    assert list(inspect.signature(MergedModel).parameters) == ["bank", "network", *options, "experts"]
    assert set(options) < set(inspect.signature(adapt).parameters)
    bank = build_bank(tiny.experts, method=lit_merge.CART(0.5))
    model = MergedModel(bank, tiny.encoder(), Entropy(per_log_classes=True), [Stage("task", 3)], (0.0, 1.0))
    assert model.options == Adaptation(Entropy(per_log_classes=True), (Stage("task", 3),), bounds=(0.0, 1.0))
    with pytest.raises(TypeError, match="sharpnes"):
        MergedModel(bank, tiny.encoder(), sharpnes=0.1)


def test_experts_teach_by_default_where_they_can(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experts, network = Experts(tiny.experts, tiny.base), tiny.encoder()
    cart = build_bank(experts, method=lit_merge.CART(0.5))

    def stages(bank: TaskBank = cart, **options: Any) -> Any:
        return MergedModel(bank, network, **options).options.stages

    tied, directions = stages(experts=experts)
    assert (tied, directions.granularity) == (TWO_STAGES[0], "direction")
    assert isinstance(directions.objective, ExpertAgreement)
    # Nobody teaches; they are not wanted; another objective is; deltas have no directions.
    assert stages() == TWO_STAGES
    assert stages(experts=experts, teachers=False) == TWO_STAGES
    assert stages(experts=experts, objective=Entropy()) == TWO_STAGES
    assert stages(build_bank(experts, method=lit_merge.TaskArithmetic()), experts=experts) == TWO_STAGES
    assert stages(experts=experts, stages=[Stage("task", 3)]) == (Stage("task", 3),)
    assert suiting({"teachers": True}, tiny.data(protocol="online")) == {"teachers": False}
    # gamma has 13 inputs to adapt on.
    assert suiting({"bounds": None}, tiny.data()) == {"bounds": None, "teachers": False}
    monkeypatch.setattr(teachers, "FEWEST", 13)
    for options in ({"bounds": None}, {"stages": [Stage("task", 3)]}, {"teachers": False}):
        assert suiting(options, tiny.data()) == options
    # Data to test on alone.
    only = lit_merge.ImageFolders(test=tiny.test_folders, image_size=16)
    assert suiting({}, only) == {}


def with_another_option(tiny: Any, place: Path) -> None:
    """Uses a copy of the package, in `place`, whose options have a field `patience`."""
    import torch

    import lit_merge
    from lit_merge.adaptation.fit_plan import fit_plan
    from lit_merge.adaptation.trainer import Trainer
    from lit_merge.cli.analyze import parser
    from lit_merge.cli.main import main

    assert Path(lit_merge.__file__).is_relative_to(place)
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    network = {"class_path": "OpenClipImageEncoder", "init_args": {"config": tiny.network, "heads": tiny.heads}}
    content = {
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "enable_checkpointing": True},
        "model": {"experts": tiny.experts, "network": network, "stages": [{"steps": 1}], "patience": 0.75}
        | {"method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5}}},
        "data": {"class_path": "Suite", "init_args": {"path": tiny.suite, "batch_size": 4}},
    }
    checkpoints = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(place / "kept"), "filename": "last"}}
    content["trainer"]["callbacks"] = [checkpoints]
    (place / "config.yaml").write_text(yaml.safe_dump(content))
    assert parser().parse_args(["--config", str(place / "config.yaml")]).model.patience == 0.75
    assert main(["fit", "--config", str(place / "config.yaml"), "--run", str(place / "run")]) == 0
    assert yaml.safe_load((place / "run" / "config.yaml").read_text())["model"]["patience"] == 0.75
    assert torch.load(place / "kept" / "last.ckpt", weights_only=True)["lit_merge"]["options"]["patience"] == 0.75
    bank = lit_merge.build_bank(tiny.experts, method=lit_merge.CART(0.5))
    data = lit_merge.Suite(tiny.suite, batch_size=4)
    encoder = lit_merge.OpenClipImageEncoder(tiny.network, tiny.heads)
    model = lit_merge.MergedModel(bank, encoder, patience=0.25)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert fit_plan(trainer, model, bank, data)["patience"] == 0.25
    assert inspect.signature(lit_merge.adapt).parameters["patience"].default == 0.5
    stages = [lit_merge.Stage("layer", 1)]
    lit_merge.adapt(bank, encoder, data, stages=stages, patience=0.1, guard=False, accelerator="cpu", progress=False)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_a_new_option_is_one_line(tiny: Any, tmp_path: Path) -> None:
    shutil.copytree(Path(lit_merge.__file__).parent, tmp_path / "lit_merge")
    file = tmp_path / "lit_merge" / "adaptation" / "options.py"
    text = file.read_text()
    last = "    compile: bool = False\n"
    assert text.count(last) == 1
    help_text = ("\n    Raises:\n", "        patience: of whom.\n\n    Raises:\n", 1)
    file.write_text(text.replace(last, f"{last}    patience: float = 0.5\n").replace(*help_text))
    # A fork, as torch and Lightning are imported already.
    if not (child := os.fork()):
        code = 1
        try:
            said = os.open(tmp_path / "said.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            for name in [name for name in sys.modules if name.split(".")[0] == "lit_merge"]:
                del sys.modules[name]
            # The type checks of tests remember the classes of the package itself by their names.
            sys.meta_path[:] = [one for one in sys.meta_path if "jaxtyping" not in type(one).__module__]
            sys.path.insert(0, str(tmp_path))
            with_another_option(tiny, tmp_path)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = (tmp_path / "said.txt").read_text()
    assert code == 0, said
    assert "--model.patience" in said
    assert "of whom" in said
