"""Whether an error that ends a verb is of one of Lightning's own callbacks, and so of what the user asked it for."""

from traceback import walk_tb

from lightning.pytorch.callbacks import Callback


def failed_callback(error: BaseException) -> str | None:
    """Which of Lightning's own callbacks has raised an error, as EarlyStopping does where nobody logs what it monitors;
    None where something else has, be it called by one."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    own = [frame for frame in frames if not frame.f_globals["__name__"].startswith("torch.")]
    if not own or not own[-1].f_globals["__name__"].startswith(
        ("lightning.pytorch.callbacks.", "lightning.pytorch.tuner.")
    ):
        return None
    callbacks = [one for frame in own if isinstance(one := frame.f_locals.get("self"), Callback)]
    return type(callbacks[-1]).__name__ if callbacks else None
