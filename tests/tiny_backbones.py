"""Small backbones in Hugging Face layout, made from the golden files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parent / "backbones" / "golden"
WEIGHTS_INDEX = "model.safetensors.index.json"
BYTE_LEVEL_TEXTS = ["def fit(self, x):", "Éclair, c! 棚", "  two  spaces", "long " * 40]


def golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A golden file's tensors and metadata."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def golden_weights(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The checkpoint inside a golden file."""
    return {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}


def write_backbone(folder: Path, name: str = "bert", weights: dict[str, np.ndarray] | None = None, **changes) -> Path:
    """A backbone's folder with a golden file's weights, or others; `changes` go into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, metadata = golden(name)
    config = {**json.loads(metadata["config"]), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(golden_weights(tensors) if weights is None else weights, folder / "model.safetensors")
    if "0/inputs/ids" in tensors:
        write_tokenizer(folder / "tokenizer.json")
    elif "0/inputs/sound" in tensors:
        extractor = {
            "ast": {"feature_extractor_type": "ASTFeatureExtractor", "max_length": 38, "num_mel_bins": 20},
            "whisper": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8, "chunk_length": 1},
            "wav2vec2": {"sampling_rate": 16_000, "do_normalize": True},
            "hubert": {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False},
        }[name]
        (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    else:
        processor = {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 28, "width": 28},
            "resample": 3,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.2, 0.25, 0.3],
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_shards(folder: Path, name: str = "llama", shards: int = 3) -> Path:
    """A golden backbone whose weights lie in several files."""
    weights = golden_weights(golden(name)[0])
    whole = write_backbone(folder, name) / "model.safetensors"
    whole.unlink()
    names = sorted(weights)
    placed = {tensor: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, tensor in enumerate(names)}
    for file in set(placed.values()):
        save_file({tensor: weights[tensor] for tensor in names if placed[tensor] == file}, folder / file)
    (folder / WEIGHTS_INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return folder


def deepened(name: str, depth: int) -> dict[str, np.ndarray]:
    """A golden checkpoint with its first block repeated `depth` times."""
    weights = golden_weights(golden(name)[0])
    first = {key: value for key, value in weights.items() if ".layer.0." in key}
    rest = {key: value for key, value in weights.items() if ".layer." not in key}
    return rest | {
        key.replace(".layer.0.", f".layer.{layer}."): value for layer in range(depth) for key, value in first.items()
    }


def write_tokenizer(path: Path) -> None:
    """A word-piece tokenizer of letters, with as many tokens as the golden BERT has embeddings (60)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "&", ".", ",", "!", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path))


def write_byte_level(folder: Path) -> Path:
    """RoBERTa's files, with pairs learned from a few texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(BYTE_LEVEL_TEXTS * 2, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.model.save(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    return folder
