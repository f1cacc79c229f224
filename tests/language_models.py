"""Very small causal language models as transformers saves them: sharded, with tokenizer, template and configuration."""

from pathlib import Path
from typing import Any

import torch

WORDS = "the a cat dog model weight merges sleeps runs is not of and to in one two three four five".split()  # noqa: SIM905
SPECIAL = ("<unk>", "<s>", "</s>")
TEMPLATE = "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"


def tokenizer(extra: tuple[str, ...] = ()) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=[*SPECIAL], show_progress=False)
    made.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    fast.chat_template = TEMPLATE
    fast.add_tokens([*extra])
    return fast


def config(kind: str, vocabulary: int, tied: bool, layers: int = 2) -> Any:
    from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

    common = {"vocab_size": vocabulary, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        return GPT2Config(n_embd=16, n_layer=layers, n_head=2, n_positions=32, **common)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}
    return kinds[kind](**common, **sizes, num_key_value_heads=1, max_position_embeddings=32)


def save(
    folder: Path, kind: str = "llama", tied: bool = False, tasks: tuple[str, ...] = ("math", "code", "chat")
) -> Path:
    """`base` and, in `experts`, a fine-tuned model per task: bfloat16, in shards with an index."""
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    words = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config(kind, len(words), tied), dtype=torch.bfloat16)
        values = {name: value.clone() for name, value in base.state_dict().items()}
        for task in (None, *tasks):
            if task is not None:
                for name, value in base.named_parameters():
                    value.data = values[name] + 0.02 * torch.randn(value.shape).to(value.dtype)
            place = folder / "base" if task is None else folder / "experts" / task
            base.generation_config = GenerationConfig(do_sample=True, temperature=0.7, bos_token_id=1, eos_token_id=2)
            base.save_pretrained(place, max_shard_size="6KB")
            words.save_pretrained(place)
    return folder


def add_tokens(folder: Path, *extra: str) -> None:
    """What a fine-tuning that adds tokens does to the model in a folder."""
    from transformers import AutoModelForCausalLM

    words, model = tokenizer(extra), AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.random.fork_rng():
        model.resize_token_embeddings(len(words), mean_resizing=False)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(folder, max_shard_size="6KB")
    words.save_pretrained(folder)


def save_adapter(base: Path, folder: Path, seed: int) -> None:
    """A LoRA folder of peft's."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lora = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]), autocast_adapter_dtype=False
        )
        for name, value in lora.named_parameters():
            value.data += torch.randn(value.shape).to(value.dtype) * ("lora_B" in name)
    lora.save_pretrained(folder)


def load(folder: Path) -> Any:
    """The model of a folder; fails where a weight is missing, unexpected or of another shape."""
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    return model
