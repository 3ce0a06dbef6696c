"""The official OpenAI client for Python against a running router. Prints one JSON object: the texts it got."""

import asyncio
import json
import os
import threading
import time

import openai

BASE, KEY, SLOW = os.environ["BASE_URL"], os.environ["API_KEY"], os.environ["SLOW_URL"]
QUESTION = os.environ["QUESTION"]
COMMON = {"model": "demo", "max_tokens": 60, "temperature": 0.8, "seed": 11}
MESSAGES = [{"role": "user", "content": QUESTION}]

client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=60)
slow = openai.OpenAI(base_url=SLOW, api_key="none", max_retries=0, timeout=60)


def refused(kind, param, call, code=None):
    """The call is refused with the client's own exception, naming the field."""
    try:
        call()
    except kind as error:
        assert error.param == param, (param, error.body)
        assert isinstance(error.body["message"], str) and error.body["type"], error.body
        assert code is None or error.code == code, error.body
        assert error.response.headers["x-request-id"], error.response.headers
        return error
    raise AssertionError(f"{kind.__name__} was expected for {param}")


def chat(**more):
    return client.chat.completions.create(**{**COMMON, "messages": MESSAGES, **more})


def models():
    listed = client.models.list().data
    assert [model.id for model in listed] == ["demo"], listed
    one = client.models.retrieve("demo")
    assert (one.object, one.owned_by, one.created) == ("model", "cascadia", listed[0].created)
    refused(openai.NotFoundError, "model", lambda: client.models.retrieve("gpt-4"), "model_not_found")


def whole():
    raw = client.chat.completions.with_raw_response.create(
        **COMMON, messages=MESSAGES, extra_headers={"x-request-id": "label-1"}
    )
    assert raw.headers["x-request-id"] == "label-1"
    answer = raw.parse()
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert choice.logprobs is None and choice.message.tool_calls is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens > 0
    assert answer.system_fingerprint.startswith("fp_")
    metrics = answer.model_extra["metrics"]
    speculative = metrics["speculative_decoding"]
    assert set(speculative) == {
        "mean_acceptance_length", "draft_acceptance_rate", "acceptance_histogram", "num_spec_tokens",
        "acceptance_histogram_by_draft_length", "num_spec_steps", "num_accepted_draft_tokens", "num_draft_tokens",
    }  # fmt: skip
    assert sum(speculative["acceptance_histogram"]) == speculative["num_spec_steps"] > 0
    by_length = speculative["acceptance_histogram_by_draft_length"]
    assert sum(int(k) * sum(row) for k, row in by_length.items()) == speculative["num_draft_tokens"]
    assert metrics["time_to_first_token_ms"] > 0 and metrics["tokens_per_second"] > 0
    own = answer.model_extra["cascadia"]
    assert (own["strategy"], own["seed"], own["reproducible"], own["request_id"]) == ("speculative", 11, True, "label-1")
    assert own["accepted"] + own["deferred"] == usage.completion_tokens
    return choice.message.content, answer.system_fingerprint


def streamed(text):
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1 and len({chunk.created for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    *content, last, usage = chunks
    assert all(chunk.choices[0].finish_reason is None and chunk.usage is None for chunk in content)
    assert last.choices[0].finish_reason == "stop" and last.choices[0].delta.content is None
    assert last.model_extra["cascadia"]["reproducible"] is True
    assert usage.choices == [] and usage.usage.completion_tokens > 0
    assert usage.model_extra["metrics"]["speculative_decoding"]["num_spec_steps"] > 0
    assert "".join(chunk.choices[0].delta.content for chunk in content) == text
    unasked = list(chat(stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in unasked)


def choices(text):
    answer = chat(n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.choices[0].message.content == text, "choice 0 of three is the only choice of one"
    assert answer.model_extra["metrics"] is None
    texts = {0: "", 1: "", 2: ""}
    for chunk in chat(n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in answer.choices}
    return texts[1]


def logprobs():
    content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.bytes is None or bytes(entry.bytes).decode("utf-8", "replace") == entry.token
    streamed = [e for chunk in chat(logprobs=True, stream=True) for e in (chunk.choices[0].logprobs or []) and chunk.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    assert all(entry.top_logprobs == [] for entry in streamed)
    older = client.completions.create(**COMMON, prompt="Mia has", logprobs=2).choices[0]
    scored = older.logprobs
    assert len(scored.tokens) == len(scored.token_logprobs) == len(scored.top_logprobs) == len(scored.text_offset)
    for token, offset in zip(scored.tokens, scored.text_offset):
        assert older.text[offset:].startswith(token) or offset == len(older.text), (token, offset)


def completions():
    one = client.completions.create(**COMMON, prompt="Mia has")
    assert one.object == "text_completion" and one.id.startswith("cmpl-")
    both = client.completions.create(**COMMON, prompt=["Mia has", "Tom has"], n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == one.choices[0].text
    assert both.usage.prompt_tokens == 2 * one.usage.prompt_tokens
    echo = client.completions.create(**COMMON, prompt="Mia has", echo=True)
    assert echo.choices[0].text == "Mia has" + one.choices[0].text
    parts = [chunk.choices[0].text for chunk in client.completions.create(**COMMON, prompt="Mia has", stream=True)]
    assert "".join(parts) == one.choices[0].text
    ids = client.completions.create(**COMMON, prompt=[[1, 474], [1, 225]])
    assert len(ids.choices) == 2
    stopped = chat(stop=["Answer"], temperature=0).choices[0]
    assert stopped.finish_reason == "stop" and "Answer" not in stopped.message.content
    short = chat(max_tokens=None, max_completion_tokens=3).choices[0]
    assert short.finish_reason == "length"
    banned = chat(temperature=0, max_tokens=1, logit_bias={"474": -100}, logprobs=True)
    assert banned.choices[0].logprobs.content[0].token != "Adding"


def extension(text):
    expert = chat(model="demo:expert")
    assert expert.choices[0].message.content == text, "speculative is exact"
    assert expert.model_extra["metrics"]["speculative_decoding"] is None
    object_ = chat(extra_body={"cascadia": {"rule": "token_v3", "alpha": 0.3, "draft_length": 4, "provenance": True}})
    named = chat(model="demo:token_v3@0.3")
    assert object_.choices[0].message.content == named.choices[0].message.content, "the draft length changes nothing"
    assert object_.model_extra["cascadia"]["rule"] == "token_v3" and object_.model == "demo"
    told = object_.choices[0].model_extra["cascadia"]
    assert len(told["provenance"]) == len(told["token_ids"]) == object_.usage.completion_tokens
    assert set(told["provenance"]) <= {"accepted", "relaxed", "deferred"}
    assert expert.system_fingerprint != named.system_fingerprint == object_.system_fingerprint
    seedless = chat(seed=None, extra_headers={"x-request-id": "again"})
    assert chat(seed=None, extra_headers={"x-request-id": "again"}).choices == seedless.choices
    ignored = chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True,
                   prompt_cache_key="c", safety_identifier="s", reasoning_effort="low", verbosity="low")  # fmt: skip
    assert ignored.choices[0].message.content == text


def errors():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    bad = openai.BadRequestError
    error = refused(bad, "tools", lambda: chat(tools=[tool]), "unsupported_parameter")
    assert error.response.headers["x-should-retry"] == "false"
    refused(bad, "response_format", lambda: chat(response_format={"type": "json_object"}))
    refused(bad, "future_field", lambda: chat(extra_body={"future_field": 1}), "unknown_parameter")
    refused(bad, "cascadia.speed", lambda: chat(extra_body={"cascadia": {"speed": 11}}), "unknown_parameter")
    refused(bad, "cascadia.rule", lambda: chat(extra_body={"cascadia": {"rule": "best"}}))
    refused(bad, "temperature", lambda: chat(temperature=-1))
    refused(bad, "stop", lambda: chat(stop=["a", "b", "c", "d", "e"]))
    refused(bad, "messages[0].content[0].type", lambda: chat(messages=[
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}]},
    ]))  # fmt: skip
    for words in (4_000, 40_000):  # Cut into too many tokens, and longer than any cut could be.
        long = [{"role": "user", "content": "many words " * words}]
        refused(bad, "messages", lambda: chat(messages=long), "context_length_exceeded")
    refused(openai.NotFoundError, "model", lambda: chat(model="gpt-4"), "model_not_found")
    wrong = client.with_options(api_key="wrong")
    refused(openai.AuthenticationError, None, lambda: wrong.models.list(), "invalid_api_key")
    wide = chat(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "text", "text": QUESTION},
    ]}])  # fmt: skip
    assert wide.choices[0].message.content


def slow_stream(**more):
    return slow.chat.completions.create(
        model="synthetic", messages=MESSAGES, max_tokens=3000, stream=True, **more
    )


def patience():
    """One session fits: the next is told when to come again, and does. Whoever leaves makes room."""
    occupant = slow_stream()
    next(iter(occupant))
    try:
        slow_stream()
        raise AssertionError("there was no room")
    except openai.RateLimitError as error:
        assert int(error.response.headers["retry-after"]) >= 1 and error.response.headers["retry-after-ms"]
        assert error.code == "rate_limit_exceeded"
    threading.Timer(1.5, occupant.close).start()
    again = slow.with_options(max_retries=20).chat.completions.create(
        model="synthetic", messages=MESSAGES, max_tokens=3
    )
    assert again.usage.completion_tokens == 3, "the client came again and was served"
    began = time.monotonic()
    try:
        slow.with_options(timeout=1).chat.completions.create(model="synthetic", messages=MESSAGES, max_tokens=3000)
        raise AssertionError("nothing takes so little time")
    except openai.APITimeoutError:
        assert time.monotonic() - began < 30
    # The one place is free as soon as the router sees that the client has gone.
    again = slow.with_options(max_retries=20).chat.completions.create(
        model="synthetic", messages=MESSAGES, max_tokens=3
    )
    assert again.usage.completion_tokens == 3


async def together(text):
    many = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=60)
    asked = [many.chat.completions.create(**COMMON, messages=MESSAGES) for _ in range(16)]
    assert {answer.choices[0].message.content for answer in await asyncio.gather(*asked)} == {text}


models()
text, fingerprint = whole()
streamed(text)
second = choices(text)
logprobs()
completions()
extension(text)
errors()
patience()
asyncio.run(together(text))
print(json.dumps({"text": text, "second": second, "fingerprint": fingerprint}))
