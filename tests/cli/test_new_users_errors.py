"""Fifty mistakes of a first day: each ends with one line that says what to do, and nothing is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import CART, ImageFolders, MergeError, WeightAveraging, build_bank, evaluate, merge_files
from lit_merge.cli.main import main

FILES = {
    "list.yaml": "model:\n  method: CART\n  experts: [a.safetensors, b.safetensors]\n",
    "flat.yaml": "model:\n  method: CART\n  rank_ratio: 0.1\n",
    "tab.yaml": "model:\n\tmethod: CART\n",
    "comma.yaml": "model:\n  method:\n    class_path: CART\n    init_args: {scaling: '0,3'}\n",
    "empty.yaml": "trainer:\n  max_steps:\n",
    "class.yaml": "model:\n  method: {class: CART}\n",
    "top.yaml": "experts: {a: b}\n",
    "text.yaml": "just some words\n",
    "notes.txt": "hi\n",
    "broken.safetensors": "abc",
}
CASES = [
    ("mereg", "no verb 'mereg'; the nearest is merge"),
    ("merge", "merge needs --output, the place to write to"),
    ("merge --output m", "nothing to merge: give --model.experts and --model.method, or --model.bank"),
    ("MERGE", "nothing to merge: give --model.experts and --model.method, or --model.bank"),
    ("MERGE --model.method DARE", "there is no MergeMethod 'DARE'; there are CART, ConsensusTA, ESM,"),
    ("MERGE --model.method cart", "there is no MergeMethod 'cart'; the nearest is CART;"),
    ("MERGE --model.method TiesMerging", "the nearest is TIES; there are CART"),
    ("MERGE --model.method CART()", "model.method: write CART alone; its options are --model.method.OPTION"),
    ("MERGE --model.method lit_merge.CART2", "model.method: expected MergeMethod, got lit_merge.CART2"),
    ("CART --model.method.scaling 0,3", "expected a number, entropy or self_consistent, got 0,3: write 0.3"),
    ("CART --model.method.scaling .nan", "model.method.scaling=nan: expected a finite number"),
    ("CART --model.method.rank 0.1", "CART has no option 'rank'; the nearest is rank_ratio; it has rank_ratio,"),
    ("CART --model.method.rank_ratio 8", "rank_ratio=8.0 is outside (0, 1]: 0.08 keeps 8 %"),
    ("CART --model.method.rank_ratio 8%", "expected a number, got 8%: write 0.08"),
    ("CART --rank_ratio 0.1", "no option 'rank_ratio'; it is of CART, ESM, TSVCompress, …: --model.method.rank_ratio"),
    ("CART --method TIES", "no option 'method'; it is --model.method; in a file, method stands under model"),
    ("CART --model.experts broken.safetensors", "name the task of each expert, as --model.experts.broken broken.s"),
    ("CART --model.experts nowhere", "nowhere: no such folder of experts"),
    ("CART --model.experts empty", "empty holds no model, expected one for every task: a file (.safetensors,"),
    ("CART --model.experts.mine broken.safetensors", "broken.safetensors is not a safetensors file, nor one that"),
    ("CART --model.experts.mine notes.txt", "notes.txt is not a safetensors file, nor one that torch.save wrote"),
    ("CART --model.experts.mine epoch.pt", "epoch.pt: it holds no weights of a model: it is a dictionary of epoch"),
    ("CART --model.experts.mine empty", "empty holds no weights: expected one of model.safetensors"),
    ("CART --model.experts.mine names.safetensors", "all must be fine-tuned from one checkpoint"),
    ("MERGE EXPERTS --model.method TIES", "TIES needs the pretrained checkpoint of the experts: give --model.base"),
    (
        "CART --output m.pt",
        "m.pt: expected a name that ends in .safetensors, or the name of a folder; `lit-merge e",
    ),
    ("CART --output m.onnx", "`lit-merge export` writes .pt, .pt2 and .onnx"),
    ("CART --output empty", "empty exists: pass --overwrite to replace it, or choose another place"),
    ("CART --dtype fp16", "expected float16, bfloat16, float32 or float64, got fp16: write float16"),
    ("CART --dtype bf16", "got bf16: write bfloat16"),
    ("CART --model.transform awd", "there is no Transform 'awd'; the nearest is AWD"),
    ("CART --model.exclude head*", 'expected a list of names or patterns, as ["head*"], got head*'),
    ("CART --model.base openai/clip-vit-base-patch32", "no such file; a model of the hub is hf://openai/clip-vit"),
    (
        "CART --model.network ViT-B-32",
        "there are HuggingFaceImageEncoder, HuggingFaceTextEncoder, OpenClipIma",
    ),
    ("CART --devices 0", "devices=0: expected the number of processes, at least 1"),
    ("CART --threads 0", "--threads 0: expected the number of threads, from 1 to 1024"),
    ("merge --config list.yaml --output m", "expected a file or folder for each task, as {mnist: mnist.safetensors}"),
    ("merge --config flat.yaml --output m", "no option 'model.rank_ratio'; it is of CART, ESM, TSVCompress"),
    ("merge --config tab.yaml --output m", "tab.yaml is not valid YAML: it wants spaces, and no tabs"),
    ("merge --config comma.yaml --output m", "got 0,3: write 0.3, with a point"),
    ("merge --config top.yaml --output m", "it is --model.experts; in a file, experts stands under model"),
    ("merge --config text.yaml --output m", "text.yaml is no configuration: expected a YAML mapping of options"),
    ("merge --config nope.yaml --output m", "nope.yaml: no such configuration file"),
    ("merge list.yaml --output m", "list.yaml stands alone: give a configuration with --config list.yaml"),
    ("inspect", "inspect: the following arguments are required: path"),
    ("inspect nope", "nope: no such file"),
    ("convert broken.safetensors", "convert: the following arguments are required: --output"),
    ("export --model.bank empty --output b", "empty is no task bank: empty/bank.json: no such file"),
    ("export EXPERTS --model.method CART --output b --format gguf", "expected bank, merged, task, lora, open_clip,"),
    ("export EXPERTS --model.method CART --output b.safetensors", "format=bank writes a folder: choose a name"),
    ("FIT --model.lr .nan", "no option 'model.lr'; it is of Stage, in --model.stages: a list of stages, as [{granul"),
    ("CART --model.method.rank_ratio=", "model.method.rank_ratio: expected a number, got ''"),
    ("leaks", "missing --data: give a file with --config"),
    (
        "inspect zoo:9",
        "zoo:9: there is no such suite: zoo:8 is shipped, zoo:14 and zoo:20 are built by python scripts/b",
    ),
    ("--config list.yaml", "--config: name the verb first, as `lit-merge merge --config …`"),
    ("merge --config class.yaml --output m", "model.method: expected MergeMethod, as class_path: NAME with its init_"),
    ("FIT --model.stages [{granularity:tied}]", "got [{'granularity:tied': None}]; YAML wants a space after a colon"),
    ("FIT --model.correction 3", "model.correction: expected its options, as {rank: 32, lr: 0.001}, got 3"),
    ("FIT --data ImageFolders --data.classes.thai [a,b]", "data.classes: expected a name or path for each name, got {"),
    ("FIT --data.tasks mnist,thai", "data.tasks: expected a list, as [one, two], got mnist,thai"),
    ("FIT --trainer.logger Tensorboard", "the nearest is TensorBoardLogger; there are CSVLogger, "),
    ("FIT --model.stages 3", "model.stages: expected a list of stages, as [{granularity: tied, steps: 100, lr: 0.01}]"),
    ("FIT --model.stages [{granularity:tied,steps:5,lr:.nan}]", "model.stages"),
    (
        'FIT --model.stages [{"granularity":"tied","objective":{"class_path":"Entropie"}}]',
        "model.stages.objective: there is no Objective 'Entropie'; the nearest is Entropy; there are ConfidentEntropy",
    ),
    ("FIT --data.batch_size null", "data.batch_size is empty: expected int; or leave it out"),
    ("FIT --config empty.yaml", "trainer.max_steps is empty: expected int; or leave it out"),
    ("CART --model.method.scaling null", "model.method.scaling is empty: expected float or 'entropy' or 'self_cons"),
    ("FIT --data.batch_size 0", "batch_size=0, eval_batch_size=500: expected at least 1"),
    ("FIT --data.path nowhere", "nowhere/images.safetensors: no such file"),
    ("FIT --data Suit", "there is no TaskData 'Suit'; the nearest is Suite; there are HubImages, ImageFolders"),
    ("FIT --model.objective Entropie", "there is no Objective 'Entropie'; the nearest is Entropy"),
    ("fit EXPERTS --model.method CART --run run", "this verb runs a network: give --model.network, for example"),
    ("fit EXPERTS --model.method CART NETWORK --run run", "fit needs --data: the class and options of the data"),
    ("FIT --run", "--run: expected one argument"),
    ("predict EXPERTS --model.method CART NETWORK DATA --output p.xlsx", "predictions are written as .csv, .parquet,"),
    ("sweep EXPERTS --model.method CART NETWORK DATA --output s --select accurcy", "the nearest is accuracy"),
    ("sweep EXPERTS --model.method CART NETWORK DATA --output s --scalings []", "sweep: expected at least one method,"),
    ("sweep EXPERTS --model.method TIES NETWORK DATA --output s --rank_ratios [0.1]", "nothing to choose for TIES"),
    (
        "test EXPERTS --model.method CART NETWORK DATA --route nonsense",
        "route: expected prototypes, entropy or layers, got nonsense",
    ),
]
SHORT = {
    "EXPERTS": " ".join(
        f"--model.experts.{task} zoo:8/experts/{task}.safetensors" for task in ("mnist", "thai", "latin")
    ),
    "NETWORK": "--model.network OpenClipImageEncoder --model.network.config zoo:8/network.json "
    "--model.network.heads zoo:8/heads.safetensors",
    "DATA": "--data Suite --data.path zoo:8",
    "MERGE": "merge --output m.safetensors",
    "CART": "merge --output m.safetensors EXPERTS --model.method CART",
    "FIT": "fit --run run EXPERTS --model.method CART NETWORK DATA",
}


def words(command: str) -> list[str]:
    """A command with what is short spelled out; `MERGE` and the like stand where a word of their own does."""
    found: list[str] = []
    for i, word in enumerate(command.split(" ")):
        # CART is a method too.
        short = word in SHORT and (word != "CART" or i == 0)
        found += words(SHORT[word]) if short else [word]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first_day")
    for name, text in FILES.items():
        (root / name).write_text(text)
    (root / "empty").mkdir()
    torch.save({"epoch": 3}, root / "epoch.pt")
    save_file({"other.weight": torch.ones(2)}, root / "names.safetensors")
    return root


@pytest.mark.parametrize(("command", "said"), CASES, ids=[command for command, _ in CASES])
def test_each_says_what_to_do(
    command: str, said: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert main(words(command)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("lit_merge: error: ")
    assert said in line
    assert not {"_Trimming", "SquareImages", "__main__.py", "Traceback", "NoneType"} & set(
        line.replace(",", " ").split()
    )
    assert sorted(place.rglob("*")) == before


EXPERTS: dict[str, Any] = {
    "one": {"layers.0.attn.weight": torch.eye(4)},
    "two": {"layers.0.attn.weight": torch.ones(4, 4)},
}


@pytest.mark.parametrize(
    ("experts", "method", "said"),
    [
        (EXPERTS, CART, r"^method=CART is a class: call it, method=CART\(…\)$"),
        (EXPERTS, "cart", r"^method is 'cart': expected one that is made of its class, as method=CART\(rank_ratio"),
        (EXPERTS, None, "^method is NoneType: expected one that is made of its class"),
        (list(EXPERTS.values()), WeightAveraging(), "^experts are a list: expected a mapping from task to file or"),
        ("a.safetensors", WeightAveraging(), "^experts are a str: expected a mapping from task to file or state dict"),
        ({}, WeightAveraging(), "^no experts given, expected a mapping from task to checkpoint"),
    ],
)
def test_from_python(experts: Any, method: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=said):
        build_bank(experts, method=method)
    with pytest.raises(MergeError, match=said):
        merge_files(experts, tmp_path / "m.safetensors", method=method)
    assert not list(tmp_path.iterdir())


def test_test_images_alone_are_enough_to_evaluate(tiny: Any) -> None:
    bank = build_bank(tiny.experts, method=WeightAveraging())
    data = ImageFolders(test=tiny.test_folders)
    scores = evaluate(bank, tiny.encoder(), data)
    whole = evaluate(bank, tiny.encoder(), ImageFolders(tiny.adapt_folders, tiny.test_folders, image_size=16))
    assert {task: one.accuracy for task, one in scores.items()} == {t: one.accuracy for t, one in whole.items()}
    with pytest.raises(MergeError, match=r"^no images to adapt on: give --data.adapt, a folder of images for every"):
        data.unlabelled()
    with pytest.raises(MergeError, match=r"images of 224 × 224 for a network that takes squares of 16: leave --data"):
        evaluate(bank, tiny.encoder(), ImageFolders(test=tiny.test_folders, image_size=224))


def test_images_without_labels_are_no_test_images(tiny: Any) -> None:
    data = ImageFolders(test=tiny.adapt_folders, image_size=16)
    with pytest.raises(MergeError, match=r"images without labels go to --data.adapt alone, which predict reads too$"):
        data.labelled("test")


def test_halves_of_two_kinds(tiny: Any) -> None:
    one, other = (load_file(path) for path in list(tiny.experts.values())[:2])
    halves = {"one": {n: v.half() for n, v in one.items()}, "two": {n: v.bfloat16() for n, v in other.items()}}
    with pytest.warns(UserWarning, match=r"is torch.float16 in one and torch.bfloat16 in two: merged in float32"):
        bank = build_bank(halves, method=WeightAveraging())
    expected = (one["proj"].half().double() + other["proj"].bfloat16().double()) / 2
    torch.testing.assert_close(bank.merge(dtype=torch.float32)["proj"].double(), expected, rtol=1e-3, atol=1e-4)
