"""Any text is a place or a clear error; any JSON is a schema or a clear error."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from fuzz.common import JSON, examples
from hypothesis import given
from hypothesis import strategies as st

import chreode as ch
from chreode.schema import ROLES, Spec

FIELDS = [field.name for field in dataclasses.fields(ch.Schema)]
NAMES = st.text(max_size=6) | st.sampled_from(["", "counts", "a/b", "a:b", "X", "obs", "é", " "])
SLOTS = st.sampled_from(["X", "raw", "layers", "obs", "obsm", "varm", "x", ""])
PLACES = st.one_of(
    st.text(max_size=12),
    st.builds("{}/{}".format, SLOTS, NAMES),
    st.builds("{}:{}/{}".format, NAMES, SLOTS, NAMES),
    st.builds("{}:{}".format, NAMES, SLOTS),
)
VALUES = JSON | PLACES | st.lists(PLACES, max_size=3)
PLACED = st.none() | PLACES | st.lists(PLACES, max_size=3).map(tuple)


@examples(200)
@given(PLACES | JSON)
def test_a_place_is_spelled_as_it_was_read(text):
    with contextlib.suppress(ch.SchemaError):
        place = ch.Place.parse(text)
        assert str(place) == text
        assert ch.Place.parse(str(place)) == place
        assert place.slot in ("X", "raw", "layers", "obs", "obsm")
        assert bool(place.key) == (place.slot not in ("X", "raw"))


@examples(200)
@given(st.dictionaries(st.sampled_from(FIELDS) | NAMES, VALUES, max_size=6))
def test_a_schema_survives_json(roles):
    with contextlib.suppress(ch.SchemaError):
        schema = ch.Schema.from_dict(roles)
        told = json.dumps(schema.as_dict())
        assert ch.Schema.from_dict(json.loads(told)) == schema
        assert all(role.partition("/")[0] in ROLES for role, _ in schema.places())
        assert len(dict(schema.places())) == len(schema.places())


@examples(100)
@given(st.data())
def test_a_changed_schema_is_that_written_at_once(data):
    first, second = (
        data.draw(st.dictionaries(st.sampled_from(FIELDS), PLACED, max_size=3)) for _ in range(2)
    )
    try:
        at_once = ch.Schema.from_dict(first | second)
    except ch.SchemaError:
        return
    with contextlib.suppress(ch.SchemaError):  # as `control` before its `perturbation`
        step_by_step = ch.Schema.from_dict(first)
        assert step_by_step.with_(**second) == at_once
        assert step_by_step == ch.Schema.from_dict(first)


@examples(100)
@given(JSON | st.fixed_dictionaries({f.name: JSON for f in dataclasses.fields(Spec)}))
def test_a_spec_survives_json(values):
    with contextlib.suppress(ch.SchemaError):
        spec = Spec.from_dict(values)
        assert Spec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
        assert len(spec.hash) == 16
