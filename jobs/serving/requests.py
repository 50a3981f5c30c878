"""Reads a request to `/caption`: images, decoding options, a captioner. It can have one of these forms:

    POST /caption  Content-Type: image/jpeg           the file itself; options in the query
    POST /caption  Content-Type: multipart/form-data  files as `image`; options as fields, or in the query
    POST /caption  Content-Type: application/json     {"image": BASE64} or {"images": […]} or {"urls": […]}, and options

One image is answered with one object; `images`, `urls` or several files with `{"results": […]}`, in their order,
each an object or an error.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from jobs.serving.request_errors import RequestError
from jobs.serving.settings import LimitSettings

_FORMS = "Send an image as the body (Content-Type: image/…), as the file `image` of a form, or as JSON."


class Options(pydantic.BaseModel):
    """How to caption the images. Options that are not given are the captioner's own."""

    model_config = pydantic.ConfigDict(extra="forbid")

    model: str | None = pydantic.Field(None, description="Which captioner, where several are served: see /models.")
    beam_size: int | None = pydantic.Field(None, ge=1, description="Hypotheses kept; 1 is greedy search.")
    max_new_tokens: int | None = pydantic.Field(None, ge=1, description="Maximum tokens of a caption.")
    repetition_penalty: float | None = pydantic.Field(
        None, gt=0, le=100, allow_inf_nan=False, description="Values above 1 discourage repetition."
    )
    prompt: str | None = pydantic.Field(None, max_length=500, description="Words that the caption continues.")
    num_alternatives: int | None = pydantic.Field(
        None, ge=1, description="How many of the best captions to return; at most beam_size."
    )
    attention: bool = pydantic.Field(False, description="Also return where the captioner looked for each word.")

    def decoding(self) -> dict[str, Any]:
        """The given decoding settings, by the names of `DecodingSettings`."""
        given = {
            "beam_size": self.beam_size,
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "prompt": self.prompt or None,
            "num_captions": self.num_alternatives,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class CaptionRequest:
    """A parsed request; an image is its bytes, or the web address (str) to fetch it from."""

    images: tuple[bytes | str, ...]
    multiple: bool
    options: Options


async def read_request(request: Request, limits: LimitSettings) -> CaptionRequest:
    """Parse `request` and check it against `limits`. Raises `RequestError`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    given: dict[str, Any] = dict(request.query_params)
    images: list[bytes | str]
    body = await _body(request, limits)
    if kind == "application/json":
        images, multiple, more = _json(body)
        given |= more
    elif kind == "multipart/form-data":
        images, more = await _form(request, body)
        multiple = len(images) > 1
        given |= more
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images, multiple = [body], False
    else:
        raise RequestError(415, "request", f"Content-Type {kind or '(none)'} is not supported. {_FORMS}")
    if not images:
        raise RequestError(400, "request", f"The request contains no image. {_FORMS}")
    if len(images) > limits.max_images:
        raise RequestError(
            413, "too_large", f"The request contains {len(images)} images; the limit is {limits.max_images}."
        )
    if sum(len(image) for image in images if isinstance(image, bytes)) > limits.max_bytes:
        raise _too_large(limits.max_bytes)
    options = _options(given)
    _check(options, limits)
    return CaptionRequest(tuple(images), multiple, options)


async def _body(request: Request, limits: LimitSettings) -> bytes:
    # The message names the limit on images; the body's limit leaves room for what is around them.
    promised = request.headers.get("content-length", "")
    if promised.isdecimal() and int(promised) > limits.max_body_bytes:
        raise _too_large(limits.max_bytes)
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limits.max_body_bytes:
                raise _too_large(limits.max_bytes)
            pieces.append(piece)
    except ClientDisconnect as error:
        raise RequestError(400, "request", "The upload was interrupted.") from error
    return b"".join(pieces)


async def _form(request: Request, body: bytes) -> tuple[list[bytes | str], dict[str, Any]]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    images: list[bytes | str] = []
    given: dict[str, Any] = {}
    try:
        # The caller checks the number of images, with a better message.
        async with Request(request.scope, receive).form(max_files=math.inf, max_fields=20) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    images.append(await value.read())
                else:
                    given[name] = value
    except (HTTPException, MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "detail", None) or getattr(error, "message", None) or str(error)
        raise RequestError(400, "request", f"The form cannot be read: {reason}") from error
    return images, given


def _json(body: bytes) -> tuple[list[bytes | str], bool, dict[str, Any]]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "request", "The body is not valid JSON, despite its Content-Type.") from error
    if not isinstance(given, dict):
        raise RequestError(422, "request", 'The JSON must be an object such as {"image": "BASE64"}.')
    sources = [name for name in ("image", "images", "urls") if name in given]
    if len(sources) != 1:
        raise RequestError(
            422, "request", "The JSON must have exactly one of image (base64), images (a list) and urls (a list)."
        )
    name = sources[0]
    value = given.pop(name)
    values = [value] if name == "image" else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        what = "a base64 string" if name == "image" else "a list of strings"
        raise RequestError(422, "request", f"{name} must be {what}.")
    return [each if name == "urls" else _decoded(each) for each in values], name != "image", given


def _decoded(text: str) -> bytes:
    """Base64, or a data: URL of it."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, "request", "An image is not valid base64. (Web addresses go into urls.)") from error


def _options(given: Mapping[str, Any]) -> Options:
    given = {name: value for name, value in given.items() if value != ""}
    try:
        return Options.model_validate(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(Options.model_fields)
        unknown = first["type"] == "extra_forbidden"
        why = f"is unknown. Valid options: {known}" if unknown else f"is invalid: {first['msg']}"
        raise RequestError(422, "settings", f"The option {name[:80]} {why}.") from error


def _check(options: Options, limits: LimitSettings) -> None:
    for name, most in (("beam_size", limits.max_beam_size), ("max_new_tokens", limits.max_new_tokens)):
        value = getattr(options, name)
        if value is not None and value > most:
            raise RequestError(422, "settings", f"{name} is {value}; this server allows at most {most}.")


def _too_large(limit: int) -> RequestError:
    return RequestError(413, "too_large", f"The request is larger than {limit >> 20} MiB. Scale the image down.")
