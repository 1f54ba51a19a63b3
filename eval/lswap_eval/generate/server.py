"""An OpenAI-compatible server as a generator, such as vLLM, SGLang, TGI or llama.cpp in its own process."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx

from lswap_core.errors import RecipeError, SourceError
from lswap_eval.generate.protocol import Completion, Decoding, cut
from lswap_eval.mgsm.prompts import Prompt

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses that may change with another attempt."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
_SHOWN = 200


class HttpGenerator:
    """Completes over HTTP: text with `/completions`, messages with `/chat/completions`, at most `concurrency` requests at a
    time.

    A request that is refused, too slow, cut off or answered with one of `RETRIED` is repeated, up to `attempts` attempts in
    all. It waits twice as long each time, or as long as the server asks. Raises SourceError, one line, where the server
    cannot be reached or refuses finally.

    url: up to and including `/v1`, if the server has one. model: the server's name for it; by default the first that it
    lists. key: sent as a bearer token, never logged. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        url: str,
        decoding: Decoding,
        *,
        model: str | None = None,
        key: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 600.0,
        attempts: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if concurrency < 1 or attempts < 1 or timeout_s <= 0:
            raise RecipeError(f"concurrency {concurrency}, attempts {attempts}, timeout {timeout_s} s; expected more than 0")
        self._url = url.rstrip("/")
        self._decoding = decoding
        self._attempts = attempts
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._jitter = random.Random(0)
        try:
            self._client = httpx.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=timeout_s,
                limits=httpx.Limits(max_connections=concurrency),
            )
            self.model = model or self._first_model()
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise RecipeError(f"--server {url!r} is no address: {error}; expected one like http://localhost:8000/v1") from None

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Generator`. The address is left out: a server may move while a run is interrupted."""
        return {"generator": "http", **self._decoding.to_json(), "served_model": self.model}

    def length(self, prompt: Prompt) -> int:
        """Length in characters, since only the server has the tokenizer."""
        return len(prompt.text or "") + sum(len(message["content"]) for message in prompt.messages or ())

    def complete(self, prompts: Sequence[Prompt], *, stop: Sequence[str], seed: int) -> list[Completion]:
        """See `Generator`. Servers take only a few stop strings; all of them are applied here too."""
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="lswap-http") as pool:
            asked = [pool.submit(self._complete, prompt, list(stop), seed) for prompt in prompts]
            try:
                return [future.result() for future in asked]
            except BaseException:  # Ctrl-C, too: no request of the rest is sent
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(self, prompt: Prompt, stop: list[str], seed: int) -> Completion:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self._decoding.max_new_tokens,
            "temperature": self._decoding.temperature,
        }
        if stop:
            body["stop"] = stop[:4]  # some servers reject more; `cut` applies them all
        if self._decoding.temperature:
            body["seed"] = seed
        if prompt.text is not None:
            answer = self._ask("POST", "/completions", body | {"prompt": prompt.text})
        else:
            answer = self._ask("POST", "/chat/completions", body | {"messages": list(prompt.messages or ())})
        try:
            choice = answer["choices"][0]
            said = choice["text"] if prompt.text is not None else choice["message"]["content"]
            text, stopped = cut(said or "", stop)  # a chat model that says nothing returns null
            reason = "stop" if stopped else str(choice.get("finish_reason") or "unknown")
            usage = answer.get("usage") or {}
            return Completion(text, reason, usage.get("prompt_tokens"), usage.get("completion_tokens"))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise SourceError(f"{self._url}: no completion in the answer ({error!r}): {answer!s:.{_SHOWN}}") from None

    def _first_model(self) -> str:
        listed = self._ask("GET", "/models", None)
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise SourceError(f"{self._url}/models lists no model: {listed!s:.{_SHOWN}}; name one with --served-model") from None

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        """Return the JSON of an answer, after as many attempts as it takes."""
        trouble = ""
        for attempt in range(self._attempts):
            asked_to_wait: float | None = None
            try:
                answer = self._client.request(method, self._url + path, json=body)
                if answer.status_code == 200:
                    return answer.json()
                trouble = f"answered {answer.status_code}: {' '.join(answer.text.split()):.{_SHOWN}}"
                if answer.status_code not in RETRIED:
                    raise SourceError(f"{self._url}{path} {trouble}")
                asked_to_wait = _retry_after_s(answer.headers.get("Retry-After"))
            except httpx.UnsupportedProtocol:
                raise
            except httpx.TimeoutException:
                trouble = f"took longer than {self._timeout_s:g} s"
            except httpx.TransportError as error:  # refused, reset, or cut off in the middle
                trouble = f"cannot be reached, or broke off: {error}"
            except ValueError as error:
                trouble = f"sent no JSON: {error}"
            if attempt + 1 < self._attempts:
                self._sleep(self._wait_s(attempt) if asked_to_wait is None else asked_to_wait)
        raise SourceError(f"{self._url}{path} {trouble}; gave up after {self._attempts} attempts")

    def _wait_s(self, attempt: int) -> float:
        # Between half the time and all of it, so that requests that failed together do not return together.
        return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**attempt) * (0.5 + 0.5 * self._jitter.random())


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that a server asks to wait, as a number or a date, at most `_LONGEST_WAIT_S`. None where it does not say."""
    if header is None:
        return None
    try:
        asked = float(header)
    except ValueError:
        try:
            asked = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(asked, 0.0), _LONGEST_WAIT_S)
