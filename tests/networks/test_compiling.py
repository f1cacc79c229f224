"""torch.compile of the network: the same numbers, or one line that says why not."""

import functools
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_merge import MergedModel, MergeError, Stage
from lit_merge.networks.compiling import check_compiler

Make = Callable[..., MergedModel]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs that torch.compile finds, forward and backward, without the minutes of making C++ of them."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "options", [{}, {"microbatch": "task", "gradient_checkpointing": True}], ids=["one graph", "checkpointed"]
)
def test_a_fit_of_a_compiled_network(options: dict[str, Any], make_model: Make, make_trainer: Any, tiny: Any) -> None:
    ends = []
    for compile in (False, True):
        model = make_model(compile=compile, stages=[Stage("layer", 2, 0.01)], **options)
        make_trainer(max_steps=2).fit(model, datamodule=tiny.data())
        ends.append((model.coefficients().detach(), list(model.network.shapes)))
    assert (ends[0][0] - 1).abs().min() > 0.001
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-4)
    assert ends[0][1] == ends[1][1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiler_is_found() -> None:
    from torch._inductor import config

    # Headers that are compiled first pay off for larger programs only.
    headers = "cpp_cache_precompile_headers"
    with config.patch({headers: False} if hasattr(config, headers) else {}):
        check_compiler(torch.device("cpu"))


def test_without_a_compiler_there_is_one_line(
    make_model: Make, make_trainer: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(function: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(MergeError) as caught:
        check_compiler(torch.device("cpu"))
    assert str(caught.value) == (
        "compile=true, but torch.compile does not work on cpu here (No working C++ compiler found): leave it out, or "
        "install a C++ compiler, as g++"
    )
    monkeypatch.setattr("lit_merge.networks.network.compiled", lambda forward: forward)
    with pytest.raises(MergeError, match="does not work on cpu"):
        make_trainer(max_steps=1).fit(make_model(compile=True), datamodule=tiny.data())
