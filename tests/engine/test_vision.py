"""Images and videos count: their tokens in the cache, their tensors in the workspace."""

from __future__ import annotations

import base64
import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import wiredactors as wa
from tests.engine import vision_models
from tests.engine.vision_models import PATCH, TOKEN_BYTES, make_photo
from wiredactors.engine import imports
from wiredactors.engine.conversation import read_conversation
from wiredactors.engine.imports import MLXVLMNotInstalled, import_mlx_lm, import_mlx_vlm
from wiredactors.engine.probe import TuneError
from wiredactors.engine.vision import is_vision_model, run_vision_prefill
from wiredactors.memory.cache_cost import grown_tokens
from wiredactors.memory.measurement import TuneParameters

mx = pytest.importorskip("mlx.core")
PIL = pytest.importorskip("PIL.Image")
pytest.importorskip("mlx_vlm")

STEP = 64


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    path = vision_models.make_vision_model(tmp_path_factory.mktemp("vision") / "tiny")
    loaded: tuple[Any, Any] = import_mlx_vlm("utils").load(str(path))
    return loaded


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return make_photo(tmp_path / "photo.jpg", 20 * PATCH, 14 * PATCH)


def asking(*media: Any, kind: str = "image") -> list[dict[str, Any]]:
    parts = [{"type": kind, kind: medium} for medium in media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


def measure(pair: Any, user_input: Any, **parameters: Any) -> wa.WiredMemoryMeasurement:
    parameters = {"prefill_step_size": STEP, **parameters}
    return run_vision_prefill(*pair, TuneParameters(**parameters), user_input=user_input)


def active() -> int:
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    return int(mx.get_active_memory())


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_counts_in_tokens_cache_and_workspace(pair, tmp_path, suffix):
    text = measure(pair, asking())
    previous = text
    for columns, rows in ((4, 4), (20, 14), (40, 40)):
        photo = make_photo(tmp_path / f"{columns}.{suffix}", columns * PATCH, rows * PATCH)
        measured = measure(pair, asking(photo))
        # Four patches are a token; two more tokens stand round the image.
        assert measured.token_count == text.token_count + columns * rows // 4 + 2
        room = grown_tokens(measured.token_count - 1, 1, STEP)  # the last one comes by itself
        assert measured.kv_bytes == room * TOKEN_BYTES
        pixels = columns * rows * PATCH * PATCH * 3 * 2 * 4  # each patch twice, as a video has
        assert measured.workspace_bytes > max(pixels, previous.workspace_bytes)
        assert measured.peak_active_bytes <= measured.total_bytes
        assert measured.weight_bytes == text.weight_bytes
        assert measured.measured
        previous = measured


def test_the_image_may_be_one_of_pillows_and_there_may_be_several(pair, photo):
    one = measure(pair, asking(str(photo)))
    with PIL.open(photo) as opened:
        assert measure(pair, asking(opened)).token_count == one.token_count
    two = measure(pair, asking(photo, photo))
    alone = measure(pair, asking()).token_count
    assert two.token_count - alone == 2 * (one.token_count - alone)


def test_a_video_counts_frame_by_frame(pair):
    import numpy as np

    def frames(count: int) -> Any:
        return np.random.default_rng(1).integers(
            0, 255, (count, 3, 8 * PATCH, 8 * PATCH), dtype=np.uint8
        )

    short, long = (measure(pair, asking(frames(count), kind="video")) for count in (2, 8))
    # Two frames are one in the model's time.
    assert long.token_count - short.token_count == 3 * 8 * 8 // 4
    assert long.workspace_bytes > short.workspace_bytes


def test_nothing_is_left_afterwards(pair, photo):
    pool = mx.set_cache_limit(wa.MIB)
    try:
        measure(pair, asking(photo))  # what modules make when they first run is made now
        state = [mx.array(part) for part in mx.random.state]
        mx.eval(state, list(mx.random.state))
        notes = vars(pair[0].language_model).copy(), dict(pair[0].language_model)
        before = active()
        measured = measure(pair, asking(photo), decode_tokens=2)
        assert active() == before
        assert all(mx.array_equal(*both) for both in zip(state, mx.random.state, strict=True))
        assert notes[0] == vars(pair[0].language_model)
        assert notes[1].keys() == dict(pair[0].language_model).keys()
        with pytest.raises(TuneError) as caught:
            measure(pair, asking(photo, "/no/such/image.jpg"))
        assert active() == before, f"{caught} keeps something"
        assert measured.workspace_bytes < measure(pair, asking(photo)).workspace_bytes // 10
    finally:
        assert mx.set_cache_limit(pool) == wa.MIB


def test_an_error_amid_the_prefill_keeps_nothing(pair, photo, monkeypatch):
    measure(pair, asking(photo))
    language = type(pair[0].language_model)
    original = language.__call__

    def fail_late(self: Any, *inputs: Any, cache: Any = None, **others: Any) -> Any:
        if cache[0].offset > STEP:
            raise ZeroDivisionError("of the model")
        return original(self, *inputs, cache=cache, **others)

    before, pool = active(), mx.set_cache_limit(wa.MIB)
    monkeypatch.setattr(language, "__call__", fail_late)
    with pytest.raises(ZeroDivisionError) as caught:
        measure(pair, asking(photo))
    assert mx.set_cache_limit(pool) == wa.MIB
    # Its traceback keeps mlx-vlm's closures, and these positions and the like.
    assert active() - before < 8 * wa.KIB
    del caught
    assert active() == before


def test_text_alone_and_made_up_text_are_measured_too(pair):
    measured = run_vision_prefill(*pair, TuneParameters(token_count=300))
    assert measured.token_count == 300
    assert measured.kv_bytes == 512 * TOKEN_BYTES
    assert measure(pair, "What is this?").kv_bytes == measure(pair, asking()).kv_bytes


def test_a_quantized_cache_is_smaller_and_rows_are_sized_by_it(pair, photo):
    with pytest.raises(ValueError, match="divisible by the quantization group size 64"):
        measure(pair, asking(photo), kv_bits=8)
    plain = measure(pair, asking(photo))
    packed = measure(pair, asking(photo), kv_bits=8, kv_group_size=32)
    assert packed.kv_bytes < plain.kv_bytes
    assert packed.cache_cost.step_bytes < plain.cache_cost.step_bytes == 256 * TOKEN_BYTES


def test_what_is_no_image_is_named(pair, tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("no image at all")
    with pytest.raises(TuneError, match=r"notes\.jpg'\) is no image that can be read"):
        measure(pair, asking(text))
    cut = make_photo(tmp_path / "cut.png", 100, 100)
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(TuneError, match=r"cut\.png'\) is no image that can be read"):
        measure(pair, asking(cut))
    with pytest.raises(TuneError, match=r"gone\.png' is no image that can be read.*[Nn]o such"):
        measure(pair, asking(str(tmp_path / "gone.png")))
    with pytest.raises(TuneError, match="7 is no image that can be read"):
        measure(pair, asking(7))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image"}, "has no image in it"),
        ({"type": "audio", "audio": "a.wav"}, "is no part of a message that is known"),
        ("What?", "is no part of a message that is known"),
    ],
)
def test_a_part_that_makes_no_sense_is_a_clear_error(pair, part, message):
    with pytest.raises(TuneError, match=message):
        measure(pair, [{"role": "user", "content": [part]}])


def test_a_video_file_needs_opencv_and_must_be_there(pair, tmp_path, monkeypatch):
    with pytest.raises(TuneError, match=r"no video file .*gone\.mp4"):
        measure(pair, asking(str(tmp_path / "gone.mp4"), kind="video"))
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(TuneError, match=r"a\.mp4' with OpenCV: pip install"):
        measure(pair, asking(str(tmp_path / "a.mp4"), kind="video"))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "input_image", "image_url": "a.png"},
    ],
)
def test_the_usual_ways_of_writing_an_image_are_read(part):
    found = read_conversation([{"role": "user", "content": [part]}])
    assert found.images == ["a.png"]
    assert found.messages == [{"role": "user", "content": [{"type": "image"}]}]


def test_an_image_may_be_given_as_its_bytes_or_as_a_data_address(pair, photo):
    encoded = base64.b64encode(photo.read_bytes()).decode()
    address = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}}
    expected = measure(pair, asking(photo)).token_count
    assert measure(pair, asking(photo.read_bytes())).token_count == expected
    assert measure(pair, [{"role": "user", "content": [address]}]).token_count > 20


@pytest.mark.parametrize(
    "image", [b"no image" * 9999, "data:image/png;base64," + "A" * 99999, [[0] * 999] * 99]
)
def test_a_large_thing_that_is_no_image_is_named_in_short(pair, image):
    with pytest.raises(TuneError, match="is no image that can be read") as caught:
        measure(pair, asking(image))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("video", [7, ["a.png"], b"no video"])
def test_a_video_that_is_none_is_a_clear_error_and_keeps_nothing(pair, video):
    measure(pair, "What is this?")
    before = active()
    with pytest.raises(TuneError, match="the processor cannot read this"):
        measure(pair, asking(video, kind="video"))
    assert active() == before


def test_more_than_one_row_is_refused(pair, photo):
    with pytest.raises(ValueError, match="batch_size=2"):
        measure(pair, asking(photo), batch_size=2)


async def test_tune_takes_the_pair(pair, photo):
    measured = await wa.tune(pair, user_input=asking(photo), prefill_step_size=STEP)
    expected = measure(pair, asking(photo))
    assert measured.measured
    assert (measured.token_count, measured.kv_bytes) == (expected.token_count, expected.kv_bytes)
    assert is_vision_model(pair[0])


async def test_a_text_model_refuses_images(tiny_model, photo, monkeypatch):
    text_pair = import_mlx_lm("utils").load(str(tiny_model("llama")))
    assert not is_vision_model(text_pair[0])
    with pytest.raises(TuneError, match=r"give the pair that mlx_vlm\.load\(\) returns"):
        await wa.tune(text_pair, user_input=asking(photo))

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(imports.importlib, "import_module", missing)
    monkeypatch.setattr(imports, "import_mlx", lambda: mx)
    with pytest.raises(MLXVLMNotInstalled, match=r"pip install 'wiredactors\[vlm\]'"):
        await wa.tune(text_pair, user_input=asking(photo))


def test_importing_mlx_vlm_changes_nothing_in_the_process():
    script = """
        import os, resource
        from wiredactors.engine.imports import import_mlx, import_mlx_vlm

        mx = import_mlx()
        limits = []
        mx.set_wired_limit = lambda limit: limits.append(limit) or 0
        pool = mx.set_cache_limit(12345)
        before = dict(os.environ), resource.getrlimit(resource.RLIMIT_NOFILE)
        for name in ("utils", "prompt_utils", "models.cache", "generate.ar"):
            assert import_mlx_vlm(name).__name__ == f"mlx_vlm.{name}"
        assert (dict(os.environ), resource.getrlimit(resource.RLIMIT_NOFILE)) == before
        assert not limits
        assert mx.set_cache_limit(pool) == 12345
    """
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        cwd=root,
        env={name: value for name, value in os.environ.items() if name[:12] != "TRANSFORMERS"},
        timeout=120,
    )
