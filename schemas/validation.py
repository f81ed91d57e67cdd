"""What a kind's structs say, put to use: validation of every field in words, and JSON Schema for forms and documents."""

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from schemas.credentials import Credentials
from schemas.kinds import KindSpec, field_hints
from schemas.problems import FieldError

_MAX_PORT = 65535
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def validate_config(
    spec: KindSpec, raw: Mapping[str, Any], *, at: str = "/config", is_partial: bool = False
) -> tuple[dict[str, Any], list[FieldError]]:
    """The config with its defaults filled in, and every wrong field; is_partial: absent fields are no fault (discovery)."""
    values, errors = _validate(spec.config, raw, at, is_partial)
    options = values.get("options")
    if isinstance(options, str) and options:
        errors += _option_errors(options, spec.mount_options, f"{at}/options")
    return values, errors


def validate_credentials(
    spec: KindSpec, raw: Mapping[str, Any], *, at: str = "/credentials", is_partial: bool = False
) -> tuple[Credentials, list[FieldError]]:
    """The credentials, and every wrong field in words that never repeat a value.

    Blank fields count as absent: blank keeps (on an edit), all blank is guest. is_partial: an edit
    may give the password alone.
    """
    given = {key: value for key, value in raw.items() if value not in ("", None)}
    if spec.credentials is None:
        return Credentials({}), [FieldError(pointer=at, detail=f"{spec.title} takes no credentials")] if given else []
    if not given:
        return Credentials({}), []
    values, errors = _validate(spec.credentials, given, at, is_partial)
    return Credentials({key: value for key, value in values.items() if isinstance(value, str) and value}), errors


def fixed_fields(spec: KindSpec) -> frozenset[str]:
    """Names of the config fields that no edit may change."""
    return frozenset(name for name, extra in _extras(spec.config).items() if extra.get("change") == "fixed")


def remount_fields(spec: KindSpec) -> frozenset[str]:
    """Names of the config fields whose change takes a new mount or login."""
    return frozenset(name for name, extra in _extras(spec.config).items() if extra.get("change") == "remount")


def json_schema(struct: type[msgspec.Struct], title: str = "") -> dict[str, Any]:
    """JSON Schema 2020-12 of a config or credentials struct, self-contained, with `x-ui` hints at each property."""
    _, components = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = dict(components[struct.__name__])
    schema["title"] = title or schema["title"]
    extras = _extras(struct)
    for name, prop in schema["properties"].items():
        extra = extras[name]
        if "enum" in prop:
            prop["type"] = "string"
        prop["x-ui"] = {"advanced": extra["advanced"], "change": extra["change"], "placeholder": extra["placeholder"]}
        if extra["error"]:
            prop["x-error"] = extra["error"]
        if extra["secret"]:
            prop |= {"writeOnly": True, "format": "password"}
        if other := extra.get("goes_with"):
            schema.setdefault("dependentRequired", {})[name] = [other]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _extras(struct: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType), "a kind is described by structs"
    for field in info.fields:
        extra = cast("dict[str, Any] | None", getattr(field.type, "extra", None))
        found[field.encode_name] = extra or field_hints("live")
    return found


def _validate(
    struct: type[msgspec.Struct], raw: Mapping[str, Any], at: str, is_partial: bool
) -> tuple[dict[str, Any], list[FieldError]]:
    """Field by field, because msgspec stops at the first error (ui/NOTES.md, trap 8)."""
    errors: list[FieldError] = []
    values: dict[str, Any] = {}
    extras = _extras(struct)
    fields = msgspec.structs.fields(struct)
    known = {field.encode_name for field in fields}
    words = f"is not a field here; known are {', '.join(sorted(known))}"
    errors += [FieldError(pointer=f"{at}/{_escape(key)}", detail=words) for key in raw if key not in known]
    for field in fields:
        name = field.encode_name
        pointer = f"{at}/{name}"
        if name not in raw:
            if not is_partial and field.required:
                errors.append(FieldError(pointer=pointer, detail="is required"))
            elif not is_partial:
                values[name] = field.default
            continue
        try:
            value = msgspec.convert(raw[name], field.type)
        except msgspec.ValidationError:
            errors.append(FieldError(pointer=pointer, detail=_words(field.type, extras[name]["error"], raw[name])))
            continue
        if isinstance(value, str) and _CONTROL.search(value):
            errors.append(FieldError(pointer=pointer, detail="must not contain control characters or line breaks"))
            continue
        if isinstance(value, str) and value.startswith("-") and not extras[name]["secret"]:
            errors.append(FieldError(pointer=pointer, detail="must not begin with -"))
            continue
        values[name] = value
    if not is_partial:
        errors += [
            FieldError(pointer=f"{at}/{other}", detail=f"is required with {name}")
            for name, extra in extras.items()
            if (other := extra.get("goes_with")) and name in raw and other not in raw
        ]
    return values, errors


def _words(type_: Any, message: str, value: object) -> str:
    """What is wrong with the value, which is not repeated: the type before the length, and that before the rest."""
    info = msgspec.inspect.type_info(type_)
    if isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    if isinstance(info, msgspec.inspect.StrType):
        if not isinstance(value, str):
            return "must be text"
        if info.max_length is not None and len(value) > info.max_length:
            return f"must be text of at most {info.max_length} characters"
    if message:
        return message
    if isinstance(info, msgspec.inspect.LiteralType):
        return f"must be one of {', '.join(map(str, info.values))}"
    if isinstance(info, msgspec.inspect.BoolType):
        return "must be true or false"
    return "has the wrong type"


def _option_errors(options: str, allowed: frozenset[str], at: str) -> list[FieldError]:
    """Names only, never values: somebody may have typed `password=…` here."""
    errors: list[FieldError] = []
    if any(option.strip() != option or not option for option in options.split(",")):
        return [FieldError(pointer=at, detail="must be options with one comma between two and without blanks")]
    for option in options.split(","):
        name, equals, value = option.partition("=")
        is_right = (
            (name + equals in allowed and (not equals or re.fullmatch(r"[A-Za-z0-9_.:/-]+", value)))
            or (f"{name}{equals}#" in allowed and re.fullmatch(r"[0-9]{1,10}", value)
                and not (name.endswith("port") and int(value) > _MAX_PORT))
        )  # fmt: skip
        if not is_right:
            shown = name if re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", name) else "(unreadable)"
            errors.append(FieldError(pointer=at, detail=f"option {shown} is not allowed here, or its value is not"))
    return errors


def _escape(key: str) -> str:
    """RFC 6901; an unknown key is cut, for somebody may have pasted anything there."""
    return key[:64].replace("~", "~0").replace("/", "~1")
