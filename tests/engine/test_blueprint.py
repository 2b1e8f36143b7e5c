"""Models that are built and not loaded: what they weigh, and what is wrong with their configs."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import tiny
from wiredactors.engine.blueprint import draw_config, draw_directory, read_config
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.memory.errors import ModelLoadError

LLAMA = tiny.CONFIGS["llama"]
KNOWN = Path(__file__).parent / "known"


def flat(model):
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))


# -- directories


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_directory_is_drawn_as_mlx_lm_loads_it(tiny_model, name):
    blueprint = draw_directory(tiny_model(name))
    model, config = import_mlx_lm("utils").load_model(tiny_model(name))
    drawn, real = flat(blueprint.model), flat(model)
    assert {key: (a.shape, a.dtype) for key, a in drawn.items()} == {
        key: (a.shape, a.dtype) for key, a in real.items()
    }
    assert blueprint.config == config
    assert blueprint.approximate is None
    assert 0 <= blueprint.weight_bytes - sum(a.nbytes for a in real.values()) < 4096


def test_missing_data_is_said_and_headers_count(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    blueprint = draw_directory(folder)
    assert blueprint.weight_bytes == draw_directory(tiny_model("llama")).weight_bytes
    assert blueprint.approximate == (
        "data is missing in model.safetensors; sizes are those of the headers"
    )


def test_a_directory_without_weights_is_drawn_by_its_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    blueprint = draw_directory(tmp_path)
    assert blueprint.weight_bytes == draw_config(LLAMA).weight_bytes
    assert blueprint.approximate == "only the config is known, no weight file"


def test_weights_that_do_not_belong_to_the_config(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "config.json").write_text(json.dumps({**LLAMA, "hidden_size": 64}))
    with pytest.raises(ModelLoadError, match=r"mlx-lm makes no model of its weight files"):
        draw_directory(folder)


def test_a_hundred_missing_arrays_are_not_all_named(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 40}))
    with pytest.raises(ModelLoadError, match=r"Missing \d+ parameters: .* \.\.\.\)") as raised:
        draw_directory(folder)
    assert len(str(raised.value)) < 600
    assert "\n" not in str(raised.value)


def test_weights_that_two_layers_share_count_once(tmp_path, tiny_model):
    # minicpm's own `sanitize` gives its output layer the array of its embedding.
    config = {
        "model_type": "minicpm",
        "hidden_size": 32,
        "dim_model_base": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 4096,
        "num_key_value_heads": 2,
        "scale_depth": 1.0,
        "scale_emb": 1.0,
    }
    mx = import_mlx()
    model = draw_config({**config, "torch_dtype": "float32"}).model
    weights = {key: mx.zeros(a.shape) for key, a in flat(model).items() if "lm_head" not in key}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text(json.dumps(config))
    real = sum(a.nbytes for a in weights.values())
    assert 0 <= draw_directory(tmp_path).weight_bytes - real < 4096


# -- configs alone


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_config_alone_is_as_large_as_its_weights(tiny_model, name):
    config = {**tiny.CONFIGS[name], "torch_dtype": "float32"}
    assert draw_config(config).weight_bytes == draw_directory(tiny_model(name)).weight_bytes


@pytest.mark.parametrize(
    ("said", "dtype"),
    [
        ({}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "float32"}, "float32"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"torch_dtype": None, "dtype": "float16"}, "float16"),
    ],
)
def test_numbers_are_of_the_configs_dtype(said, dtype):
    weights = flat(draw_config({**LLAMA, **said}).model)
    assert {a.dtype for a in weights.values()} == {getattr(import_mlx(), dtype)}


def test_the_language_parts_dtype_counts_too():
    text = {**LLAMA, "model_type": "mistral", "dtype": "float16"}
    weights = flat(draw_config({"model_type": "llava", "text_config": text}).model)
    assert {a.dtype for a in weights.values()} == {import_mlx().float16}


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "auto", "int8", "array", "uint32"])
def test_a_dtype_that_weights_cannot_have(dtype):
    with pytest.raises(ModelLoadError, match=f"the config's dtype '{dtype}' is none of MLX's"):
        draw_config({**LLAMA, "torch_dtype": dtype})


def test_weights_that_the_converter_leaves_wide_stay_so():
    config = json.loads((KNOWN / "deepseek-v3.json").read_text())
    small = {"num_hidden_layers": 4, "hidden_size": 64, "vocab_size": 64, "n_routed_experts": 8}
    weights = flat(draw_config({**config, **small}).model)
    wide = [key for key, a in weights.items() if a.dtype == import_mlx().float32]
    assert wide == ["model.layers.3.mlp.gate.e_score_correction_bias"]


@pytest.mark.parametrize(("said", "tied"), [({}, True), ({"tie_word_embeddings": False}, False)])
def test_models_that_only_weights_tell_that_they_tie(said, tied):
    config = {"model_type": "gemma3_text", "num_hidden_layers": 6, **said}
    weights = flat(draw_config(config).model)
    assert ("lm_head.weight" not in weights) is tied


def test_the_callers_config_stays_as_it_is():
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    before = json.dumps(config)
    draw_config(config)
    assert json.dumps(config) == before


# -- what is wrong with a config


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_key_is_named(key):
    with pytest.raises(ModelLoadError, match=f"the config of a llama lacks {key}: take the whole"):
        draw_config({name: value for name, value in LLAMA.items() if name != key})


def test_all_missing_keys_are_named():
    with pytest.raises(ModelLoadError, match=r"lacks hidden_size, num_hidden_layers, interm"):
        draw_config({"model_type": "llama"})


def test_a_key_that_is_missing_further_inside_is_named():
    text = {"model_type": "mistral", "hidden_size": 64}
    with pytest.raises(ModelLoadError, match=r"config of a llava is incomplete.*num_hidden_layers"):
        draw_config({"model_type": "llava", "text_config": text})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "48"),
        ("num_attention_heads", [4]),
        ("rms_norm_eps", "small"),
        ("vocab_size", True),
        ("vocab_size", {}),
    ],
)
def test_a_value_that_is_no_number_is_named(key, value):
    with pytest.raises(ModelLoadError, match=f"of a llama says {key}: .*which is no number"):
        draw_config({**LLAMA, key: value})


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0, "head_dim": None},
        {"hidden_size": 48.5},
        {"hidden_size": -48},
        {"vocab_size": 10**30},
        {"rope_scaling": {"rope_type": "unheard of"}},
    ],
    ids=str,
)
def test_values_that_make_no_model(change):
    with pytest.raises(ModelLoadError, match="the config of a llama is incomplete or wrong"):
        draw_config({**LLAMA, **change})


@pytest.mark.parametrize("name", ["unheard_of", "cache", "base", "../models/llama", ""])
def test_an_architecture_that_mlx_lm_does_not_know(name):
    with pytest.raises(ModelLoadError, match=f"mlx-lm knows no architecture '{name}'"):
        draw_config({**LLAMA, "model_type": name})


def test_a_module_of_mlx_lm_that_exits_when_it_is_imported(capsys):
    with pytest.raises(ModelLoadError, match=r"no architecture 'olmo' \(To run olmo install"):
        draw_config({"model_type": "olmo"})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 7}])
def test_a_config_that_names_no_architecture(config):
    with pytest.raises(ModelLoadError, match="names no model_type"):
        draw_config(config)


def test_code_of_a_models_own_is_not_run():
    with pytest.raises(ModelLoadError, match=r"asks for code of its own \('model\.py'\)"):
        draw_config({**LLAMA, "model_file": "model.py"})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "{}"])
def test_a_config_file_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json (cannot be read|names no model_type)"):
        read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        read_config(tmp_path)


# -- what it costs

MEASURE = """
import json, sys, time
from wiredactors.engine.blueprint import draw_config, draw_directory
from wiredactors.engine.imports import import_mlx, import_mlx_lm
import psutil
from pathlib import Path

mx = import_mlx()
import_mlx_lm("utils")
import_mlx_lm("models.llama")
source = Path(sys.argv[1])
process = psutil.Process()
mx.reset_peak_memory()
memory, begin = process.memory_info().rss, time.process_time()
if source.is_dir():
    blueprint = draw_directory(source)
else:
    blueprint = draw_config(json.loads(source.read_text()))
seconds = time.process_time() - begin
grown = process.memory_info().rss - memory
print(json.dumps([blueprint.weight_bytes, seconds, mx.get_peak_memory(), grown]))
"""


def cost_of(source):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def hollow_70b(folder):
    """A directory as of a 4-bit Llama 70B: headers and holes in 8 files."""
    config = json.loads((KNOWN / "llama-3.1-70b.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 4}
    names = {"uint32": "U32", "bfloat16": "BF16"}
    headers = [{} for _ in range(8)]
    ends = [0] * 8
    for number, (key, array) in enumerate(sorted(flat(draw_config(config).model).items())):
        at = number % 8
        headers[at][key] = {
            "dtype": names[str(array.dtype).rpartition(".")[2]],
            "shape": array.shape,
            "data_offsets": [ends[at], ends[at] + array.nbytes],
        }
        ends[at] += array.nbytes
    for number, (header, end) in enumerate(zip(headers, ends, strict=True)):
        text = json.dumps(header).encode()
        with (folder / f"model-{number}.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_70b_takes_a_moment_and_no_memory(tmp_path):
    weights, seconds, active, grown = cost_of(KNOWN / "llama-3.1-70b.json")
    assert weights > 141e9
    assert seconds < 1
    assert active < 16 << 20
    assert grown < 64 << 20


def test_the_directory_of_a_70b_takes_a_moment_and_no_memory(tmp_path):
    weights, seconds, active, grown = cost_of(hollow_70b(tmp_path))
    assert 0 <= weights - 39_688_355_840 < 4096
    assert seconds < 1
    assert active < 16 << 20
    assert grown < 64 << 20
