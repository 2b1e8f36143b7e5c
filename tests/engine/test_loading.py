"""A load is planned from headers, refused before it begins where it cannot end, and exact."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine import tiny
from tests.engine.architectures import make_architecture
from tests.engine.truth import measure
from wiredactors.engine.blueprint import draw_config
from wiredactors.engine.loading import download, load, local_path, plan_load
from wiredactors.engine.sizing import context_length, measure_cache, step_workspace
from wiredactors.memory.errors import ModelLoadError
from wiredactors.memory.units import KIB, MIB
from wiredactors.scheduling.requests import LoadOptions

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")


@pytest.fixture
def directory(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a tiny model, to spoil."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


def plan(path: Path, **options: Any) -> Any:
    return plan_load(path, LoadOptions(**options), on_cpu=True)


def nothing(done: int, total: int) -> None:
    pass


class TestPlan:
    @pytest.mark.parametrize("name", tiny.CONFIGS)
    def test_weights_are_predicted_exactly_and_the_peak_is_not_passed(
        self, tiny_model: Callable[..., Path], name: str
    ) -> None:
        before = mx.set_cache_limit(0)
        try:
            planned = plan(tiny_model(name))
            active = mx.get_active_memory()
            mx.reset_peak_memory()
            done: list[tuple[int, int]] = []
            loaded = load(planned, lambda *progress: done.append(progress))
            assert mx.get_peak_memory() - active <= planned.peak_bytes
            assert abs(mx.get_active_memory() - active - planned.weight_bytes) < 4 * KIB
            # Besides its weights a model may have a few scalars, which no file has.
            assert done[-1][0] == done[-1][1]
            assert 0 <= planned.weight_bytes - done[-1][1] < 100
            assert done == sorted(done)
            assert loaded.context_length == (
                tiny.CONTEXT if name != "parallel_hybrid" else loaded.context_length
            )
        finally:
            mx.set_cache_limit(before)

    def test_the_devices_defaults_are_filled_in(self, directory: Path) -> None:
        assert plan(directory).options == LoadOptions(dtype="float32", prefill_step_size=64)
        gpu = plan_load(directory, LoadOptions(max_batch_size=3), on_cpu=False).options
        assert gpu == LoadOptions(dtype="float16", prefill_step_size=512, max_batch_size=3)

    def test_the_margin_is_the_plans_unless_one_is_given(self, directory: Path) -> None:
        plans = [plan(directory)] + [
            plan_load(directory, LoadOptions(margin_bytes=margin), on_cpu=True) for margin in (0, 7)
        ]
        assert [each.margin_bytes for each in plans] == [16 * MIB, 0, 7]
        assert len({each.workspace_bytes for each in plans}) == 1

    def test_a_workspace_grows_with_the_context_only_where_there_is_attention(self) -> None:
        def grown(name: str) -> int:
            model = draw_config(tiny.CONFIGS[name]).model
            short, long = (
                step_workspace(model, prefill_step_size=64, rows=1, context=context)
                for context in (512, 8192)
            )
            return long - short

        assert grown("state_space") == 0
        # A score of two bytes for each of 64 tokens, 4 heads and 7,680 more tokens, once at least.
        assert grown("llama") >= 64 * 4 * 7680 * 2

    def test_a_model_whose_code_wants_to_see_numbers_is_planned_by_its_first_layer(
        self, tmp_path: Path
    ) -> None:
        path = make_architecture(tmp_path, "dbrx")
        tiny.save_tokenizer(path)
        planned = plan(path)
        assert planned.workspace_bytes > 0
        truth = measure(path, token_count=256, prefill_step_size=64)
        cost = measure_cache(load(planned, nothing).model, 64)
        assert cost.step_bytes == truth.kv_bytes
        assert planned.weight_bytes == truth.weight_bytes

    @pytest.mark.parametrize("asked", ["measure_cache", "step_workspace"])
    def test_a_mistake_is_told_and_no_guess_made_of_it(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, asked: str
    ) -> None:
        def fail(*arguments: Any, **options: Any) -> Any:
            raise KeyError("a mistake")

        if asked == "step_workspace":
            monkeypatch.setattr("wiredactors.engine.sizing.workspace_at_end", fail)
        else:
            monkeypatch.setattr("wiredactors.engine.tracing.evaluate", fail)
        with pytest.raises(ModelLoadError, match=r"KeyError\('a mistake'\)"):
            plan(directory)

    def test_planning_takes_nothing_from_the_random_key(self, directory: Path) -> None:
        draws = []
        for planned in (False, True):
            mx.random.seed(5)
            mx.random.normal((2,))
            if planned:
                plan(directory)
            draws.append(mx.random.normal((3,)).tolist())
        assert draws[0] == draws[1]

    def test_a_context_that_no_config_names_is_large(self) -> None:
        assert context_length({}) == 1 << 20
        assert context_length({"text_config": {"max_position_embeddings": 77}}) == 77


class TestRefusals:
    def test_what_is_not_there(self, tmp_path: Path) -> None:
        for source in (tmp_path / "no", "./no/such", "~/no-such-model", "model.gguf", "a/b/c"):
            with pytest.raises(ModelLoadError, match="there is no file or directory"):
                local_path(source)

    def test_a_mistyped_name_in_a_folder_that_is_here_never_asks_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "models").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("mlx_lm.utils._download", lambda source: pytest.fail("it was asked"))
        with pytest.raises(ModelLoadError, match="there is no file or directory 'models/none'"):
            local_path("models/none")

    def test_what_the_hub_does_not_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(hub_id: str) -> Path:
            raise OSError(f"no {hub_id}")

        monkeypatch.setattr("mlx_lm.utils._download", fail)
        assert local_path("nobody-here/no-model") is None
        with pytest.raises(ModelLoadError, match="had from the hub: no nobody-here/no-model"):
            download("nobody-here/no-model")

    def test_a_directory_without_config(self, directory: Path) -> None:
        (directory / "config.json").unlink()
        with pytest.raises(ModelLoadError, match=r"no config\.json"):
            plan(directory)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "cannot be read"),
            ("{", "cannot be read"),
            ("[]", "no model_type"),
            ("{}", "no model_type"),
            ('{"model_type": 5}', "no model_type"),
            ('{"model_type": "never_heard_of"}', "never_heard_of"),
            ('{"model_type": "olmo"}', "olmo"),  # mlx-lm's module exits when it is imported
        ],
    )
    def test_a_config_that_names_no_known_model(
        self, directory: Path, text: str, message: str
    ) -> None:
        (directory / "config.json").write_text(text)
        with pytest.raises(ModelLoadError, match=message):
            plan(directory)

    def test_a_config_that_lacks_a_field(self, directory: Path) -> None:
        (directory / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(ModelLoadError, match="makes no model"):
            plan(directory)

    def test_a_config_of_another_shape(self, directory: Path) -> None:
        config = {**tiny.CONFIGS["llama"], "num_hidden_layers": 5}
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelLoadError, match="makes no model"):
            plan(directory)

    def test_a_directory_without_weights(self, directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        with pytest.raises(ModelLoadError, match="weights are missing"):
            plan(directory)

    @pytest.mark.parametrize("share", [0.0, 0.000005, 0.0005, 0.002, 0.3, 0.9999])
    def test_truncated_weights(self, directory: Path, share: float) -> None:
        file = directory / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ModelLoadError, match="download it again"):
            plan(directory)

    @pytest.mark.parametrize(
        "header",
        [
            b"no json at all",
            b"[]",
            b'{"a": 5}',
            b'{"a": {}}',
            b'{"a": {"data_offsets": [0]}}',
            b'{"a": {"data_offsets": ["0", "4"]}}',
            b'{"a": {"data_offsets": [4, 0]}}',
            b'{"a": {"data_offsets": [-4, 0]}}',
            b'{"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4]}}',
            b"\xff\xfe",
        ],
    )
    def test_a_corrupted_header(self, directory: Path, header: bytes) -> None:
        file = directory / "model.safetensors"
        file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
        with pytest.raises(ModelLoadError, match=r"model(\.safetensors)?"):
            load(plan(directory), nothing)

    def test_a_header_that_claims_to_be_huge(self, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"\xff" * 4096)
        with pytest.raises(ModelLoadError, match="no whole header"):
            plan(directory)

    @pytest.mark.parametrize("text", [None, "", "{}"])
    def test_a_missing_or_broken_tokenizer(self, directory: Path, text: str | None) -> None:
        (directory / "tokenizer.json").unlink()
        if text is not None:
            (directory / "tokenizer.json").write_text(text)
        with pytest.raises(ModelLoadError, match="tokenizer is missing or broken") as raised:
            load(plan(directory), nothing)
        assert "\n" not in str(raised.value)

    def test_a_directory_cannot_be_dequantized(self, directory: Path) -> None:
        with pytest.raises(ModelLoadError, match="only GGUF"):
            plan(directory, dequantize=True)
