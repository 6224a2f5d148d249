"""Makes the golden files beside it from transformers + torch (the `parity` extra); run it to renew them.

    python tests/backbones/golden/make_golden.py [SHARED/weights]

Each NAME.safetensors holds `weights/...` (a checkpoint as transformers saves it), `inputs/...` and `states/LAYER` of a
small random model, with its config.json in the metadata. With the shared weights' folder, `real_NAME.safetensors`
holds inputs and states of the real models, for some tokens only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
BERT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
}
TEXT = {key: value for key, value in BERT.items() if key != "max_position_embeddings"} | {"pad_token_id": 1}
IMAGE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 7,
    "initializer_range": 0.3,
}
SPECTROGRAM = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "max_length": 38,
    "num_mel_bins": 20,
    "patch_size": 7,
    "time_stride": 4,
    "frequency_stride": 3,
    "initializer_range": 0.3,
}
WHISPER = {
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 36,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 8,
    "vocab_size": 60,
    "max_source_positions": 50,
    "max_target_positions": 4,
    "num_mel_bins": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "init_std": 0.3,
}
WAVEFORM = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 36,
    "conv_dim": (9, 10, 11),
    "conv_kernel": (5, 3, 2),
    "conv_stride": (3, 2, 2),
    "num_conv_pos_embedding_groups": 3,
    "initializer_range": 0.3,
}
VIDEO = IMAGE | {"intermediate_size": 36, "num_frames": 4, "tubelet_size": 2}
CASES = {
    "bert": (transformers.BertConfig(**BERT), transformers.BertModel),
    "bert_masked_lm": (
        transformers.BertConfig(**BERT, hidden_act="gelu_new", layer_norm_eps=1e-5),
        transformers.BertForMaskedLM,
    ),
    "roberta": (
        transformers.RobertaConfig(**TEXT, max_position_embeddings=26, type_vocab_size=1),
        transformers.RobertaForMaskedLM,
    ),
    "distilbert": (
        transformers.DistilBertConfig(
            vocab_size=60,
            dim=24,
            n_layers=2,
            n_heads=4,
            hidden_dim=40,
            max_position_embeddings=24,
            initializer_range=0.3,
        ),
        transformers.DistilBertForMaskedLM,
    ),
    "clip_text": (transformers.CLIPTextConfig(**TEXT, max_position_embeddings=24), transformers.CLIPTextModel),
    "llama": (
        transformers.LlamaConfig(
            **TEXT,
            num_key_value_heads=2,
            head_dim=10,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
        transformers.LlamaForCausalLM,
    ),
    "qwen2": (transformers.Qwen2Config(**TEXT, num_key_value_heads=1), transformers.Qwen2ForCausalLM),
    "vit": (transformers.ViTConfig(**IMAGE, intermediate_size=36, qkv_bias=False), transformers.ViTModel),
    "dinov2": (transformers.Dinov2Config(**IMAGE, mlp_ratio=2), transformers.Dinov2Model),
    "dinov2_swiglu": (transformers.Dinov2Config(**IMAGE, use_swiglu_ffn=True), transformers.Dinov2Model),
    "dinov2_registers": (
        transformers.Dinov2WithRegistersConfig(**IMAGE, mlp_ratio=2, num_register_tokens=3),
        transformers.Dinov2WithRegistersModel,
    ),
    "deit": (transformers.DeiTConfig(**IMAGE, intermediate_size=36), transformers.DeiTModel),
    "clip_vision": (
        transformers.CLIPVisionConfig(**IMAGE, intermediate_size=36, projection_dim=8),
        transformers.CLIPVisionModelWithProjection,
    ),
    "siglip_vision": (
        transformers.SiglipVisionConfig(
            **{key: value for key, value in IMAGE.items() if key != "initializer_range"}, intermediate_size=36
        ),
        transformers.SiglipVisionModel,
    ),
    "videomae": (transformers.VideoMAEConfig(**VIDEO), transformers.VideoMAEModel),
    "videomae_norm": (transformers.VideoMAEConfig(**VIDEO, use_mean_pooling=False), transformers.VideoMAEModel),
    "ast": (transformers.ASTConfig(**SPECTROGRAM), transformers.ASTForAudioClassification),
    "whisper": (transformers.WhisperConfig(**WHISPER), transformers.WhisperForConditionalGeneration),
    "wav2vec2": (
        transformers.Wav2Vec2Config(**WAVEFORM, num_conv_pos_embeddings=8),
        transformers.Wav2Vec2ForCTC,
    ),
    "hubert": (
        transformers.HubertConfig(
            **WAVEFORM,
            num_conv_pos_embeddings=5,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            conv_bias=True,
            feat_proj_layer_norm=False,
        ),
        transformers.HubertModel,
    ),
}
INTERPOLATING = {"vit", "deit", "clip_vision_model", "siglip_vision_model"}  # only when they are asked to
SIZES = ((28, 28), (38, 44))  # the size of the config, and one that is no multiple of a patch


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Gives norms, biases, layer scales and what starts at zero values that a wrong mapping would show."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "lambda" in name or "original0" in name or not parameter.any():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.5 * noise if name.endswith("bias") else 1 + 0.3 * noise


def text_inputs(vocabulary: int, rows: int, length: int, padding: int) -> dict[str, np.ndarray]:
    """Token ids of different lengths, padded on the right."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(length, 2, rows).astype(int)
    mask = np.arange(length) < lengths[:, None]
    ids = np.where(mask, rng.integers(padding + 1, vocabulary, (rows, length)), padding)
    return {"ids": ids.astype(np.int32), "mask": mask}


def sound_inputs(config: transformers.PreTrainedConfig) -> list[dict[str, np.ndarray]]:
    """Spectrograms, or samples: padded where the model is given a mask, else of two lengths."""
    rng = np.random.default_rng(0)
    sizes = {
        "audio-spectrogram-transformer": [((2, 38, 20), (38, 9))],
        "whisper": [((2, 100, 8), (100, 33))],
        "wav2vec2": [((2, 301), (301, 301)), ((1, 150), (150,))],
        "hubert": [((3, 301), (301, 150, 40))],
    }
    cases = []
    for shape, lengths in sizes[config.model_type]:
        sound = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 2:
            sound *= np.arange(shape[1]) < np.asarray(lengths)[:, None]
        cases.append({"sound": sound, "lengths": np.asarray(lengths, np.int32)})
    return cases


def states_of(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every hidden state, and the last one as the model gives it out."""
    if "ids" in inputs:
        named = {"input_ids": torch.tensor(inputs["ids"]).long(), "attention_mask": torch.tensor(inputs["mask"]).long()}
    elif "sound" in inputs:
        sound = torch.tensor(inputs["sound"])
        named = {model.main_input_name: sound.mT if model.main_input_name == "input_features" else sound}
        if getattr(model.config, "feat_extract_norm", "") == "layer":
            named["attention_mask"] = torch.arange(sound.shape[1]) < torch.tensor(inputs["lengths"])[:, None]
    else:
        named = {"pixel_values": torch.tensor(np.moveaxis(inputs["pixels"], -1, -3))}
        if model.config.model_type in INTERPOLATING:
            named["interpolate_pos_encoding"] = True
    with torch.no_grad():
        output = model(**named, output_hidden_states=True)
    found = {f"states/{i}": state.numpy() for i, state in enumerate(output.hidden_states)}
    return found | {"last": output.last_hidden_state.numpy()}


def write(name: str, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Saves a golden file."""
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(tensors, HERE / f"{name}.safetensors", metadata)


def tiny(name: str) -> None:
    """A small random model with its checkpoint."""
    config, kind = CASES[name]
    torch.manual_seed(0)
    whole = kind(config).eval()
    randomise(whole, torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder)
        weights = load_file(Path(folder) / "model.safetensors")
        saved = json.loads((Path(folder) / "config.json").read_text())
    model = whole.base_model
    tensors = {f"weights/{key}": value for key, value in weights.items()}
    if whole.main_input_name == "input_ids":
        cases = [text_inputs(config.vocab_size, rows=4, length=11, padding=config.pad_token_id)]
    elif whole.main_input_name in ("input_values", "input_features"):
        model, cases = model.encoder if config.model_type == "whisper" else model, sound_inputs(config)
    else:
        rng = np.random.default_rng(0)
        shapes = [(4, *SIZES[0])] if config.model_type == "videomae" else SIZES
        cases = [{"pixels": rng.normal(size=(2, *shape, 3)).astype(np.float32)} for shape in shapes]
    for number, inputs in enumerate(cases):
        made = {f"inputs/{key}": value for key, value in inputs.items()} | states_of(model, inputs)
        tensors |= {f"{number}/{key}": value for key, value in made.items()}
    write(name, tensors, {"config": json.dumps(saved)})


def real(name: str, weights: Path) -> None:
    """A real model's states for a few tokens."""
    model = transformers.AutoModel.from_pretrained(weights / name, dtype=torch.float32).eval()
    if model.config.model_type == "bert":
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights / name)
        texts = ["Stainless steel caliper, 6 inch / 150 mm", "Schutzbrille für Labor & Werkstatt", "棚"]
        made = tokenizer(texts, padding=True, return_tensors="np")
        inputs = {"ids": made["input_ids"].astype(np.int32), "mask": made["attention_mask"].astype(bool)}
        keep, extra = list(range(0, inputs["ids"].shape[1], 4)), {"texts": json.dumps(texts)}
    elif model.config.model_type == "whisper":
        model, keep, extra = model.encoder, [0, 1, 700, 1499], {}
        inputs = {"sound": np.sin(np.mgrid[:3000, :80].prod(0) / 40).astype(np.float32)[None]}
    else:
        grid = np.mgrid[:224, :210].astype(np.float32) / 40
        pixels = np.stack([np.sin(grid[0]), np.cos(grid[1]), np.sin(grid.sum(0))], axis=-1)[None]
        inputs, keep, extra = {"pixels": pixels.astype(np.float32)}, [0, 1, 97, 239], {}
    states = {key: value[:, keep] for key, value in states_of(model, inputs).items()}
    write(
        f"real_{name}",
        {"0/inputs/" + key: value for key, value in inputs.items() if key in ("ids", "mask")}
        | {f"0/{key}": value for key, value in states.items()}
        | {"tokens": np.asarray(keep)},
        extra,
    )


def features() -> None:
    """What the feature extractors make of a third of a second of sound."""
    rng = np.random.default_rng(0)
    samples = np.sin(np.cumsum(np.linspace(0.05, 1.5, 5000))) * np.linspace(0, 0.7, 5000)
    samples = (samples + 1e-4 * rng.normal(size=5000)).astype(np.float32)
    extractors = {
        "whisper": transformers.WhisperFeatureExtractor(chunk_length=1),
        "whisper_128": transformers.WhisperFeatureExtractor(feature_size=128, chunk_length=1),
        "ast": transformers.ASTFeatureExtractor(max_length=40),
        "wav2vec2": transformers.Wav2Vec2FeatureExtractor(),
    }
    made = {"samples": samples}
    for name, extract in extractors.items():
        (found,) = extract(samples, sampling_rate=16_000).values()
        made[name] = np.asarray(found)[0].astype(np.float32)
        made[name] = made[name].T if "whisper" in name else made[name]
    write("audio/features", made, {name: extract.to_json_string() for name, extract in extractors.items()})


PROCESSORS = {
    "bit": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 15}, "crop_size": 12},
    "clip": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 15, "crop_size": 12},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": 15, "crop_size": 12},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 13, "width": 12}},
    "vit": {"image_processor_type": "ViTImageProcessorFast", "size": 12},
    "videomae": {"image_processor_type": "VideoMAEImageProcessor", "size": {"shortest_edge": 15}, "crop_size": 12},
}


def pixels() -> None:
    """What the image processors make of one picture of noise."""
    picture = np.random.default_rng(0).integers(0, 256, (25, 33, 3), np.uint8)
    made = {"picture": picture}
    for name, config in PROCESSORS.items():
        named = next(iter(config.values())).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
        processor = getattr(transformers, f"{named}Pil")
        settings = {key: value for key, value in config.items() if not key.endswith("_type")}
        (found,) = processor(**settings)([picture], return_tensors="np").values()
        made[name] = found.reshape(-1, *found.shape[-2:]).transpose(1, 2, 0)
    write("image/pixels", made, {name: json.dumps(config) for name, config in PROCESSORS.items()})


if __name__ == "__main__":
    for case in CASES:
        tiny(case)
    features()
    pixels()
    for folder in sys.argv[1:]:
        for case in ("minilm-l6", "dinov2-small", "whisper-tiny-en-encoder"):
            real(case, Path(folder))
