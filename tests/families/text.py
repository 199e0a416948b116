"""Text families: BERT and what is like it, at the size of a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (
    "good",
    "bad",
    "film",
    "a",
    "the",
    "very",
    "not",
    "plot",
    "slow",
    "fine",
    "is",
    "was",
    "long",
    "dull",
    "kind",
    "sharp",
    "user",
    "assistant",
)
SAMPLES = 40


def save_tokenizer(directory: Path, end: str | None = None) -> Any:
    """A word-level tokenizer with the special tokens that the families ask for."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
        eos_token=end,
    )
    fast.save_pretrained(directory)
    return fast


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def snippets(count: int = SAMPLES) -> list[dict[str, Any]]:
    """Texts of differing length whose label is their first word's."""
    rows = []
    for number in range(count):
        words = [WORDS[number % 2], *(WORDS[2 + (number * 7 + k) % 14] for k in range(2 + number % 5))]
        rows.append({"text": " ".join(words), "label": ("pos", "neg")[number % 2]})
    return rows


def save(directory: Path, config: Any, model_class: str) -> str:
    """A random model of this configuration as a pre-trained source."""
    import torch
    import transformers

    torch.manual_seed(3)
    getattr(transformers, model_class)(config).save_pretrained(directory)
    return str(directory)


def classification(model_class: str, config_class: str, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    def make(home: Path) -> dict[str, Any]:
        import transformers

        tokenizer = save_tokenizer(home)
        config = getattr(transformers, config_class)(vocab_size=len(tokenizer), pad_token_id=0, **settings)
        source = save(home, config, model_class)
        return {
            "model": {"source": source},
            "data": {"train": write_rows(home / "rows.jsonl", snippets()), "max_length": 16},
        }

    return make


ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}

TEMPLATE = (
    "{% for m in messages %}[CLS] {{ m['role'] }} {{ m['content'] }} [SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant{% endif %}"
)


def generation(
    model_class: str, config_class: str, chat: bool = False, packing: bool = False, **settings: Any
) -> Callable[[Path], dict[str, Any]]:
    """A decoder that learns snippets, or to answer them."""

    def make(home: Path) -> dict[str, Any]:
        import transformers

        tokenizer = save_tokenizer(home, end="[SEP]")
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(home)
        config = getattr(transformers, config_class)(
            vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=2, eos_token_id=3, **settings
        )
        source = save(home, config, model_class)
        written = snippets(160 if packing else SAMPLES)
        rows = [conversation(row["text"]) for row in written] if chat else written
        data = {"train": write_rows(home / "rows.jsonl", rows), "max_length": 24, "packing": packing}
        return {
            "model": {"source": source},
            "data": {**data, **({"messages": "messages"} if chat else {})},
            "predict": ["good film"],
        }

    return make


def conversation(text: str) -> dict[str, Any]:
    first, *rest = text.split()
    turns = [{"role": "user", "content": " ".join(rest)}, {"role": "assistant", "content": f"{first} {first}"}]
    return {"messages": turns}


def encoder(
    model_class: str, config_class: str, rows: Callable[[], list[dict[str, Any]]], ask: list[Any], **settings: Any
) -> Any:
    """An encoder on other rows than snippets with a class."""

    def make(home: Path) -> dict[str, Any]:
        import transformers

        tokenizer = save_tokenizer(home)
        config = getattr(transformers, config_class)(vocab_size=len(tokenizer), pad_token_id=0, **settings)
        source = save(home, config, model_class)
        data = {"train": write_rows(home / "rows.jsonl", rows()), "max_length": 16}
        return {"model": {"source": source}, "data": data, "predict": ask}

    return make


def repeated() -> list[dict[str, Any]]:
    """Texts in which every word tells the others."""
    return [{"text": " ".join([WORDS[number % 5]] * (3 + number % 4))} for number in range(SAMPLES)]


def tagged() -> list[dict[str, Any]]:
    """Words of which some are entities of one or two words."""
    rows = []
    for row in snippets():
        words = row["text"].split()
        rows.append({"tokens": words, "label": ["B-MOOD" if word in ("good", "bad") else "O" for word in words]})
    return rows


def questions() -> list[dict[str, Any]]:
    """Texts longer than a window, asked for the word that the question names."""
    rows = []
    for number in range(SAMPLES):
        words = [WORDS[2 + (number * 7 + k) % 14] for k in range(6 + number % 12)]
        word = WORDS[number % 2]
        words.insert(number % len(words), word)
        context = " ".join(words)
        answers = {"text": [word], "answer_start": [context.index(word)]}
        rows.append({"question": word, "context": context, "answers": answers})
    return rows


def text_to_text(model_class: str, config_class: str, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    """An encoder and a decoder that learn to turn two words round."""

    def make(home: Path) -> dict[str, Any]:
        import transformers

        tokenizer = save_tokenizer(home)
        config = getattr(transformers, config_class)(
            vocab_size=len(tokenizer),
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
            **settings,
        )
        source = save(home, config, model_class)
        rows = [{"text": row["text"], "target": " ".join(row["text"].split()[1::-1])} for row in snippets()]
        data = {"train": write_rows(home / "rows.jsonl", rows), "max_length": 16, "max_target_length": 6}
        return {"model": {"source": source}, "data": data, "predict": ["good film"]}

    return make


BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.3,
}
DECODER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}

MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "bert/text-classification": classification("BertModel", "BertConfig", **ENCODER),
    "roberta/text-classification": classification("RobertaModel", "RobertaConfig", **ENCODER),
    "distilbert/text-classification": classification(
        "DistilBertModel",
        "DistilBertConfig",
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=40,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.3,
    ),
    "bert/masked-language-modeling": encoder(
        "BertForMaskedLM", "BertConfig", repeated, ["good [MASK] good"], **ENCODER
    ),
    "bert/token-classification": encoder("BertModel", "BertConfig", tagged, ["the good film"], **ENCODER),
    "bert/question-answering": encoder(
        "BertModel", "BertConfig", questions, [{"question": "good", "context": "the good film"}], **ENCODER
    ),
    "t5/summarization": text_to_text(
        "T5ForConditionalGeneration",
        "T5Config",
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        initializer_factor=1.0,
    ),
    "bart/summarization": text_to_text("BartForConditionalGeneration", "BartConfig", **BART),
    "marian/translation": text_to_text("MarianMTModel", "MarianConfig", **BART),
    "gpt2/text-generation": generation(
        "GPT2Model",
        "GPT2Config",
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
    ),
    "llama/text-generation": generation("LlamaForCausalLM", "LlamaConfig", chat=True, **DECODER),
    "qwen3/text-generation": generation("Qwen3ForCausalLM", "Qwen3Config", packing=True, **DECODER),
    "gpt-oss/text-generation": generation(
        "GptOssForCausalLM",
        "GptOssConfig",
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        **DECODER,
    ),
}
"""Row's name -> makes the model under a directory and returns the recipe's sections that differ."""
