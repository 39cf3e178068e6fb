"""Bugs that a plugin could have, as edits of ours. Each is one that somebody has shipped, or could.

`look` names checks that are tried first, to be quick; then all of them are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    plugin: str
    file: str
    old: str
    new: str
    breaks: str
    look: str = ""


def _of(plugin: str, *edits: tuple[str, str, str, str, str]) -> list[Mutant]:
    return [Mutant(plugin, *edit) for edit in edits]


MUTANTS: list[Mutant] = [
    *_of(
        "replicate",
        (
            "facts.py",
            'case "canceled":\n            return Canceled(external_id=about)',
            'case "canceled":\n            return Changed(external_id=about)',
            "a canceled prediction is asked after for ever",
            "canceled or fetch_agrees",
        ),
        (
            "facts.py",
            'case "succeeded" if prediction.get("data_removed") is True:',
            'case "succeeded" if prediction.get("data_gone") is True:',
            "an expired result is an empty success",
            "dropped_is_lost",
        ),
        (
            "facts.py",
            "        case _:\n            return Changed(external_id=about)",
            "        case _:\n            return Succeeded(result(prediction), external_id=about)",
            "an unknown status is a success",
            "unknown_yet",
        ),
        (
            "facts.py",
            "text=None if files else _text(output),",
            "text=None,",
            "the text of a language model is lost",
            "ends_as_it_says",
        ),
        (
            "facts.py",
            "artifacts=files,",
            "artifacts=files[:1],",
            "all files but one are lost",
            "ends_as_it_says",
        ),
        (
            "facts.py",
            'usage=usage(prediction.get("metrics")),',
            "",
            "nothing is counted",
            "ends_as_it_says",
        ),
        (
            "facts.py",
            "if _REJECTED.search(text):",
            "if _REJECTED.match(text) and not text:",
            "rejected content is a failure like others",
            "ends_as_it_says",
        ),
        (
            "failures.py",
            '"httpx.ReadTimeout": Meaning.UNKNOWN',
            '"httpx.ReadTimeout": Meaning.NEVER_SENT',
            "a create that timed out is made again",
            "told_apart or without_an_answer",
        ),
        (
            "failures.py",
            '    "replicate.exceptions.ModelError": Meaning.MODEL_FAILED,\n',
            "",
            "an error of the SDK is not in the table",
            "has_its_row",
        ),
        (
            "failures.py",
            "case _ if status == 408 or status >= 500:",
            "case _ if status >= 500:",
            "a gateway's 408 is a wrong input",
            "comes_to_its_kind",
        ),
        (
            "failures.py",
            "return RateLimited(text, retry_after=retry_after, detail=shown)",
            "return RateLimited(text, detail=shown)",
            "the time to come back is not handed on",
            "come_back",
        ),
        (
            "session.py",
            "if not response.is_success:",
            "if response.status_code in (401, 403):",
            "errors reach the SDK's retries",
            "comes_to_its_kind",
        ),
        (
            "session.py",
            'raise AuthenticationFailed("REPLICATE_API_TOKEN is not set for the worker.")',
            "token = 'r8_none'",
            "a missing key is sent as another",
            "missing_key",
        ),
        (
            "provider.py",
            'if _token(row.get("webhook")) == token:',
            'if row.get("webhook"):',
            "find takes the first prediction it sees",
            "found_again",
        ),
        (
            "provider.py",
            "return [] if about is None else [Fact(fact(prediction), external_id=about)]",
            'return [Fact(fact(prediction), external_id=prediction["id"])]',
            "the parser stumbles over a strange body",
            "without_sense",
        ),
        (
            "provider.py",
            'model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)',
            "model_config = ConfigDict(use_attribute_docstrings=True)",
            "a misspelled field is dropped",
            "misspelled",
        ),
        (
            "__init__.py",
            "from agentflow_replicate.facts import fact",
            "import replicate  # noqa: F401\nfrom agentflow_replicate.facts import fact",
            "the SDK is loaded with the plugin",
            "loads_no_sdk",
        ),
        (
            "settings.py",
            'api_token: SecretStr = SecretStr("")',
            "api_token: SecretStr",
            "a process that takes webhooks needs a token",
            "without_any_variable",
        ),
    ),
    *_of(
        "openai",
        (
            "provider.py",
            "if type in ABOUT_RESPONSES and id:",
            "if type.startswith('resp') and id:",
            "types of the future are facts",
            "unknown_yet",
        ),
        (
            "provider.py",
            "return [Fact(Changed(), external_id=id)]",
            "return [Fact(Changed(), external_id=event['id'])]",
            "facts name the event instead of the response",
            "finds_its_attempt or end_is_told",
        ),
        (
            "provider.py",
            "    try:\n        event: Any = delivery.json\n    except ValueError:\n"
            "        return []\n",
            "    event: Any = delivery.json\n",
            "a body that is no JSON raises",
            "without_sense",
        ),
        (
            "session.py",
            "max_retries=0,",
            "max_retries=2,",
            "the SDK repeats paid calls",
            "comes_to_its_kind or without_an_answer",
        ),
        (
            "failures.py",
            '"openai.APITimeoutError": Meaning.UNKNOWN',
            '"openai.APITimeoutError": Meaning.NEVER_SENT',
            "a timeout is tried again",
            "told_apart",
        ),
        (
            "failures.py",
            '    "openai.OAuthError": Meaning.CREDENTIALS,\n'
            '    "openai.SubjectTokenProviderError": Meaning.CREDENTIALS,\n',
            "",
            "errors of credentials look like our fault",
            "has_its_row",
        ),
        (
            "failures.py",
            "return value * unit",
            "return value",
            "milliseconds are taken for seconds",
            "come_back",
        ),
        (
            "models.py",
            'if refused.detail.get("status") == 404:',
            'if refused.detail.get("status") == 410:',
            "a dropped response is asked for for ever",
            "dropped_is_lost",
        ),
        (
            "models.py",
            "return Accepted(id) if isinstance(state, Progressed | Changed) else state",
            "return Accepted('resp_pending') if isinstance(state, Progressed | Changed) else state",
            "all background jobs have one external id",
            "do_not_know or end_is_told",
        ),
        (
            "models.py",
            'found = sorted(made["data"], key=lambda each: each["index"])',
            'found = list(made["data"])',
            "vectors are in the wrong order",
            "ends_as_it_says",
        ),
        (
            "responses.py",
            'case "cancelled":',
            'case "canceled":',
            "a stop is not understood",
            "stopped_at or races",
        ),
        (
            "responses.py",
            'cut = reply(response).model_copy(update={"finish": "length"})',
            "cut = reply(response)",
            "a cut answer looks whole",
            "ends_as_it_says",
        ),
        (
            "images.py",
            'for number, each in enumerate(made.get("data") or ()):',
            'for number, each in enumerate((made.get("data") or ())[:1]):',
            "pictures are lost",
            "ends_as_it_says",
        ),
        (
            "chats.py",
            'ours = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}',
            'ours = {"prompt_tokens": "output_tokens", "completion_tokens": "input_tokens"}',
            "tokens are swapped",
            "ends_as_it_says",
        ),
    ),
    *_of(
        "sendgrid",
        (
            "signature.py",
            "signed = timestamp.encode() + body",
            "signed = timestamp.encode() + body.strip()",
            "a changed body passes",
            "was_changed",
        ),
        (
            "signature.py",
            "if not -self.tolerance <= age <= self.tolerance:",
            "if not age <= self.tolerance:",
            "signatures of next year pass",
            "from_the_future",
        ),
        (
            "signature.py",
            "if not any(_vouches(key, signature, signed) for key in self.keys):",
            "if not _vouches(self.keys[0], signature, signed):",
            "a new key does not count",
            "both_keys",
        ),
        (
            "signature.py",
            'return base64.b64decode(text.encode("ascii"), validate=True)\n    except ValueError:',
            'return base64.b64decode(text.encode("ascii"), validate=True)\n    except KeyError:',
            "a malformed header raises something else",
            "malformed_headers",
        ),
        (
            "signature.py",
            "        if not self.keys:\n            raise SettingsError(\n"
            "                \"No verification key is set: copy it from SendGrid's Event Webhook"
            ' settings"\n'
            "            )\n",
            "",
            "no key is good enough",
            "good_key",
        ),
        (
            "signature.py",
            "    except (InvalidSignature, ValueError):",
            "    except ValueError:",
            "a forged delivery raises something else",
            "another_key or was_changed",
        ),
        (
            "events.py",
            'if str(event.get("email", "")).lower() != event.get(TO):\n'
            "        return None  # of a copy\n",
            "if False:\n        return None\n",
            "what becomes of a copy decides",
            "ends_as_it_says",
        ),
        (
            "events.py",
            'case "bounce" | "dropped" as kind:',
            'case "bounce" as kind:',
            "dropped mails are waited for",
            "ends_as_it_says",
        ),
        (
            "events.py",
            "Fact(state, token=token, id=",
            "Fact(state, id=",
            "facts find no job",
            "finds_its_attempt",
        ),
        (
            "events.py",
            "found = [element(event) for event in events] if isinstance(events, list) else []",
            "found = [element(event) for event in events]",
            "an object is no batch",
            "without_sense",
        ),
        (
            "failures.py",
            "case _ if status == 408 or status >= 500:\n            return OutcomeUnknown(",
            "case _ if status == 408 or status >= 500:\n            return RateLimited(",
            "a mail may go out twice",
            "comes_to_its_kind",
        ),
        (
            "failures.py",
            "return max(0.0, until - now)",
            "return max(0.0, until)",
            "told to wait for fifty years",
            "come_back",
        ),
        (
            "settings.py",
            'api_key: SecretStr = SecretStr("")',
            'api_key: Any = SecretStr("")',
            "the key is no secret to pydantic",
            "kept_as_secrets",
        ),
        (
            "provider.py",
            "if answer.status_code != 202:",
            "if answer.status_code >= 500:",
            "refused mails are accepted",
            "comes_to_its_kind",
        ),
        (
            "provider.py",
            "from agentflow_sendgrid.settings import SendGridSettings",
            "from agentflow.types import new_id  # noqa: F401\n"
            "from agentflow_sendgrid.settings import SendGridSettings",
            "it comes in by a side door",
            "public_door",
        ),
    ),
]
