"""Bodies of requests: what is understood, and what is refused by name.

In: the bytes of a body. Out: a `CompletionBody`, `ChatBody` or another one. Invariant: nothing a client asked for is
ignored: a field is applied, has its neutral value, or the answer is 400 and names it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator

from blockc_runtime.server.errors import echo, invalid

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_PROMPTS = 64
MAX_INPUTS = 2048  # texts of one call for embeddings
MAX_CHOICES = 128  # answers of one call, those of `best_of` that are not shown included
MAX_BIASES = 1024
MAX_SESSION_TTL_S = 600
MAX_MESSAGES = 4096  # of their parts and calls, too: they are checked and rendered on the event loop
MAX_TOOLS = 128
MAX_NAME_CHARS = 64
_MAX_FIELDS = 100

# Fields of OpenAI's and vLLM's APIs that this server does not act on, with the values that ask for
# nothing. An absent field and null are always fine.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "continue_final_message": (False,),
    "detokenize": (True,),
    "documents": ([],),
    "early_stopping": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_NEUTRAL_IN_MESSAGES: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
}

_TEXT = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _prompts(most: int) -> dict[str, Any]:
    texts, ids = ({"type": "array", "items": item, "minItems": 1, "maxItems": most} for item in (_TEXT, _IDS))
    return {"anyOf": [_TEXT, texts, _IDS, ids]}


_Bias = Annotated[float, Field(ge=-100, le=100)]
_Stops = str | Annotated[list[str], Field(fail_fast=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(_Body):
    """``include_usage``: a last chunk with the token counts; ``continuous_usage_stats``: in each chunk those so far."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchemaFormat(_Body):
    """A schema by its name. ``strict`` or not, it is followed."""

    name: Annotated[str, Field(max_length=64)] = ""
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(_Body):
    """What an answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


_Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024, fail_fast=True)]


class StructuredOutputs(_Body):
    """VLLM's own form; exactly one of its fields."""

    json_: Annotated[str | dict[str, Any] | None, Field(alias="json")] = None
    regex: str | None = None
    choice: _Choices | None = None
    grammar: str | None = None
    json_object: Literal[True] | None = None


class _Generation(_Body):
    """Fields that both routes have. None: as the model's generation config says."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[str, _Bias], Field(max_length=MAX_BIASES)] = {}
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    min_tokens: Annotated[int, Field(ge=0)] = 0
    stop: _Stops = []
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOPS, fail_fast=True)] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # What vLLM called the fields of `structured_outputs` before.
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: _Choices | None = None
    guided_grammar: str | None = None
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    # Among the tenant's own requests the lowest goes first, as in vLLM. Without one, the app's own.
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    # More of this session will come within so many seconds: what it has computed is kept until then, if it can be.
    session_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    session_ttl: Annotated[float, Field(gt=0, le=MAX_SESSION_TTL_S)] = 60.0
    # Labels of the client's own; they change nothing and are not kept.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None

    @field_validator("stop")
    @classmethod
    def _stops_are_bounded(cls, value: _Stops) -> list[str]:
        stops = [value] if isinstance(value, str) else value
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings are allowed")
        if any(not 1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
            raise ValueError(f"a stop string has 1 to {MAX_STOP_CHARS} characters")
        return stops


class CompletionBody(_Generation):
    """``/v1/completions``. ``prompt`` is checked where it is turned into tokens."""

    prompt: Annotated[Any, WithJsonSchema(_prompts(MAX_PROMPTS))]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool = False
    add_special_tokens: bool = True


class TokenizeBody(_Body):
    """``/tokenize``: ``prompt`` as text, or ``messages`` as a chat would show them to the model."""

    model: str
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] = []
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = {}
    return_token_strs: bool = False


class DetokenizeBody(_Body):
    """``/detokenize``."""

    model: str
    tokens: Annotated[list[int], Field(fail_fast=True)]


class ClassifyBody(_Body):
    """``/v1/classify``. ``input`` is checked where it is turned into tokens."""

    model: str
    input: Annotated[Any, WithJsonSchema(_prompts(MAX_PROMPTS))]
    add_special_tokens: bool = True
    user: str | None = None


class EmbeddingBody(_Body):
    """``/v1/embeddings``. ``input`` is checked where it is turned into tokens, ``dimensions`` against the model."""

    model: str
    input: Annotated[Any, WithJsonSchema(_prompts(MAX_INPUTS))]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    add_special_tokens: bool = True
    user: str | None = None


class TextPart(_Body):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(_Body):
    """What an assistant called. ``arguments``: JSON as text, as it was answered."""

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)]
    arguments: str


class CallOfAssistant(_Body):
    """One call in a message of an assistant."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Function(_Body):
    """A function that a model may call. ``strict`` or not, calls that have to come follow its schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    """A tool; functions are all there are."""

    type: Literal["function"]
    function: Function


class FunctionName(_Body):
    """One of the functions, by its name."""

    name: str


class NamedChoice(_Body):
    """The function that has to be called."""

    type: Literal["function"]
    function: FunctionName


class ChatMessage(_Body):
    """One message; what roles mean is up to the model's template."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[CallOfAssistant], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None


class ChatBody(_Generation):
    """``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] = []
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] = {}


class LoadAdapterBody(_Body):
    """VLLM's. ``base_model_name``: the base or fine-tune of the spec that it was made of, where there are several."""

    lora_name: str
    lora_path: str
    load_inplace: Literal[False] = False
    base_model_name: str | None = None


class UnloadAdapterBody(_Body):
    """VLLM's. Its numbers of adapters mean nothing here."""

    lora_name: str
    lora_int_id: int | None = None


_BodyT = TypeVar("_BodyT", bound=_Body)


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object of a body, without the keys that are null."""
    try:
        value = pydantic_core.from_json(data, allow_inf_nan=True)
    except ValueError:
        raise invalid("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise invalid("the body is not a JSON object")
    if len(value) > _MAX_FIELDS:
        raise invalid(f"the body has {len(value)} fields; at most {_MAX_FIELDS} can have a meaning")
    return {key: item for key, item in value.items() if item is not None}


def model_name(body: dict[str, Any]) -> str:
    """Return ``model``, which is looked at before everything else in a body."""
    name = body.get("model")
    if not isinstance(name, str):
        raise invalid("`model` must be a string", param="model")
    return name


def validate(kind: type[_BodyT], body: dict[str, Any]) -> _BodyT:
    """Check a whole body. Raises a 400 that names the first field that is wrong."""
    fields = _without_neutral(body, _NEUTRAL, "")
    messages = fields.get("messages")
    if isinstance(messages, list) and len(messages) <= MAX_MESSAGES:
        _check_parts(messages)
        fields["messages"] = [
            _without_neutral(message, _NEUTRAL_IN_MESSAGES, f"messages.{index}.")
            if isinstance(message, dict)
            else message
            for index, message in enumerate(messages)
        ]
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Parts such as `list[TextPart]` name branches of a union, not fields.
        path = [str(part) for part in first["loc"] if "[" not in str(part) and part != "str"]
        param = echo(".".join(path))
        if first["type"] == "extra_forbidden":
            raise invalid(f"`{param}` is not supported", param=param) from None
        why = first["msg"].removeprefix("Value error, ")  # pydantic's words before ours
        raise invalid(f"`{param}`: {echo(why)}", param=param) from None


def _check_parts(messages: list[Any]) -> None:
    for name in ("content", "tool_calls"):
        lists = (message.get(name) for message in messages if isinstance(message, dict))
        if (count := sum(len(items) for items in lists if isinstance(items, list))) > MAX_MESSAGES:
            message = f"`messages` have {count} entries of `{name}`; at most {MAX_MESSAGES} are allowed"
            raise invalid(message, param="messages")


def _without_neutral(fields: dict[str, Any], neutral: dict[str, tuple[object, ...]], where: str) -> dict[str, Any]:
    kept = {}
    for key, value in fields.items():
        if value is None:
            continue
        if key not in neutral:
            kept[key] = value
        elif not _is_one_of(value, neutral[key]):
            param = f"{where}{key}"
            raise invalid(f"`{param}` is not supported", param=param)
    return kept


def _is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    return any(type(value) is type(item) and value == item for item in allowed)
