"""Tiny random models that see, saved as Hugging Face directories that mlx-vlm loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.engine import tiny
from wiredactors.engine.imports import import_mlx, import_mlx_vlm

_ADDED = ("<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_VOCABULARY = tiny.VOCABULARY + len(_ADDED)
_END, _VISION_START, _VISION_END, _IMAGE, _VIDEO = range(tiny.VOCABULARY, _VOCABULARY)

#: Side of a patch in pixels; 2 x 2 patches are one token.
PATCH = 14

#: Bytes that the cache keeps for a token: keys and values of 2 layers, 2 heads, 32 numbers.
TOKEN_BYTES = 2 * 2 * 2 * 32 * 4

_CONFIG: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "tie_word_embeddings": True,
    "image_token_id": _IMAGE,
    "video_token_id": _VIDEO,
    "vision_start_token_id": _VISION_START,
    "vision_end_token_id": _VISION_END,
    "eos_token_id": _END,
    "vision_config": {
        "model_type": "qwen2_vl",
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 128,
        "num_heads": 2,
        "image_size": 56,
        "patch_size": PATCH,
        "mlp_ratio": 2,
        "in_channels": 3,
        "spatial_patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "vocab_size": _VOCABULARY,
    },
}

_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_vision_model(path: Path) -> Path:
    """Save a tiny qwen2_vl at `path`; returns it."""
    mx = import_mlx()
    from mlx.utils import tree_flatten

    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(_CONFIG))
    family, _ = import_mlx_vlm("utils").get_model_and_args(_CONFIG)
    config = family.ModelConfig.from_dict(json.loads(json.dumps(_CONFIG)))
    config.text_config = family.TextConfig.from_dict(config.text_config)
    config.vision_config = family.VisionConfig.from_dict(config.vision_config)
    mx.random.seed(3)
    weights: Any = dict(tree_flatten(family.Model(config).parameters()))
    mx.eval(weights)
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    tokenizer = json.loads(tiny._trained())
    tokenizer["added_tokens"] = [
        {
            "id": tiny.VOCABULARY + number,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, content in enumerate(_ADDED)
    ]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": _TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    preprocessor = {
        "processor_class": "Qwen2VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": (2 * PATCH) ** 2,
        "max_pixels": 4_000_000,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return path


def make_photo(path: Path, width: int, height: int) -> Path:
    """Save a picture with smooth and rough places, as photographs have; the suffix says as what."""
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(5).integers(0, 40, (height, width))
    bands = [columns * 200 // width, rows * 200 // height, (rows + columns) % 200]
    pixels = np.stack([band + noise for band in bands], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path
