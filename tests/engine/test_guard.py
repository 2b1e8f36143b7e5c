"""While the guard is installed nobody but its owner reaches MLX's wired limit.

mlx-lm is the real one, on the CPU; the limit is a recording fake that behaves as Metal's: it
returns the previous value, and the device reports a maximum of 1000.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import ModuleType

import pytest

from wiredactors.engine import guard as guard_module
from wiredactors.engine.guard import GuardError, LimitGuard
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.memory.errors import WiredMemoryError

mx = import_mlx()
utils = import_mlx_lm("utils")
generate = import_mlx_lm("generate")

ROOT = str(Path(guard_module.__file__).parents[2])
MAXIMUM = 1000
BASELINE = 7
HELPER = "maybe_set_recommended_wired_limit"
SET = "set_wired_limit"


class FakeMetal:
    """A wired limit as Metal keeps it, and every write of it."""

    def __init__(self) -> None:
        self.limit = 0
        self.writes: list[int] = []

    def set_wired_limit(self, limit: int) -> int:
        self.writes.append(limit)
        previous, self.limit = self.limit, limit
        return previous


class Tokenizer:
    """As much of a tokenizer as stream_generate asks for."""

    eos_token_id = None
    bos_token = None
    chat_template = None
    clean_up_tokenization_spaces = False

    def get_vocab(self) -> dict[str, int]:
        return {}

    def apply_chat_template(self, messages: list[dict[str, str]]) -> None:
        raise NotImplementedError  # its signature is looked at

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1 + ord(character) % 90 for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(33 + token % 90) for token in tokens)


@pytest.fixture(scope="module")
def model():
    llama = import_mlx_lm("models.llama")
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=16,
            num_hidden_layers=1,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            rms_norm_eps=1e-5,
            vocab_size=100,
        )
    )


@pytest.fixture
def metal(monkeypatch):
    fake = FakeMetal()
    monkeypatch.setattr(mx, SET, fake.set_wired_limit)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"max_recommended_working_set_size": MAXIMUM})
    return fake


@pytest.fixture
def reports():
    return []


@pytest.fixture
def guard(metal, reports):
    limit_guard = LimitGuard(reports.append, baseline=lambda: BASELINE)
    yield limit_guard
    limit_guard.remove()


@pytest.fixture
def new_module(monkeypatch):
    """Makes a module of its own source, as an import would."""

    def make(name: str, source: str = "") -> ModuleType:
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(source, vars(module))
        return module

    return make


def run_python(code: str) -> str:
    """The output of a fresh interpreter; what a process has imported cannot be taken back."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def texts(model, count: int = 3) -> list[str]:
    return [r.text for r in generate.stream_generate(model, Tokenizer(), [1, 2, 3], count)]


# -- mlx-lm's own writers


def test_stock_stream_generate_writes_the_limit(metal, model):
    """Why there is a guard: unguarded it sets the maximum, and puts the old value back."""
    metal.limit = 300
    texts(model)
    assert metal.writes == [MAXIMUM, 300]


def test_stream_generate_is_kept_off_and_reported(metal, guard, reports, model):
    """It generates as ever, MLX hears nothing, the owner hears what it wanted."""
    with guard:
        assert len(texts(model)) == 3
    assert metal.writes == []
    assert reports == [MAXIMUM]


def test_stock_overlapping_generations_leave_the_maximum_for_ever(metal, model):
    """Why a budget cannot live beside them: A and B overlap, and B restores A's maximum."""
    metal.limit = 300
    a, b = generate.wired_limit(model), generate.wired_limit(model)
    a.__enter__()
    b.__enter__()
    a.__exit__(None, None, None)
    assert metal.limit == 300  # while B runs
    b.__exit__(None, None, None)
    assert metal.limit == MAXIMUM  # and nobody is left to undo it


def test_overlapping_generations_leave_the_owners_limit_alone(metal, guard, reports, model):
    """The same A and B while guarded."""
    metal.limit = 300
    with guard:
        a, b = generate.wired_limit(model), generate.wired_limit(model)
        a.__enter__()
        b.__enter__()
        a.__exit__(None, None, None)
        assert metal.limit == 300
        b.__exit__(None, None, None)
    assert metal.limit == 300
    assert metal.writes == []
    assert reports == [MAXIMUM, MAXIMUM]


def test_a_batch_from_before_that_closes_meanwhile_is_kept_off(metal, guard, reports, model):
    """It holds the limit from before the guard, and its restore must not undo the owner's."""
    metal.limit = 300
    batch = generate.BatchGenerator(model)
    assert metal.writes == [MAXIMUM]
    with guard:
        guard.write(500)
        batch.close()
        assert metal.limit == 500
    assert metal.limit == 500
    assert reports == [300]


def test_a_batch_from_before_that_is_collected_meanwhile_is_kept_off(metal, guard, reports, model):
    """Its `__del__` restores too, whenever the garbage collector likes."""
    metal.limit = 300
    batch = generate.BatchGenerator(model)
    batch.cycle = batch
    with guard:
        guard.write(500)
        del batch
        gc.collect()
        assert metal.limit == 500
    assert reports == [300]


def test_a_context_from_before_that_leaves_meanwhile_is_kept_off(metal, guard, reports, model):
    """A stream that was under way when the guard came restores into nothing."""
    metal.limit = 300
    stream = generate.stream_generate(model, Tokenizer(), [1, 2, 3], 3)
    next(stream)
    with guard:
        stream.close()
    assert metal.writes == [MAXIMUM]
    assert reports == [300]


def test_a_batch_made_meanwhile_that_closes_after_restores_nothing(metal, guard, reports, model):
    """It was told that there was nothing to set, so it has nothing to put back."""
    with guard:
        batch = generate.BatchGenerator(model)
    assert reports == [MAXIMUM]
    metal.limit = 300
    batch.close()
    assert metal.limit == 300
    assert metal.writes == []


def test_a_writer_that_ends_after_the_guard_restores_the_baseline(metal, guard):
    """It saves "the previous limit" while guarded, and that is what will be in force then."""
    with guard:
        saved = mx.set_wired_limit(800)
    assert saved == BASELINE
    mx.set_wired_limit(saved)
    assert metal.writes == [BASELINE]


def test_the_helper_does_nothing_where_the_device_has_no_maximum(
    metal, guard, reports, model, monkeypatch
):
    """As the original: on CPU and CUDA nobody tried to write anything."""
    monkeypatch.setattr(mx, "device_info", lambda *_: {"device_name": "cpu"})
    with guard:
        assert utils.maybe_set_recommended_wired_limit() is None
        texts(model)
    assert reports == []


# -- who holds what


@pytest.mark.parametrize(
    "name", ["mlx_lm.generate", "mlx_lm.server", "mlx_lm.tuner.trainer", "mlx_lm.quant.dwq"]
)
def test_every_module_of_mlx_lm_that_holds_the_helper_is_guarded(name, guard, metal, reports):
    """Those four import it by name."""
    try:
        module = import_mlx_lm(name.removeprefix("mlx_lm."))
    except ModuleNotFoundError as error:  # dwq and the trainer want the training extra
        pytest.skip(f"{name} needs {error.name}")
    original = vars(module)[HELPER]
    with guard:
        assert module.maybe_set_recommended_wired_limit() is None
    assert vars(module)[HELPER] is original
    assert metal.writes == []
    assert reports == [MAXIMUM]


def test_anybodys_module_that_holds_the_names_is_guarded(guard, metal, reports, new_module):
    """Whoever imported a writer by name before the guard came is kept off and put back."""
    source = f"from mlx_lm.utils import {HELPER}\nfrom mlx.core import {SET}"
    module = new_module("somebody", source)
    originals = dict(vars(module))
    with guard:
        assert module.set_wired_limit(400) == BASELINE
        assert module.maybe_set_recommended_wired_limit() is None
    assert metal.writes == []
    assert reports == [400, MAXIMUM]
    assert vars(module)[SET] is originals[SET]
    assert vars(module)[HELPER] is originals[HELPER]


def test_the_deprecated_name_in_mlx_core_metal_is_guarded(guard, reports):
    """It is a function of its own that reaches the same limit."""
    original = mx.metal.set_wired_limit
    with guard:
        assert mx.metal.set_wired_limit(400) == BASELINE
    assert reports == [400]
    assert mx.metal.set_wired_limit is original


def test_a_module_that_takes_the_names_meanwhile_is_put_back(guard, metal, new_module):
    """`from mlx.core import set_wired_limit` while guarded must not outlive the guard."""
    original = vars(mx)[SET], vars(utils)[HELPER]
    source = f"from mlx_lm.utils import {HELPER}\nfrom mlx.core import {SET}"
    with guard:
        module = new_module("latecomer", source)
        assert module.set_wired_limit(400) == BASELINE
    assert (vars(module)[SET], vars(module)[HELPER]) == original
    module.set_wired_limit(5)
    assert metal.writes == [5]


def test_a_module_that_has_left_sys_modules_is_put_back(guard, new_module):
    """Its attributes are still the originals again."""
    module = new_module("leaver", f"from mlx.core import {SET}")
    original = vars(module)[SET]
    with guard:
        del sys.modules["leaver"]
    assert vars(module)[SET] is original


def test_a_stand_in_that_somebody_keeps_is_the_original_without_a_guard(guard, metal, reports):
    """And a later guard stops it again."""
    with guard:
        kept, kept_helper = mx.set_wired_limit, utils.maybe_set_recommended_wired_limit
    assert kept(limit=40) == 0
    assert kept_helper() == 40
    assert metal.writes == [40, MAXIMUM]
    with LimitGuard(reports.append, baseline=lambda: 1):
        assert kept(50) == 1
    assert metal.limit == MAXIMUM
    assert reports == [50]


def test_everything_is_as_before_afterwards(guard):
    """By identity, in every module, and the import machinery too; once more changes nothing."""

    def state():
        held = {
            (name, attribute): vars(module)[attribute]
            for name, module in list(sys.modules.items())
            if isinstance(module, ModuleType)
            for attribute in (SET, HELPER)
            if attribute in object.__getattribute__(module, "__dict__")
        }
        return held, list(sys.meta_path)

    before = state()
    assert ("mlx_lm.generate", HELPER) in before[0]
    for _ in range(2):
        with guard:
            assert all(
                state()[0][key] is not before[0][key]
                for key in [
                    ("mlx.core", SET),
                    ("mlx_lm.utils", HELPER),
                    ("mlx_lm.generate", HELPER),
                ]
            )
        guard.remove()
        after = state()
        assert before[0].keys() == after[0].keys()
        assert all(after[0][key] is value for key, value in before[0].items())
        assert after[1] == before[1]


def test_a_patch_over_ours_is_left_alone(guard, metal, monkeypatch):
    """Whoever patched the attribute meanwhile keeps it, also when more of mlx-lm is imported."""
    theirs = lambda limit: -1  # noqa: E731  # it must be a plain function object
    with monkeypatch.context() as patch:
        guard.install()
        patch.setattr(mx, SET, theirs)
        importlib.reload(import_mlx_lm("models.base"))
        assert mx.set_wired_limit is theirs
        guard.write(20)
        guard.remove()
        assert mx.set_wired_limit is theirs
    assert metal.writes == [20]


def test_a_leftover_stand_in_is_seen_through(guard, metal, reports):
    """If an undone patch leaves an old stand-in in place, the next guard still works."""
    with guard:
        leftover = mx.set_wired_limit
    mx.set_wired_limit = leftover  # as the undoing of a patch made while guarded would do
    with guard:
        guard.write(30)
        assert mx.set_wired_limit(60) == BASELINE
    assert metal.writes == [30]
    assert reports == [60]
    assert mx.set_wired_limit == metal.set_wired_limit


def test_odd_things_in_sys_modules_are_left_alone(guard, monkeypatch):
    """A lazy module must not be made to import, and what is no module must not matter."""

    asked = []

    class Lazy(ModuleType):
        def __getattribute__(self, name):
            asked.append(name)
            return super().__getattribute__(name)

    class Odd:
        __slots__ = ()

        @property
        def __dict__(self):
            raise RuntimeError

    monkeypatch.setitem(sys.modules, "odd_lazy", Lazy("odd_lazy"))
    monkeypatch.setitem(sys.modules, "odd_none", None)
    monkeypatch.setitem(sys.modules, "odd_class", Odd)
    monkeypatch.setitem(sys.modules, "odd_object", Odd())
    asked.clear()
    with guard:
        pass
    assert asked == []


# -- foreign writers are not hurt


def test_a_writer_on_another_thread_is_reported_there(guard, metal, reports):
    """Whichever thread it is, it does not raise."""
    threads = []
    with LimitGuard(
        lambda limit: (reports.append(limit), threads.append(threading.get_ident())),
        baseline=lambda: BASELINE,
    ):
        answers = []
        writer = threading.Thread(target=lambda: answers.append(mx.set_wired_limit(600)))
        writer.start()
        writer.join()
        assert threads == [writer.ident]
    assert answers == [BASELINE]
    assert reports == [600]
    assert metal.writes == []


@pytest.mark.parametrize("nonsense", [None, "much", float("nan"), object(), -1])
def test_no_argument_makes_it_raise(guard, metal, reports, nonsense):
    """A number is reported as it is, anything else as 0."""
    with guard:
        assert mx.set_wired_limit(nonsense) == BASELINE
        assert mx.set_wired_limit(limit=nonsense) == BASELINE
        assert mx.set_wired_limit() == BASELINE
    assert reports == [*[-1 if nonsense == -1 else 0] * 2, 0]
    assert metal.writes == []


def test_what_the_owners_callbacks_raise_does_not_reach_the_writer(metal, model):
    """A trio loop that has ended raises in `report`; the foreign generator goes on."""

    def broken(*_):
        raise RuntimeError("the loop has ended")

    with LimitGuard(broken, baseline=broken):
        assert mx.set_wired_limit(5) == 0
        assert len(texts(model)) == 3
    assert metal.writes == []


# -- the owner


def test_the_owners_write_reaches_mlx_and_is_not_reported(guard, metal, reports):
    """It goes to the function that was there when it was guarded, and returns its answer."""
    with guard:
        assert guard.write(500) == 0
        assert guard.write(600) == 500
    assert metal.writes == [500, 600]
    assert reports == []


def test_the_owner_may_write_without_the_guard(guard, metal):
    """Before and after: then there is nobody to pass."""
    guard.write(1)
    with guard:
        guard.write(2)
    guard.write(3)
    assert metal.writes == [1, 2, 3]


def test_a_users_backend_may_write_as_the_owner(guard, metal, reports):
    """Inside `owner()` it calls MLX itself, and reaches it; other threads do not."""
    with guard:
        with guard.owner():
            assert mx.set_wired_limit(500) == 0
            writer = threading.Thread(target=mx.set_wired_limit, args=(600,))
            writer.start()
            writer.join()
        mx.set_wired_limit(700)
    assert metal.writes == [500]
    assert reports == [600, 700]


def test_a_batch_collected_while_the_owner_writes_is_kept_off(guard, metal, reports, model):
    """A collection in the midst of a backend's write runs mlx-lm's code on the owner's thread."""
    batch = generate.BatchGenerator(model)
    batch.cycle = batch
    with guard, guard.owner():
        mx.set_wired_limit(500)
        del batch
        gc.collect()
    assert metal.writes == [MAXIMUM, 500]
    assert reports == [0]


# -- one guard, and one that takes


def test_two_guards_at_once_are_refused(guard, metal, reports):
    """A process has one wired limit; the first guard stays."""
    with guard:
        for second in (LimitGuard(reports.append, baseline=lambda: 0), guard):
            with pytest.raises(GuardError, match="already"):
                second.install()
        second = LimitGuard(reports.append, baseline=lambda: 0)
        second.remove()
        mx.set_wired_limit(5)
    assert metal.writes == []
    assert reports == [5]


@pytest.mark.parametrize("name", ["mlx_lm.utils", "mlx_lm.generate"])
def test_an_mlx_lm_without_the_helper_is_refused(guard, metal, monkeypatch, name):
    """The error names what is installed and what is supported, and nothing is changed."""
    monkeypatch.delattr(importlib.import_module(name), HELPER)
    meta_path = list(sys.meta_path)
    with pytest.raises(GuardError) as caught:
        guard.install()
    message = str(caught.value)
    assert isinstance(caught.value, WiredMemoryError)
    assert importlib.metadata.version("mlx-lm") in message
    assert ">=0.32.2,<0.33" in message
    assert f"{name}.{HELPER}" in message
    assert mx.set_wired_limit == metal.set_wired_limit
    assert sys.meta_path == meta_path


# -- imports that come later


def test_what_is_imported_later_is_guarded_when_it_comes():
    """mlx and mlx-lm are loaded after the guard, guarded, and put back; specs do not show it."""
    run_python("""
        import sys
        from wiredactors.engine.guard import LimitGuard
        reports = []
        guard = LimitGuard(reports.append, baseline=lambda: 7)
        guard.install()
        assert not [name for name in sys.modules if name.partition(".")[0] in ("mlx", "mlx_lm")]

        from mlx.core import set_wired_limit
        import mlx.core as mx
        assert mx.set_wired_limit(5) == 7 and set_wired_limit(6) == 7
        assert mx.metal.set_wired_limit(8) == 7
        assert reports == [5, 6, 8], reports

        import importlib
        server = importlib.import_module("mlx_lm.server")
        utils, generate = sys.modules["mlx_lm.utils"], sys.modules["mlx_lm.generate"]
        mx.device_info = lambda *_: {"max_recommended_working_set_size": 1000}
        for module in (utils, generate, server):
            assert module.maybe_set_recommended_wired_limit() is None
        assert reports[3:] == [1000] * 3, reports
        assert guard.write(0) == 0

        kept = mx.set_wired_limit
        guard.remove()
        assert type(mx.set_wired_limit).__name__ == "nb_func" != type(kept).__name__
        assert set_wired_limit is mx.set_wired_limit
        assert type(mx.metal.set_wired_limit).__name__ == "nb_func"
        helper = utils.maybe_set_recommended_wired_limit
        assert helper.__code__.co_filename == utils.__file__
        assert generate.maybe_set_recommended_wired_limit is helper
        assert server.maybe_set_recommended_wired_limit is helper
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "mlx_lm" or name == "mlx.core":
                loader = type(module.__loader__).__module__
                assert not loader.startswith("wiredactors"), name
                assert module.__spec__.loader is module.__loader__, name
        assert not any(type(f).__module__.startswith("wiredactors") for f in sys.meta_path)
    """)


def test_reloading_mlx_lm_is_guarded():
    """A reload makes a new helper, which is guarded as the old one was, and put back."""
    run_python("""
        import importlib
        from wiredactors.engine.guard import LimitGuard
        from wiredactors.engine.imports import import_mlx, import_mlx_lm
        mx, utils, generate = import_mlx(), import_mlx_lm("utils"), import_mlx_lm("generate")
        mx.device_info = lambda *_: {"max_recommended_working_set_size": 1000}
        old = utils.maybe_set_recommended_wired_limit
        reports = []
        with LimitGuard(reports.append, baseline=lambda: 7):
            importlib.reload(utils)
            assert utils.maybe_set_recommended_wired_limit() is None
            assert generate.maybe_set_recommended_wired_limit() is None
        assert reports == [1000, 1000]
        assert generate.maybe_set_recommended_wired_limit is old
        new = utils.maybe_set_recommended_wired_limit
        assert new is not old and type(new) is type(old)
    """)


def test_the_owners_first_write_imports_mlx_guarded():
    """Whoever writes first needs MLX; the import is guarded as any other."""
    run_python("""
        import sys
        from wiredactors.engine.guard import LimitGuard
        reports = []
        with LimitGuard(reports.append, baseline=lambda: 7) as guard:
            assert "mlx.core" not in sys.modules
            assert guard.write(0) == 0
            assert sys.modules["mlx.core"].set_wired_limit(3) == 7
        assert reports == [3], reports
    """)


def test_an_mlx_that_came_past_the_hook_is_guarded_by_the_owners_first_write():
    """Somebody's own finder may stand before ours; the first write looks again."""
    run_python("""
        import importlib.machinery, sys
        from wiredactors.engine.guard import LimitGuard
        reports = []
        with LimitGuard(reports.append, baseline=lambda: 7) as guard:
            sys.meta_path.insert(0, importlib.machinery.PathFinder)
            guard.write(0)
            assert sys.modules["mlx.core"].set_wired_limit(3) == 7
        assert reports == [3], reports
    """)


def test_an_mlx_lm_without_the_helper_is_refused_when_it_is_imported(tmp_path):
    """The error comes out of that import, and mlx stays guarded."""
    package = tmp_path / "mlx_lm"
    package.mkdir()
    (package / "__init__.py").write_text("from . import utils\n")
    (package / "utils.py").write_text("import mlx.core as mx\n")
    run_python(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from wiredactors.engine.guard import GuardError, LimitGuard
        reports = []
        with LimitGuard(reports.append, baseline=lambda: 7):
            try:
                import mlx_lm
            except GuardError as error:
                assert "mlx_lm.utils.{HELPER}" in str(error), error
            else:
                raise AssertionError("imported")
            assert "mlx_lm.utils" not in sys.modules
            assert sys.modules["mlx.core"].set_wired_limit(3) == 7
    """)


def test_an_import_that_is_under_way_on_another_thread_is_waited_for(tmp_path):
    """A half imported mlx_lm.utils has no helper yet: neither an error nor a way past."""
    package = tmp_path / "mlx_lm"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "utils.py").write_text(
        textwrap.dedent(f"""
            import time
            import gate
            gate.begun.set()
            time.sleep(0.3)
            def {HELPER}():
                raise AssertionError("reached")
        """)
    )
    (tmp_path / "gate.py").write_text("import threading\nbegun = threading.Event()\n")
    run_python(f"""
        import importlib, sys, threading
        sys.path.insert(0, {str(tmp_path)!r})
        import gate
        from wiredactors.engine.guard import LimitGuard
        thread = threading.Thread(target=importlib.import_module, args=("mlx_lm.utils",))
        thread.start()
        gate.begun.wait()
        with LimitGuard(print, baseline=lambda: 7):
            assert sys.modules["mlx_lm.utils"].{HELPER}() is None
        thread.join()
    """)


def test_an_import_that_outlives_the_guard_is_left_as_it_is(tmp_path):
    """A module that took our stand-in and is executed only after the guard has gone."""
    package = tmp_path / "mlx_lm"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "utils.py").write_text(f"def {HELPER}():\n    return 1\n")
    (package / "generate.py").write_text(
        f"from .utils import {HELPER} as taken\n"
        "import gate\n"
        "gate.guard.remove()\n"
        f"{HELPER} = taken\n"
    )
    (tmp_path / "gate.py").write_text(
        "from wiredactors.engine.guard import LimitGuard\n"
        "guard = LimitGuard(print, baseline=lambda: 7)\n"
    )
    run_python(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import gate
        gate.guard.install()
        import mlx_lm.generate, mlx_lm.utils
        assert mlx_lm.generate.{HELPER} is mlx_lm.utils.{HELPER}
        assert mlx_lm.utils.{HELPER}() == 1
    """)
