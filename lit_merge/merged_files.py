"""Merges of a configuration, written as files."""

from lit_merge.checkpoints import named
from lit_merge.layout import Layout
from lit_merge.sources import Sources


def layout_of(sources: Sources, naming: str | None) -> Layout:
    """How the merge of a configuration is written.

    Raises:
        MergeError: a naming that these weights have not.
    """
    if sources.saved is not None:
        bank = sources.bank()
        return Layout.of_bank(bank, bank.naming_of(naming), sources.experts, sources.base)
    assert sources.experts is not None
    return Layout.of(sources.experts, None if naming is None else named(naming, sources.experts.shapes))


def write_merge(
    sources: Sources,
    output: str,
    naming: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Merges and writes, weight by weight. See `Layout.write`."""
    return layout_of(sources, naming).write(output, sources.stream(), max_shard_bytes, overwrite)
