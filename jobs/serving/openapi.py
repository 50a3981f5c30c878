"""The OpenAPI description of `/caption`: request bodies, answers and errors. Nothing is validated with it."""

from typing import Any

import pydantic

from jobs.serving.requests import Options

_SCORE = "Mean log-probability per token, including the end token."


class Alternative(pydantic.BaseModel):
    """One of the n best captions."""

    caption: str
    score: float = pydantic.Field(description=_SCORE)


class Attention(pydantic.BaseModel):
    """Where the captioner looked for each word."""

    words: list[str]
    weights: list[list[list[float]]] = pydantic.Field(description="Words × rows × columns; each word's sum to 1.")
    box: list[float] = pydantic.Field(description="left, top, right, bottom of the grid, as fractions of the image.")


class Timing(pydantic.BaseModel):
    """Milliseconds that the image took, and the size of its batch."""

    decode_ms: float
    queue_ms: float
    model_ms: float
    total_ms: float
    batch_size: int


class Caption(pydantic.BaseModel):
    """The response for one image."""

    caption: str
    score: float = pydantic.Field(description=_SCORE)
    num_tokens: int
    alternatives: list[Alternative] = pydantic.Field(description="Best first, including the caption itself.")
    model: str
    width: int
    height: int
    attention: Attention | None = pydantic.Field(
        None, description="null unless requested, and for captioners without attention."
    )
    timing: Timing


class ErrorText(pydantic.BaseModel):
    """What is wrong."""

    model_config = pydantic.ConfigDict(populate_by_name=True)

    error_class: str = pydantic.Field(alias="class")
    message: str


class Refusal(pydantic.BaseModel):
    """An error instead of a caption."""

    error: ErrorText


class Results(pydantic.BaseModel):
    """The response for several images, in their order."""

    results: list[Caption | Refusal]


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": text}
    for status, text in {
        400: "The request cannot be read, or contains no image.",
        403: "A web address that this server is not allowed to fetch.",
        404: "A captioner that is not served.",
        413: "Too many bytes or images.",
        415: "A content type that is not supported.",
        422: "An image that cannot be decoded, or an option with an invalid value.",
        429: "Too many requests from this address: see Retry-After.",
        503: "Too many requests at once: see Retry-After.",
        504: "The request took too long.",
    }.items()
}

_OPTIONS: dict[str, Any] = Options.model_json_schema()["properties"]
_BASE64 = {"type": "string", "format": "byte", "description": "The image file in base64."}
_BINARY = {"type": "string", "format": "binary"}

REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "An image as a file of a form, as the body (with options in the query), or as JSON with image, "
    "images or urls.",
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": _BINARY, **_OPTIONS}}
        },
        "image/*": {"schema": _BINARY},
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": _BASE64,
                    "images": {"type": "array", "items": _BASE64},
                    "urls": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "If the server allows it.",
                    },
                    **_OPTIONS,
                },
            }
        },
    },
}
