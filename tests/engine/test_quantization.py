"""Which layers are packed, as far as a config tells."""

from __future__ import annotations

import pytest

from tests.engine import tiny
from wiredactors.engine.blueprint import draw_config, draw_directory
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.quantization import _covers
from wiredactors.memory.errors import ModelLoadError

#: Its widths are multiples of 128, so that every group size goes.
WIDE = {
    **tiny.CONFIGS["llama"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "torch_dtype": "bfloat16",
}
EXPERTS = {
    **tiny.CONFIGS["experts"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "torch_dtype": "bfloat16",
}
ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]


def packed(config):
    """Bits, group size and mode of each packed layer."""
    model = draw_config(config).model
    return {
        path: (module.bits, module.group_size, module.mode)
        for path, module in model.named_modules()
        if hasattr(module, "bits")
    }


def kinds(config):
    """The kinds of what is packed, and what is packed outside of the layers."""
    found = packed(config)
    return set(found.values()), {path for path in found if ".layers." not in path}


def test_nothing_is_packed_unless_it_is_said():
    assert packed(WIDE) == {}
    assert packed({**WIDE, "quantization": None, "quantization_config": {}}) == {}


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({"group_size": 64, "bits": 4}, (4, 64, "affine")),
        ({"group_size": 32, "bits": 8, "mode": "affine"}, (8, 32, "affine")),
        ({"mode": "affine"}, (4, 64, "affine")),
        ({"mode": "mxfp4"}, (4, 32, "mxfp4")),
        ({"mode": "mxfp8"}, (8, 32, "mxfp8")),
        ({"mode": "nvfp4"}, (4, 16, "nvfp4")),
    ],
)
def test_mlxs_own_entry_packs_every_layer_with_a_width_that_goes(entry, kind):
    ends = {"model.embed_tokens", "lm_head"}
    assert kinds({**WIDE, "quantization": entry}) == ({kind}, ends)
    # A width of 48 is a multiple of no group: only what reads 256 or 64 numbers is packed.
    if kind[1] == 64:
        narrow = packed({**tiny.CONFIGS["llama"], "quantization": entry})
        assert {path.rpartition(".")[2] for path in narrow} == {"o_proj", "down_proj"}


def test_mlxs_own_entry_comes_before_another():
    config = {**WIDE, "quantization": {"bits": 8}, "quantization_config": {"quant_method": "fp8"}}
    assert kinds(config)[0] == {(8, 64, "affine")}


def test_layers_may_be_named_one_by_one():
    entry = {
        "group_size": 64,
        "bits": 4,
        "lm_head": False,
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }
    found = packed({**WIDE, "quantization": entry})
    assert "lm_head" not in found
    assert found["model.embed_tokens"] == (8, 32, "affine")
    assert found["model.layers.0.mlp.up_proj"] == (4, 64, "affine")


def test_the_models_own_predicate_is_asked_as_the_converter_asks_it():
    found = packed({**EXPERTS, "quantization": {"group_size": 64, "bits": 4}})
    assert found["model.layers.0.mlp.gate"] == (8, 64, "affine")
    assert found["model.layers.0.mlp.switch_mlp.up_proj"] == (4, 64, "affine")


@pytest.mark.parametrize("name", ["llama", "experts", "hybrid", "parallel_hybrid", "state_space"])
def test_a_config_alone_foretells_what_mlx_lms_converter_makes(tiny_model, tmp_path, name):
    utils = import_mlx_lm("utils")
    model, config = utils.load_model(tiny_model(name), lazy=True)
    model, config = utils.quantize_model(model, config, 32, 4)
    folder = tmp_path / "packed"
    utils.save_model(folder, model)
    utils.save_config(config, config_path=folder / "config.json")
    real = draw_directory(folder)
    alone = draw_config({**real.config, "torch_dtype": "float32"})
    assert alone.weight_bytes == real.weight_bytes


# -- the formats of others


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({"quant_method": "mxfp4"}, (4, 32, "mxfp4")),
        ({"quant_method": "mxfp8"}, (8, 32, "mxfp8")),
        (
            {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]},
            (8, 32, "mxfp8"),
        ),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, (4, 128, "affine")),
        ({"quant_method": "gptq"}, (4, 128, "affine")),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, (4, 16, "nvfp4")),
        (
            {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "group_size": 16}},
            (4, 16, "nvfp4"),
        ),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
            (4, 16, "nvfp4"),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"group_size": 128}}},
            },
            (4, 128, "affine"),
        ),
    ],
    ids=lambda value: value.get("quant_method") if isinstance(value, dict) else None,
)
def test_other_formats_pack_linear_layers_alone(entry, kind):
    config = {**WIDE, "quantization_config": entry}
    assert kinds(config) == ({kind}, set())
    assert len(packed(config)) == 4 * 7
    said = draw_config(config).approximate
    assert said.startswith("only the config is known, no weight file; which layers ")


def test_what_they_leave_alone():
    names = ["model.layers.*.self_attn", "re:.*layers\\.0\\.mlp", "lm_head"]
    for key in ("modules_to_not_convert", "ignore", "exclude_modules"):
        found = packed({**WIDE, "quantization_config": {"quant_method": "mxfp4", key: names}})
        assert len(found) == 3 * 3, key
        assert not any("self_attn" in path or "layers.0." in path for path in found)


@pytest.mark.parametrize(
    ("pattern", "path", "covered"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "language_model.lm_head", True),
        ("model.layers.*.self_attn", "model.layers.3.self_attn.q_proj", True),
        ("model.layers.1.mlp.gate", "model.layers.1.mlp.gate", True),
        ("model.layers.1.mlp.gate", "model.layers.11.mlp.gate", False),
        ("mlp.gate", "model.layers.1.mlp.gate_proj", False),
        ("self_attn.mlp", "model.layers.1.self_attn.q_proj.mlp", False),
        ("re:.*gate$", "model.layers.1.mlp.gate", True),
        ("re:gate$", "model.layers.1.mlp.gate", False),
    ],
)
def test_patterns_of_names(pattern, path, covered):
    assert _covers(pattern, path) is covered


def test_a_models_language_part_may_say_it():
    text = {**WIDE, "quantization_config": {"quant_method": "mxfp4"}}
    config = {"model_type": "llava", "text_config": {**text, "model_type": "mistral"}}
    assert set(packed(config).values()) == {(4, 32, "mxfp4")}


def test_fp8_is_unpacked():
    entry = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    blueprint = draw_config({**WIDE, "quantization_config": entry})
    assert blueprint.weight_bytes == draw_config(WIDE).weight_bytes
    assert "its fp8 weights are counted in 16 bits" in blueprint.approximate


def test_bitnet_packs_four_numbers_in_a_byte():
    plain = draw_config(WIDE).weight_bytes
    bitnet = draw_config({**WIDE, "quantization_config": {"quant_method": "bitnet"}})
    assert bitnet.weight_bytes < plain / 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "mlx-lm cannot load weights that bitsandbytes"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "mlx-lm cannot load modelopt's FP8"),
        ({"quant_method": "gptq", "bits": 3}, "gptq weights of 4 bits, not 3"),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
            "unsupported compressed-tensors format 'float-quantized'",
        ),
        ({"bits": 4}, "it lacks 'quant_method'"),
        ("mxfp4", "quantization_config must be an object, not 'mxfp4'"),
    ],
)
def test_what_mlx_lm_cannot_load_is_said_before_it_is_tried(entry, message):
    with pytest.raises(ModelLoadError, match=message):
        draw_config({**WIDE, "quantization_config": entry})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"mode": "int3"}, "its mode 'int3' is none of affine, mxfp4, nvfp4, mxfp8"),
        ({"bits": "four"}, "the config's quantization cannot be carried out"),
        ({"group_size": "many"}, "the config's quantization cannot be carried out"),
        ({"bits": 7}, "the config's quantization cannot be carried out"),
        ([4], "quantization must be an object"),
    ],
)
def test_an_entry_that_makes_no_sense(entry, message):
    with pytest.raises(ModelLoadError, match=message):
        draw_config({**WIDE, "quantization": entry})
