"""One row's own caches, of a row that has steps of its own: how they are made and kept.

That is a row with `kv_bits` or `max_kv_size`, and any row of a model whose caches cannot be shared.
Its tokens are those of mlx-lm's `generate_step` with `quantized_kv_start=0`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from wiredactors.engine.cache import arrays_of
from wiredactors.engine.devices import device
from wiredactors.engine.graph import Unrecordable
from wiredactors.engine.imports import import_mlx, import_mlx_lm
from wiredactors.engine.modules import untouched
from wiredactors.engine.sizing import thinking_through
from wiredactors.engine.tracing import Tracer
from wiredactors.memory.errors import ModelLoadError
from wiredactors.scheduling.requests import CacheOptions


class Kept(Protocol):
    """`CacheOptions`, or what else says the same."""

    @property
    def kv_bits(self) -> int | None: ...

    @property
    def kv_group_size(self) -> int: ...

    @property
    def max_kv_size(self) -> int | None: ...


#: No model has so many heads of keys, for which it could take the rows of a mask (gemma2 does).
_TRIED_ROWS = 13

#: mlx-lm's modules that look at a token's place in the cache, which is not its position in a row
#: that is padded. One turns queries by it, the other cuts blocks at it.
_BOUND_TO_PLACES = frozenset({"afm7", "minimax_m3_vl"})

#: Makes empty caches of one row.
MakeCaches = Callable[[], list[Any]]


def make_caches(model: Any, options: Kept) -> list[Any]:
    """Empty caches of one row, as mlx-lm makes them."""
    caches: list[Any] = import_mlx_lm("models.cache").make_prompt_cache(model, options.max_kv_size)
    return caches


def quantize(caches: list[Any], options: Kept) -> None:
    """After each step of the row, before its evaluation: quantize what is not yet, in place.

    One layer at a time is made real, so that no more than two layers are alive as they were. Once
    all are quantized there is nothing to do: new tokens are quantized as they come.
    """
    if options.kv_bits is None:
        return
    mx = import_mlx()
    for place in range(len(caches)):  # enumerate would hold on to the one that goes
        if hasattr(caches[place], "to_quantized"):
            caches[place] = caches[place].to_quantized(
                group_size=options.kv_group_size, bits=options.kv_bits
            )
            mx.eval(arrays_of(caches[place]))


def quantize_unseen(caches: list[Any], options: Kept) -> None:
    """As `quantize`, with nothing evaluated."""
    import_mlx_lm("generate").maybe_quantize_kv_cache(
        caches,
        quantized_kv_start=0,
        kv_group_size=options.kv_group_size,
        kv_bits=options.kv_bits,
    )


def can_share(model: Any) -> bool:
    """Whether rows of the model can share steps, and leave them with what is theirs.

    Else each runs alone. It takes the time of building two steps' graphs; nothing is evaluated.
    """
    if type(model).__module__.rpartition(".")[2] in _BOUND_TO_PLACES:
        return False
    mx = import_mlx()
    rows = _TRIED_ROWS
    try:
        caches = [cache.merge([cache] * rows) for cache in make_caches(model, CacheOptions())]
        with untouched(model):
            for cache in caches:
                cache.prepare(lengths=[1, *[2] * (rows - 1)], right_padding=[1, *[0] * (rows - 1)])
            model(mx.zeros((rows, 2), mx.int32), cache=caches)
            for cache in caches:
                cache.finalize()
            model(mx.zeros((rows, 1), mx.int32), cache=caches)
        for cache in caches:
            # Some layers make no use of a cache, and an empty one cannot be taken out again.
            cache.extract(1)
    except Exception:  # whatever is wrong with it, alone it may go well
        return False
    return True


def check_cache_options(model: Any, options: CacheOptions) -> None:
    """Whether the model's rows can be kept so. Two steps are thought through, nothing evaluated.

    Raises:
        ValueError: mlx-lm would ignore an option, or the model cannot work with it.
    """
    if options.plain:
        return

    def make() -> list[Any]:
        return make_caches(model, options)

    check_kinds(model, options, make)
    if options.kv_bits is not None:
        check_packed(model, options, make)


def check_kinds(model: Any, options: Kept, make: MakeCaches) -> None:
    """Whether the model's kinds of cache go with the options.

    Raises:
        ValueError: mlx-lm would ignore an option, or refuse it.
    """
    if options.max_kv_size is not None and hasattr(model, "make_cache"):
        raise ValueError(
            f"max_kv_size={options.max_kv_size} would have no effect: {type(model).__module__} "
            "makes its own cache. Leave it out"
        )
    if options.kv_bits is None:
        return
    caches = make()
    kinds = {type(cache).__name__ for cache in caches}
    refusing: set[str] = set()
    for cache in caches:
        try:
            cache.to_quantized(bits=options.kv_bits)
        except NotImplementedError:  # mlx-lm's windows have the method, and only refuse in it
            refusing.add(type(cache).__name__)
        except AttributeError:  # mlx-lm leaves these as they are
            kinds.discard(type(cache).__name__)
    if refusing or not kinds:
        raise ValueError(
            f"kv_bits={options.kv_bits}: mlx-lm cannot quantize this model's cache "
            f"({', '.join(sorted(refusing or {type(cache).__name__ for cache in caches}))}). "
            "Leave kv_bits out"
        )


def check_packed(model: Any, options: Kept, make: MakeCaches) -> None:
    """Whether the model can read its cache once that is quantized, which some cannot.

    Raises:
        ValueError: it cannot.
    """
    tracer = Tracer(model, make(), device(), lambda caches: quantize_unseen(caches, options))
    try:
        with thinking_through(model):
            for _ in range(2):  # it is not read before the second step
                tracer.step(1, 1)
    except Unrecordable:  # only running it would tell
        return
    except ModelLoadError as error:
        raise ValueError(
            f"kv_bits={options.kv_bits}: this model cannot use a quantized cache "
            f"({error.__cause__}). Leave kv_bits out"
        ) from error
